"""The detokenizer: turns each token id of a step into the text that it adds to its answer.

The text of an answer depends on its token ids alone, and not on how they were grouped into steps. So when the process
has died, an answer is rebuilt by giving the same ids to a new one.
"""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import tokenizers

from ...protocol.events import PeerUp
from ...protocol.internal import Finished, Matched, Opened, Texts, Tokens, first_number
from ...protocol.messages import NO_FORMATS, Formats
from ...runtime.actor import Actor
from ..options import DetokenizerOptions
from .answer_text import AnswerText
from .thoughts import ThoughtTokens
from .vocabulary.pieces import Pieces
from .vocabulary.tokenizer_files import load_tokenizer

if TYPE_CHECKING:
    from ...runtime.process.child import StartContext

T = TypeVar("T")


class Detokenizer(Actor):
    """Makes the text of the tokens of each step, and ends requests whose text meets a stop text."""

    name = "detokenizer"

    def __init__(self, tokenizer: tokenizers.Tokenizer, formats: Formats = NO_FORMATS) -> None:
        super().__init__()
        self.thoughts = ThoughtTokens(tokenizer, formats)
        self.pieces = Pieces(tokenizer)
        self.pieces.check()
        self.named = Pieces(tokenizer, special=True)
        """The pieces for answers in which special tokens have their names as text."""
        self.answers: dict[int, AnswerText] = {}
        self.counters: dict[str, float] = {}
        """The scheduler's last counters, for a gateway that starts later."""
        self.handlers |= {Tokens: self.on_tokens}
        self.dropped_tokens = 0
        """The number of tokens of requests that were not open; most were on their way when a stop text was met."""
        self.resets = 0
        """The number of answers that were dropped because of a new scheduler or gateway."""

    def on_tokens(self, message: Tokens, now: float) -> None:
        """Send one ``Texts`` for every ``Tokens``."""
        if message.counters:
            self.counters = message.counters
        answers, known = self.answers, self.pieces.known
        matched: dict[int, AnswerText] = {}
        for opened in message.opened:
            answer = answers[opened.request] = self.open(opened)
            if answer.matched is not None:
                matched[opened.request] = answer
                del answers[opened.request]

        requests = memoryview(message.requests).cast("q").tolist()
        tokens = memoryview(message.tokens).cast("i").tolist()
        withheld = self.stop_token_rows(message.finished, requests)
        texts: list[str] = []
        dropped: list[int] = []
        for request, token in zip(requests, tokens, strict=True):  # the hot path: all tokens of the service
            answer = answers.get(request)
            if answer is None:
                dropped.append(len(texts))
                texts.append("")
                continue
            if answer.plain:
                piece = known[token] if token < len(known) else None
                if type(piece) is str:
                    texts.append(piece)
                    continue
            if len(texts) in withheld:
                texts.append("")
                continue
            texts.append(answer.text(token))
            if answer.matched is not None:
                matched[request] = answer
                del answers[request]

        finished = [Finished(request, "stop", answer.matched) for request, answer in matched.items()]
        tails = [""] * len(finished)
        for end in message.finished:
            if end.request not in matched:
                answer = answers.pop(end.request, None)  # None: it ended before it was opened
                finished.append(end)
                tails.append(answer.tail() if answer else "")
        rows = message.requests, message.tokens, texts
        logprobs = message.logprob_tokens, message.logprobs
        if dropped:
            self.dropped_tokens += len(dropped)
            rows = (
                array("q", without(requests, dropped)).tobytes(),
                array("i", without(tokens, dropped)).tobytes(),
                without(texts, dropped),
            )
            logprobs = tuple(without_rows(data, len(tokens), dropped) for data in logprobs)
        fields = message.step, message.opened, *rows, finished, tails, message.counters
        self.send("gateway", Texts(*fields, logprobs[0], logprobs[1], message.prompts))
        if matched:
            self.send("scheduler", Matched(list(matched), [answer.attempt for answer in matched.values()]))

    def open(self, opened: Opened) -> AnswerText:
        """A new answer, in the state after its context, whose own text is not sent again."""
        context = memoryview(opened.context).cast("i").tolist()
        prompt = len(context) - opened.delivered
        begun = prompt < opened.prompt_tokens
        pieces = self.named if opened.special else self.pieces
        answer = AnswerText(pieces, begun, opened.stop, opened.attempt, include_stop=opened.include_stop)
        if opened.marks:
            answer.show(self.thoughts.shown, self.thoughts.opening(context[:prompt]))
        for token in context[:prompt]:
            answer.characters(token)
        for token in context[prompt:]:
            answer.text(token)
            if answer.matched is not None:
                break
        return answer

    def stop_token_rows(self, finished: list[Finished], requests: list[int]) -> set[int]:
        """The rows of stop tokens that ended their sequences. Such a token counts, but has no text unless the request
        asks for it."""
        ended = [end.request for end in finished if end.reason == "stop" and end.request in self.answers]
        stopped = [request for request in ended if not self.answers[request].include_stop]
        if not stopped:
            return set()
        last_row = {request: row for row, request in enumerate(requests)}
        for request in stopped:
            self.answers[request].plain = False  # not by the short way above, which does not look at the row
        return {last_row[request] for request in stopped if request in last_row}

    def on_peer_up(self, peer: PeerUp, now: float) -> None:
        """Drop answers that are opened anew: all for a new scheduler, and those of the old gateway for a new one."""
        if peer.name == "scheduler":
            self.resets += len(self.answers)
            self.answers.clear()
            self.counters = {}
        if peer.name == "gateway":
            if self.counters:
                self.send("gateway", Texts(-1, [], b"", b"", [], [], [], self.counters))
            for request in [number for number in self.answers if number < first_number(peer.epoch)]:
                self.resets += 1
                del self.answers[request]


def without(row_values: list[T], dropped: list[int]) -> list[T]:
    """The values of all rows but the dropped ones."""
    gone = set(dropped)
    return [value for row, value in enumerate(row_values) if row not in gone]


def without_rows(data: bytes, rows: int, dropped: list[int]) -> bytes:
    """All but the dropped ones of the ``rows`` rows of equal size in ``data``."""
    size = len(data) // rows
    return b"".join(without([data[row * size : (row + 1) * size] for row in range(rows)], dropped))


def build(context: StartContext) -> Actor:
    """The detokenizer of a service, from its options."""
    context.phase("load tokenizer")
    options = context.options_as(DetokenizerOptions)
    return Detokenizer(load_tokenizer(Path(options.model)), options.formats)
