"""Thoughts that stand before an answer between two marks, ``<think>…</think>`` for most models."""

from __future__ import annotations

from typing import NamedTuple

from .ids import CallIds
from .marks import beginning_of, cut_at, may_hold
from .reader import Reader
from .tools import Offer


class ThoughtMarks(NamedTuple):
    """The marks around thoughts. The first of each is how a template writes it."""

    opening: tuple[str, ...]
    closing: tuple[str, ...]
    around: tuple[str, ...] = ()
    """Marks around the answer behind them, which are no part of it."""


class Thoughts(Reader):
    """Parts the thoughts off, and hands the answer behind them to the reader of calls.

    Space at both ends of the thoughts, and before the answer behind them, is the format's and not the model's.
    """

    def __init__(self, marks: ThoughtMarks, offered: Offer, ids: CallIds, answer: Reader) -> None:
        super().__init__(offered, ids)
        self.marks = marks
        self.answer = answer
        self.answer.parsed = self.parsed
        self.thinking = False
        """A thought has come that is more than space."""
        self.where = "start"
        """``start``: only space has come; ``thoughts``; ``behind``: only space since; ``answer``."""
        self.buffer = ""
        """What may be, or may become, a mark, or space that may be the last of the thoughts."""
        self.around = Unwrapped(marks.around) if marks.around else None

    @property
    def in_thoughts(self) -> bool:
        return self.where == "thoughts"

    def feed(self, text: str) -> None:
        self.answer.parsed = self.parsed
        self.buffer += text
        if self.where == "start":
            self.look_for_opening()
        if self.where == "thoughts":
            self.look_for_closing()
        if self.where == "behind":
            self.buffer = self.buffer.lstrip()
            if self.buffer:
                self.where = "answer"
        if self.where == "answer":
            buffer, self.buffer = self.buffer, ""
            self.pass_on(buffer)

    def pass_on(self, text: str) -> None:
        if self.around is not None:
            text = self.around.feed(text)
        if text:
            self.answer.feed(text)

    def look_for_opening(self) -> None:
        begun = self.buffer.lstrip()
        mark = next((mark for mark in self.marks.opening if begun.startswith(mark)), None)
        if mark is not None:
            self.where, self.buffer = "thoughts", begun[len(mark) :]
        elif not any(mark.startswith(begun) for mark in self.marks.opening):
            self.where = "answer"

    def look_for_closing(self) -> None:
        buffer = self.buffer
        if not self.thinking:
            buffer = self.buffer = buffer.lstrip()
            self.thinking = bool(buffer)
        before, found, rest = cut_at(buffer, self.marks.closing)
        thought = before.rstrip()
        self.emit_reasoning(thought)
        if found is not None:
            self.where, self.buffer = "behind", rest
        else:
            self.buffer = buffer[len(thought) :]

    def end(self, *, at_limit: bool) -> None:
        self.answer.parsed = self.parsed
        buffer, self.buffer = self.buffer, ""
        if self.where == "thoughts":
            self.emit_reasoning(buffer.rstrip())
            return
        if self.where == "behind":
            buffer = ""
        if self.around is not None:
            buffer = self.around.feed(buffer) + self.around.end()
        if buffer:
            self.answer.feed(buffer)
        self.answer.end(at_limit=at_limit)


class Unwrapped:
    """A text in parts without marks that may stand anywhere in it."""

    def __init__(self, marks: tuple[str, ...]) -> None:
        self.marks = marks
        self.buffer = ""

    def feed(self, text: str) -> str:
        buffer = self.buffer + text
        if not may_hold(buffer, self.marks):
            self.buffer = ""
            return buffer
        for mark in self.marks:
            buffer = buffer.replace(mark, "")
        waits = max(beginning_of(mark, buffer) for mark in self.marks)
        self.buffer = buffer[len(buffer) - waits :]
        return buffer[: len(buffer) - waits]

    def end(self) -> str:
        buffer, self.buffer = self.buffer, ""
        return buffer
