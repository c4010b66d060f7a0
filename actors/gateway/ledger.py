"""The ledger: each open request, and what of its answer was delivered.

It makes every other actor replaceable: when one of them is new, each open request is submitted again with what its
client already has, and what still comes of an earlier attempt is dropped.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import msgspec

from ...protocol import limits
from ...protocol.digest import digest_of
from ...protocol.internal import Submit, first_number
from ...protocol.messages import Delta, Generate, Usage
from ...protocol.sampling import SamplingParams
from ..public.connections import Connection
from ..public.deadlines import Deadlines
from .admission import Prompt, template_of


@dataclass(slots=True, eq=False)
class Request:
    """An open request: everything that is needed to start it again from what was delivered."""

    number: int
    """The number of its first answer."""
    connection: Connection
    id: str
    prompt: Prompt
    params: SamplingParams
    size: int
    return_prompt_ids: bool
    template: dict[str, Any] = field(default_factory=dict)
    """The arguments of the chat template beside the messages."""
    add_special_tokens: bool = True
    marks: bool = False
    """As in ``Generate``."""
    calls: dict[str, dict[str, Any]] = field(default_factory=dict)
    """As in ``Generate``."""
    traceparent: str = ""
    """As in ``Generate``."""
    error: str = ""
    """The reason for which it ends before its answers are complete."""
    answers: list[Answer] = field(default_factory=list)
    """Its ``n`` answers, by index."""
    digest: bytes = b""
    """A digest of all that was asked: the same for all clients that ask the same."""
    attempt: int = 0
    sent: bool = False
    """Whether the current attempt has been submitted; it is not while it waits for the end of a probation."""
    started_alone: Answer | None = None
    """The answer that the current attempt has started first; None once all answers are started."""
    prompt_ids: bytes = b""
    tokenized: bool = False
    early: list[Delta] = field(default_factory=list)
    """Deltas that wait for ``Tokenized``, whose token ids the first of them carries. It comes from another actor, and
    so may come later than they."""
    prompt_logprobs: list[dict[str, float] | None] | None = None
    """The logprobs of the prompt, to be sent with the next delta of answer 0."""
    prompt_logprobs_sent: bool = False
    prompt_tokens: int = 0
    cached_tokens: int = 0
    accepted_at: float = 0.0
    first_at: float | None = None
    """The time at which its first token came."""
    queued_s: float = 0.0
    """Seconds that it waited in the scheduler for its first step."""
    planned_at: float | None = None
    """The time at which that step was planned."""
    suspected: int = 0
    """The number of times that it was in hand when an actor ended by its own fault."""
    passes_at: int = 0
    """The number of delivered tokens with which it is past the point of the last such death."""

    @property
    def unfinished(self) -> list[Answer]:
        return [answer for answer in self.answers if not answer.finished]

    @property
    def lacks_prompt_ids(self) -> bool:
        """Whether nothing of it can be delivered yet, as the ids of its prompt have not come."""
        return self.return_prompt_ids and not self.tokenized

    @property
    def delivered_tokens(self) -> int:
        """The number of tokens of all answers together."""
        return sum(len(answer.delivered) for answer in self.answers)

    @property
    def started(self) -> list[Answer]:
        """The unfinished answers that the current attempt has submitted: the end of each will come."""
        return [answer for answer in self.unfinished if self.sent and self.started_alone in (None, answer)]

    @property
    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.delivered_tokens,
            cached_tokens=self.cached_tokens,
        )


@dataclass(slots=True, eq=False)
class Answer:
    """One of the ``n`` answers to a request. To all other actors it is a request of its own."""

    number: int
    """The number by which the other actors know it: ``request`` in their messages."""
    request: Request
    index: int
    params: SamplingParams
    """The request's, with the seed of this answer."""
    delivered: array[int]
    opened: bool = False
    """Whether the current attempt has reached the detokenizer, so that what comes now belongs to it."""
    finished: bool = False
    reason: str = ""
    """The reason of its end, when it came."""

    def submission(self) -> Submit:
        """The message that starts the request, or resumes it from what was delivered."""
        request = self.request
        ids = request.prompt if isinstance(request.prompt, bytes) else b""
        text = None if isinstance(request.prompt, bytes) else request.prompt
        return Submit(
            self.number,
            text,
            self.params,
            self.delivered.tobytes(),
            request.connection.number,
            request.attempt,
            ids,
            request.template,
            request.add_special_tokens,
            request.marks,
            request.calls,
        )


