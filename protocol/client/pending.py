"""The results that a client waits for, above all streams: the answers to open requests."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from ..errors import SlipstreamError
from ..formats.ids import CallIds
from ..formats.reader import ChatDelta
from ..formats.tools import NO_OFFER, Offer
from ..limits import MAX_DEADLINE_S
from ..messages import NO_FORMATS, Delta, Formats, Generate
from ..sampling import MATCHED_AS_A_WHOLE
from .request import answer_count

if TYPE_CHECKING:
    from ..formats.answer import AnswerReader


class Pending:
    """Something that the client waits for. ``waiter`` belongs to the client."""

    __slots__ = ("error", "waiter")

    def __init__(self) -> None:
        self.error: SlipstreamError | None = None
        self.waiter: Any = None


class Stream(Pending):
    """The answers to an open request: what was asked, what has come, what the consumer has not taken yet."""

    __slots__ = (
        "aborted",
        "asked_at",
        "deltas",
        "last",
        "max_waiting",
        "new_ids",
        "offered",
        "plain",
        "prompt_ids",
        "readers",
        "received",
        "request",
        "unfinished",
    )

    def __init__(
        self,
        request: Generate,
        asked_at: float,
        max_waiting: int | None = None,
        offered: Offer = NO_OFFER,
        new_ids: Callable[[], CallIds] = CallIds,
    ) -> None:
        super().__init__()
        self.max_waiting = max_waiting
        """Most deltas that may wait for the consumer; None: any number."""
        self.request = request
        self.asked_at = asked_at
        self.prompt_ids: list[int] | None = None
        """For a conversation: the token ids that the service made of it. Its template may print the date, and
        another one later."""
        self.deltas: deque[Delta] = deque()
        self.received: defaultdict[int, list[int]] = defaultdict(list)
        """Every token id that has arrived, taken by the consumer or not, by the index of its answer."""
        self.unfinished = set(range(answer_count(request.params)))
        """Indices of the answers that have no ``finish_reason`` yet."""
        self.last: Delta | None = None
        """The end of the last answer, which waits for the usage of all of them."""
        self.aborted = False
        self.offered = offered
        """What the answer may call, or has to."""
        self.new_ids = new_ids
        self.plain: bool | None = None
        """There is nothing to parse; None: that is not known yet."""
        self.readers: dict[int, AnswerReader] = {}
        """What parses the answers of a conversation, by their index."""

    def parsed(self, delta: Delta, formats: Formats) -> Delta:
        """A delta of a conversation, parsed into thoughts, calls and the answer."""
        if self.plain is None:
            self.plain = formats == NO_FORMATS and not self.offered.functions
        # Once for each token of a service's chats: what most deltas do not have is looked at and not copied.
        made = ChatDelta(id=delta.id, text=delta.text, token_ids=delta.token_ids, index=delta.index)
        if not self.plain:
            reader = self.readers.get(delta.index) or self.new_reader(delta.index, formats)
            said = reader.read(delta.text, delta.finish_reason, delta.stop_reason)
            made.text, made.reasoning, made.tool_calls = said.text, said.reasoning, said.calls
            if said.thinks:
                made.reasoning_tokens = len(delta.token_ids)
        if delta.finish_reason is not None:
            made.finish_reason, made.stop_reason = delta.finish_reason, delta.stop_reason
        if delta.usage is not None:
            made.usage = delta.usage
        if delta.logprobs:
            made.logprobs = delta.logprobs
        if delta.prompt_token_ids is not None:
            made.prompt_token_ids = delta.prompt_token_ids
        if delta.prompt_logprobs is not None:
            made.prompt_logprobs = delta.prompt_logprobs
        return made

    def new_reader(self, index: int, formats: Formats) -> AnswerReader:
        """The parser of answer ``index`` of a conversation."""
        from ..formats.answer import AnswerReader  # here, since few clients need it

        params = self.request.params
        kind = None if params.grammar is None else params.grammar.kind
        enforced = formats.strict and bool(self.request.calls) and kind in (None, *MATCHED_AS_A_WHOLE)
        offered = msgspec.structs.replace(self.offered, enforced=enforced) if enforced else self.offered
        special = not params.skip_special_tokens
        reader = AnswerReader(formats, offered, self.new_ids(), special=special)
        self.readers[index] = reader
        self.plain = reader.plain
        return reader

    def lacks_usage(self, delta: Delta) -> bool:
        """Whether a delta ends the last answer without the usage of all: after a resend, the service still works on
        answers that had ended here, and reports the usage when these end again."""
        if delta.usage is not None or self.aborted:
            return False
        return answer_count(self.request.params) > 1 and self.unfinished == {delta.index}

    def resumed(self, now: float) -> Generate:
        """The request with what has arrived, to go on from there and by the same deadline."""
        request = msgspec.structs.replace(
            self.request, age_s=min(round(now - self.asked_at, 3), MAX_DEADLINE_S)
        )
        if self.prompt_ids is not None:
            request.prompt, request.messages = self.prompt_ids, None
            request.tools, request.chat_template_kwargs = None, {}
        if self.received:
            request.received = self.received.get(0, [])
            request.received_of_others = [self.received.get(i, []) for i in range(1, max(self.received) + 1)]
        return request
