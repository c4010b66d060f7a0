"""The questions that a client has open, of which one of each kind is asked at a time.

A service that is asked too much at once does not say which question it refuses, and all that is open would end. So the
oldest of a kind is sent, and the next one when that is answered.
"""

from __future__ import annotations

from typing import Any

from ..errors import from_wire
from ..messages import (
    Actors,
    Adapters,
    CacheReset,
    FromClient,
    GetActors,
    GetStats,
    ResetCache,
    Stats,
    Welcome,
)
from .pending import Pending

ASKED_BY: dict[type, FromClient] = {
    Stats: GetStats(),
    Actors: GetActors(),
    CacheReset: ResetCache(),
}
"""The message that asks for an answer of each type, where none is given."""


class Question(Pending):
    """A question that has one answer, of type ``expects``; ``message`` asks it, None if a hello does."""

    __slots__ = ("answer", "expects", "message")

    def __init__(self, expects: type, message: FromClient | None) -> None:
        super().__init__()
        self.expects = expects
        self.message = message
        self.answer: Any = None


class Questions:
    """The questions of one session, in the order in which they were asked."""

    def __init__(self) -> None:
        self.open: list[Question] = []

    def __bool__(self) -> bool:
        return bool(self.open)

    def add(self, question: Question) -> bool:
        """Note a question; returns whether it is to be sent now: no other of its kind is open."""
        first = all(other.expects is not question.expects for other in self.open)
        self.open.append(question)
        return first

    def kinds(self) -> list[type]:
        """The types of the answers that are waited for."""
        return list(dict.fromkeys(question.expects for question in self.open))

    def next_message(self, kind: type) -> FromClient | None:
        """The message of the oldest question of a kind; None if there is none, or nothing has to be sent for it."""
        question = next((question for question in self.open if question.expects is kind), None)
        return None if question is None else question.message

    def take(self, kind: type, answer: Any) -> list[Question]:
        """Give an answer to the oldest question of its kind, a ``Welcome`` to all; returns those that have theirs now.

        ``Pong`` answers none.
        """
        answered: list[Question] = []
        for question in [question for question in self.open if question.expects is kind]:
            if isinstance(answer, Adapters) and answer.error:
                question.error = from_wire(answer.code, answer.error)
            else:
                question.answer = answer
            self.open.remove(question)
            answered.append(question)
            if kind is not Welcome:
                break
        return answered