class Ledger:
    """All open requests of one incarnation of the gateway."""

    def __init__(self, epoch: int, note_moment: Callable[[str, int], None]) -> None:
        self.note_moment = note_moment
        """Called with the name of a moment and the number of an answer, for the trace."""
        self.requests: dict[int, Request] = {}
        self.by_id: dict[tuple[int, str], Request] = {}
        """Open requests by the number of their connection and the id that its client gave."""
        self.answers: dict[int, Answer] = {}
        """The answers of all open requests, by number."""
        self.open_bytes = 0
        """The number of bytes of all prompts together."""
        self.next_number = first_number(epoch)
        self.cancelled: set[int] = set()
        """Numbers of answers that were cancelled and whose end has not come. It is emptied when an actor is new."""
        self.unknown: set[int] = set()
        """Numbers of no open answer for which tokens came, and whose ``Cancel`` was sent again. Their end may come or
        not, since the sender of the tokens may be gone. It is emptied when an actor is new."""
        self.deadlines = Deadlines(self.requests)
        self.on_end: Callable[[Request], None] | None = None
        """Called with each request that is over."""

    def open(
        self, connection: Connection, message: Generate, prompt: Prompt, size: int, params: SamplingParams
    ) -> Request:
        request = Request(
            self.next_number,
            connection,
            message.id,
            prompt,
            params,
            size,
            message.return_prompt_ids,
            template_of(message),
            message.add_special_tokens,
            message.marks,
            message.calls,
            message.traceparent,
            digest=digest_of(message),
        )
        for index, received in enumerate(received_by_answer(message)):
            answer = Answer(
                self.next_number, request, index, answer_params(params, index), array("i", received)
            )
            request.answers.append(answer)
            self.answers[answer.number] = answer
            self.note_moment("arrived", answer.number)
            self.next_number += 1
        self.requests[request.number] = self.by_id[connection.number, message.id] = request
        connection.open_ids.add(message.id)
        self.open_bytes += size
        return request

    def find(self, connection: Connection, id: str) -> Request | None:
        """The open request of a connection that has this id."""
        return self.by_id.get((connection.number, id))

    def of(self, connection: Connection) -> list[Request]:
        """All open requests of a connection, in the order in which they came."""
        return sorted(
            (self.by_id[connection.number, id] for id in connection.open_ids), key=lambda r: r.number
        )

    def forget(self, request: Request) -> None:
        if self.on_end is not None:
            self.on_end(request)
        del self.requests[request.number]
        for answer in request.answers:
            del self.answers[answer.number]
            self.note_moment("finished", answer.number)
        del self.by_id[request.connection.number, request.id]
        request.connection.open_ids.discard(request.id)
        self.open_bytes -= request.size


def received_by_answer(message: Generate) -> list[list[int]]:
    """The tokens of each of the ``n`` answers that the client has received."""
    received = [message.received, *message.received_of_others]
    return received + [[]] * (message.params.n - len(received))


def answer_params(params: SamplingParams, index: int) -> SamplingParams:
    """The parameters of answer ``index``: a seed of its own, and no logprobs of the prompt.

    The first has the request's, so it is the answer of ``n=1``.
    """
    if index == 0:
        return params
    digest = blake2b(f"{params.seed}/{index}".encode(), digest_size=8).digest()
    seed = int.from_bytes(digest, "little") & limits.MAX_SEED
    return msgspec.structs.replace(params, seed=seed, prompt_logprobs=None)
