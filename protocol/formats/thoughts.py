"""Thoughts that stand before an answer between two marks, ``<think>…</think>`` for most models."""

from __future__ import annotations

from typing import NamedTuple

from .ids import CallIds
from .marks import beginning_of
from .said import Reader
from .tools import Offer


class ThoughtMarks(NamedTuple):
    """What thoughts stand between. The first of each is how a template writes it."""

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
        self.answer.said = self.said
        self.thinking = False
        """A thought has come that is more than space."""
        self.where = "start"
        """``start``: only space has come; ``thoughts``; ``behind``: only space since; ``answer``."""
        self.held = ""
        """What may be, or may become, a mark, or space that may be the last of the thoughts."""
        self.around = Unwrapped(marks.around) if marks.around else None

    def feed(self, text: str) -> None:
        self.answer.said = self.said
        self.held += text
        if self.where == "start":
            self.look_for_opening()
        if self.where == "thoughts":
            self.look_for_closing()
        if self.where == "behind":
            self.held = self.held.lstrip()
            if self.held:
                self.where = "answer"
        if self.where == "answer":
            held, self.held = self.held, ""
            self.pass_on(held)

    def pass_on(self, text: str) -> None:
        if self.around is not None:
            text = self.around.feed(text)
        if text:
            self.answer.feed(text)

    def look_for_opening(self) -> None:
        begun = self.held.lstrip()
        mark = next((mark for mark in self.marks.opening if begun.startswith(mark)), None)
        if mark is not None:
            self.where, self.held = "thoughts", begun[len(mark) :]
        elif not any(mark.startswith(begun) for mark in self.marks.opening):
            self.where = "answer"

    def look_for_closing(self) -> None:
        held = self.held
        if not self.thinking:
            held = self.held = held.lstrip()
            self.thinking = bool(held)
        places = [(held.find(mark), mark) for mark in self.marks.closing]
        found = min((place for place in places if place[0] >= 0), default=None)
        if found is not None:
            at, mark = found
            self.think(held[:at].rstrip())
            self.where, self.held = "behind", held[at + len(mark) :]
            return
        waits = max(beginning_of(mark, held) for mark in self.marks.closing)
        thought = held[: len(held) - waits].rstrip()
        self.think(thought)
        self.held = held[len(thought) :]

    def end(self, *, at_limit: bool) -> None:
        self.answer.said = self.said
        held, self.held = self.held, ""
        if self.where == "thoughts":
            self.think(held.rstrip())
            return
        if self.where == "behind":
            held = ""
        if self.around is not None:
            held = self.around.feed(held) + self.around.end()
        if held:
            self.answer.feed(held)
        self.answer.end(at_limit=at_limit)


class Unwrapped:
    """A text in parts without marks that may stand anywhere in it."""

    def __init__(self, marks: tuple[str, ...]) -> None:
        self.marks = marks
        self.held = ""

    def feed(self, text: str) -> str:
        held = self.held + text
        for mark in self.marks:
            held = held.replace(mark, "")
        waits = max(beginning_of(mark, held) for mark in self.marks)
        self.held = held[len(held) - waits :]
        return held[: len(held) - waits]

    def end(self) -> str:
        held, self.held = self.held, ""
        return held
