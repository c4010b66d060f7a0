"""Traces: the spans of all actors, gathered for the clients that ask, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ...protocol.internal import DumpTrace, Spans
from ...protocol.messages import Trace
from ...protocol.trace import Recorded

TRACE_TIMEOUT_S = 2.0
"""Time that an actor has to send its spans; then the answer has only those of the others. A long step or prompt holds
an actor up for less."""

MAX_TRACE_QUESTIONS = 2
"""Questions of one client that may wait at once: each is answered with megabytes."""


@dataclass(slots=True, eq=False)
class Gathering:
    """A trace that is being gathered from all actors."""

    client: bytes
    answers: int
    """The number of questions of the client that it answers."""
    since_ns: int
    until_ns: int
    deadline: float
    missing: set[str]
    actors: dict[str, Recorded] = field(default_factory=dict)


class Traces:
    """Asks every actor for its spans, and answers once they are all there."""

    def __init__(
        self,
        send: Callable[[str, Any], None],
        wake_by: Callable[[float], None],
        answer: Callable[[bytes, Trace], None],
    ) -> None:
        self.send = send
        self.wake_by = wake_by
        self.answer = answer
        self.peers: set[str] = set()
        """The actors that there are."""
        self.gathering: Gathering | None = None
        self.questions: dict[bytes, tuple[int, float]] = {}
        """Meanwhile: who waits for the next, with how many questions, of how many seconds at most."""

    def ask(self, address: bytes, seconds: float, now: float) -> bool:
        """False: too many questions of this client wait already."""
        questions, most = self.questions.get(address, (0, 0.0))
        if questions == MAX_TRACE_QUESTIONS:
            return False
        self.questions[address] = (questions + 1, max(seconds, most))
        if self.gathering is None:
            self.gather(now)
        return True

    def gather(self, now: float) -> None:
        """Ask all actors for what answers the questions of the client that has waited longest."""
        address = next(iter(self.questions))
        questions, seconds = self.questions.pop(address)
        until_ns = round(now * 1e9)
        since_ns = round(max(0.0, until_ns - seconds * 1e9))
        deadline = now + TRACE_TIMEOUT_S
        self.gathering = Gathering(address, questions, since_ns, until_ns, deadline, set(self.peers))
        self.wake_by(deadline)
        for actor in sorted(self.peers):
            self.send(actor, DumpTrace(since_ns))

    def on_spans(self, message: Spans, now: float) -> None:
        gathering = self.gathering
        if (
            gathering is None
            or message.since_ns != gathering.since_ns
            or message.actor not in gathering.missing
        ):
            return  # it answers an earlier question, too late
        if message.actor in gathering.actors:
            gathering.actors[message.actor].add(message.part)
        else:
            gathering.actors[message.actor] = message.part
        if message.last:
            gathering.missing.discard(message.actor)
            self.finish(now)

    def finish(self, now: float) -> None:
        """Answer once every actor has sent its part, or with what there is when time is up."""
        gathering = self.gathering
        if gathering is None:
            return
        if gathering.missing and now < gathering.deadline:
            self.wake_by(gathering.deadline)
            return
        self.gathering = None
        trace = Trace(actors=gathering.actors, since_ns=gathering.since_ns, until_ns=gathering.until_ns)
        for _ in range(gathering.answers):
            self.answer(gathering.client, trace)
        if self.questions:
            self.gather(now)
