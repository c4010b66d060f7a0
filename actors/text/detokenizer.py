"""The detokenizer: token ids of a step go in, the text that each of them adds comes out.

The text of an answer is a function of its token ids alone, however they were grouped into steps. So an
answer that was lost with its process is rebuilt by sending the same ids through a new one.
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
    """Makes text of the tokens of each step, and ends the requests that meet a stop text."""

    name = "detokenizer"

    def __init__(self, tokenizer: tokenizers.Tokenizer, formats: Formats = NO_FORMATS) -> None:
        super().__init__()
        self.thoughts = ThoughtTokens(tokenizer, formats)
        self.pieces = Pieces(tokenizer)
        self.pieces.check()
        self.named = Pieces(tokenizer, special=True)
        """The pieces with the names of special tokens, for answers that ask for them."""
        self.answers: dict[int, AnswerText] = {}
        self.counters: dict[str, float] = {}
        """The scheduler's last counters, for a gateway that was not there yet."""
        self.handlers |= {Tokens: self.on_tokens}
        self.dropped_tokens = 0
        """Tokens of requests that are not open, most of them on their way when a stop text was met."""
        self.resets = 0
        """Answers that a new scheduler or gateway has invalidated."""

    def on_tokens(self, message: Tokens, now: float) -> None:
        """One ``Texts`` for every ``Tokens``."""
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
                answer = answers.pop(end.request, None)  # none: it ended before it was opened
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
        """An answer in the state that the context leaves it in; the context's own text does not come again."""
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
        """The rows of the tokens that ended their sequences: a stop token counts, but has no text, unless it is asked
        for."""
        ended = [end.request for end in finished if end.reason == "stop" and end.request in self.answers]
        stopped = [request for request in ended if not self.answers[request].include_stop]
        if not stopped:
            return set()
        last_row = {request: row for row, request in enumerate(requests)}
        for request in stopped:
            self.answers[request].plain = False  # off the short way, which looks up no row
        return {last_row[request] for request in stopped if request in last_row}

    def on_peer_up(self, peer: PeerUp, now: float) -> None:
        """A new scheduler opens all answers anew, and for a new gateway they are all submitted anew."""
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
    """``data`` holds ``rows`` rows of one size: all of them but the dropped ones."""
    size = len(data) // rows
    return b"".join(without([data[row * size : (row + 1) * size] for row in range(rows)], dropped))


def build(context: StartContext) -> Actor:
    """The detokenizer of a service, from its options."""
    context.phase("load tokenizer")
    options = context.options_as(DetokenizerOptions)
    return Detokenizer(load_tokenizer(Path(options.model)), options.formats)
