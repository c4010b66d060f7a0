"""Takes the texts of a step into the ledger, and makes the deltas for its clients."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from ...protocol.internal import Finished, Opened, PromptLogprobs, Texts
from ...protocol.messages import Delta
from ..public.connections import Connection
from .ledger import Answer, Ledger, Request

ENDS = ("stop", "length", "abort")
"""Reasons for which an answer ends well; any other is the code of an error."""


@dataclass(slots=True)
class Delivery:
    """The results of one step for the clients."""

    deltas: defaultdict[Connection, list[Delta]] = field(default_factory=lambda: defaultdict(list))
    """The deltas of each connection."""
    unknown: set[int] = field(default_factory=set)
    """Numbers of no open answer: their ``Cancel`` was lost with the actor that had it."""
    failed: list[tuple[Answer, Finished]] = field(default_factory=list)
    """Answers that end with an error."""
    begun: list[Answer] = field(default_factory=list)
    """Answers that got their first token."""
    finished: list[Request] = field(default_factory=list)
    """Requests that are over."""
    reasons: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    """The number of answers that ended, by reason."""


def take_in(ledger: Ledger, message: Texts) -> Delivery:
    """Record what is new, and return what each client is to be sent."""
    delivery = Delivery()
    take_opened(ledger, message.opened)
    for prompt in message.prompts:
        take_prompt(ledger, prompt)
    deltas = take_tokens(ledger, message, delivery)
    for finished, tail in zip(message.finished, message.tails, strict=True):
        take_end(ledger, finished, tail, deltas, delivery)
    return delivery


def by_request(ledger: Ledger, message: Texts) -> Iterator[tuple[bytes, Texts]]:
    """Divide the texts by request, each with the digest of its request; those of no open request come together, with an
    empty digest."""

    def request_of(number: int) -> Request | None:
        answer = ledger.answers.get(number)
        return None if answer is None else answer.request

    numbers = array("q", message.requests)
    rows: defaultdict[Request | None, list[int]] = defaultdict(list)
    for row, number in enumerate(numbers):
        rows[request_of(number)].append(row)
    others = [*message.opened, *message.prompts, *message.finished]
    requests = dict.fromkeys([*rows, *(request_of(one.request) for one in others)])
    tokens, count = array("i", message.tokens), len(numbers)
    ends = list(zip(message.finished, message.tails, strict=True))
    counters = message.counters
    for request in requests:
        own = rows[request]
        mine = [(end, tail) for end, tail in ends if request_of(end.request) is request]
        part = Texts(
            message.step,
            [one for one in message.opened if request_of(one.request) is request],
            array("q", [numbers[row] for row in own]).tobytes(),
            array("i", [tokens[row] for row in own]).tobytes(),
            [message.texts[row] for row in own],
            [end for end, _ in mine],
            [tail for _, tail in mine],
            counters,
            rows_of(message.logprob_tokens, count, own),
            rows_of(message.logprobs, count, own),
            [one for one in message.prompts if request_of(one.request) is request],
        )
        counters = {}
        yield b"" if request is None else request.digest, part
    if not requests:
        yield b"", message


def rows_of(data: bytes, count: int, rows: list[int]) -> bytes:
    """Some of the ``count`` rows of one size that ``data`` has."""
    size = len(data) // count if count else 0
    return b"".join(data[row * size : (row + 1) * size] for row in rows)


def take_opened(ledger: Ledger, opened: list[Opened]) -> None:
    for one in opened:
        answer = ledger.answers.get(one.request)
        if answer is None or one.attempt != answer.request.attempt:
            continue
        answer.opened = True
        request = answer.request
        if answer.index == 0:  # the others find what this one has computed
            request.cached_tokens = one.cached_tokens
        # ``Tokenized`` comes another way, and may be later.
        request.prompt_tokens = one.prompt_tokens
        if request.planned_at is None:
            request.queued_s, request.planned_at = one.planned_at - one.queued_at, one.planned_at


def take_prompt(ledger: Ledger, prompt: PromptLogprobs) -> None:
    """The logprobs of a prompt; a new scheduler computes and sends them again."""
    answer = ledger.answers.get(prompt.request)
    if answer is None or not answer.opened or answer.params.prompt_logprobs is None:
        return
    request = answer.request
    if not request.prompt_logprobs_sent:
        columns = 1 + answer.params.prompt_logprobs
        count = len(prompt.tokens) // 4 // columns
        rows = LogprobRows(prompt.tokens, prompt.values, count)
        request.prompt_logprobs = [None, *(rows.read(row, columns) for row in range(count))]


def take_tokens(ledger: Ledger, message: Texts, delivery: Delivery) -> dict[int, Delta]:
    """Returns the deltas by the number of their answer."""
    answers, cancelled = ledger.answers, ledger.cancelled
    deltas: dict[int, Delta] = {}
    logprobs = LogprobRows(message.logprob_tokens, message.logprobs, len(message.texts))
    for row, (number, token, text) in enumerate(
        zip(array("q", message.requests), array("i", message.tokens), message.texts, strict=True)
    ):
        answer = answers.get(number)
        if answer is None:
            if number not in cancelled and number not in ledger.unknown:
                delivery.unknown.add(number)
            continue
        if not answer.opened or answer.finished:
            continue
        answer.delivered.append(token)
        delta = deltas.get(number)
        if delta is None:
            delta = deltas[number] = begin(answer, [token], text, delivery)
            if len(answer.delivered) == 1:
                ledger.note_moment("first token", number)
                delivery.begun.append(answer)
        else:
            delta.token_ids.append(token)
            delta.text += text
        if logprobs.columns and answer.params.logprobs is not None:
            delta.logprobs.append(logprobs.read(row, 1 + answer.params.logprobs))
    return deltas


def take_end(
    ledger: Ledger, finished: Finished, tail: str, deltas: dict[int, Delta], delivery: Delivery
) -> None:
    answer = ledger.answers.get(finished.request)
    if answer is None or answer.finished:
        ledger.cancelled.discard(finished.request)
        ledger.unknown.discard(finished.request)
        delivery.unknown.discard(finished.request)
        return
    request = answer.request
    if finished.reason not in ENDS:
        delivery.failed.append((answer, finished))
        return
    if not answer.opened:
        return
    if len(request.answers) > 1:
        deltas.pop(answer.number, None)  # its end comes after what the step brings to the others
    delta = deltas.get(answer.number) or begin(answer, [], "", delivery)
    delta.text += tail
    delta.finish_reason, delta.stop_reason = finished.reason, finished.stop_reason
    answer.finished, answer.reason = True, finished.reason
    delivery.reasons[finished.reason] += 1
    if request.unfinished:
        return
    delta.usage = request.usage
    if request.lacks_prompt_ids:
        return
    delivery.finished.append(request)
    ledger.forget(request)


def begin(answer: Answer, token_ids: list[int], text: str, delivery: Delivery) -> Delta:
    request = answer.request
    delta = Delta(id=request.id, text=text, token_ids=token_ids, index=answer.index)
    (request.early if request.lacks_prompt_ids else delivery.deltas[request.connection]).append(delta)
    if request.prompt_ids:
        delta.prompt_token_ids = array("i", request.prompt_ids).tolist()
        request.prompt_ids = b""
    if answer.index == 0 and request.prompt_logprobs is not None:
        delta.prompt_logprobs, request.prompt_logprobs = request.prompt_logprobs, None
        request.prompt_logprobs_sent = True
    return delta


class LogprobRows:
    """Logprobs, row by row."""

    def __init__(self, tokens: bytes, values: bytes, rows: int) -> None:
        self.tokens = array("i", tokens)
        self.values = array("f", values)
        self.columns = len(self.tokens) // rows if self.tokens else 0
        """0: there are none."""

    def read(self, row: int, columns: int) -> dict[str, float]:
        """Token id to logprob, from the first ``columns`` of a row."""
        first = row * self.columns
        tokens, values = self.tokens[first : first + columns], self.values[first : first + columns]
        return dict(zip(map(str, tokens), values, strict=True))
