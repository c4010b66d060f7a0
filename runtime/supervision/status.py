"""Answers questions about the actors, and adds up the counters of all their incarnations. It decides nothing.

Two may ask. A program at the *status socket* gets pids and states at once. An actor with a public socket asks for
its clients, and is answered when every actor has reported, or when that takes too long; it also gets the
counters of all actors when one has grown.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import zmq

from ...protocol.actors import HELPERS
from ...protocol.codec import pack
from ...protocol.errors import InvalidRequest
from ...protocol.messages import Actors, ActorState
from . import control
from .children import Child

REPORT_WITHIN_S = 0.25
"""Time that a question about the actors waits for the report of each: an actor that is not in a long step answers in
milliseconds, and the client is not to wait for one that hangs."""


class Status:
    """One supervisor's knowledge of its children, dead incarnations included."""

    def __init__(self, children: dict[str, Child], endpoint: str) -> None:
        """``children``: those of the supervisor, by name, as they come and go. ``endpoint``: of the status socket."""
        self.children = children
        self.restart_counts: Counter[str] = Counter()
        """How often each was started again since the start of the service."""
        self.counted: Counter[str] = Counter()
        """Counters of all incarnations that are gone."""
        self.reported: Counter[str] = Counter()
        """Counters as they were last sent to the actors that answer for the service."""
        self.asking: list[str] = []
        """Actors that have asked for the states of all actors."""
        self.report_at = 0.0
        """The latest time at which they are answered."""
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.set(zmq.LINGER, 0)
        self.socket.set(zmq.MAXMSGSIZE, 1024)
        self.socket.bind(endpoint)
        self.endpoint = endpoint

    def bind_again(self) -> None:
        """The file of the status socket is gone, with the folder that it was in."""
        # Not unbound before: ZeroMQ would remove the file a little later, when it is there again.
        self.socket.bind(self.endpoint)

    def close(self) -> None:
        self.context.destroy(linger=0)

    def keep_counters(self, child: Child) -> None:
        """Keep the counters of a child that is gone."""
        self.counted.update(counters_of(child))

    def answer_program(self, restart: Callable[[str], None]) -> None:
        """Answer a question at the status socket with the states of the actors, and restart one if it asks for that.

        ``InvalidRequest`` of ``restart`` is the answer then. No REP socket: a question that is none can leave that one
        waiting for ever.
        """
        with contextlib.suppress(zmq.Again):
            asking, *_, question = self.socket.recv_multipart(zmq.DONTWAIT)
            described = {name: self.describe(child) for name, child in self.children.items()}
            answer: dict[str, Any] = {"endpoint": self.endpoint_of_clients, "actors": described}
            try:
                wanted = restart_in(question)
                if wanted is not None:
                    restart(wanted)
            except InvalidRequest as error:
                answer = {"error": str(error)}
            packed = pack(msgspec.to_builtins(answer))
            self.socket.send_multipart((asking, b"", packed), zmq.DONTWAIT)

    @property
    def endpoint_of_clients(self) -> str:
        """The endpoint at which clients connect; empty while the service starts."""
        actors = (child.spec for child in self.children.values() if child.spec.role == "actor")
        return next((spec.options["endpoint"] for spec in actors if "endpoint" in spec.options), "")

    def on_ask_actors(self, child: Child) -> None:
        """A child has asked for the states of all actors: have every actor report."""
        now = time.monotonic()
        if not self.asking:
            self.report_at = now + REPORT_WITHIN_S
            for other in self.children.values():
                if other.liveness is not None and other.running and not other.liveness.asked:
                    other.liveness.ask(now)
                    other.send(control.Probe())
        if child.spec.name not in self.asking:
            self.asking.append(child.spec.name)

    def report_actors(self, serving: bool, draining: bool) -> float | None:
        """Answer the actors that have asked, if it is time; returns the seconds until then."""
        if not self.asking:
            return None
        left = self.report_at - time.monotonic()
        waited_for = (c.liveness for c in self.children.values() if c.running)
        if left > 0 and any(liveness is not None and liveness.asked for liveness in waited_for):
            return left
        for name in self.asking:
            self.children[name].send(control.ReportActors(self.actors(serving, draining)))
        self.asking = []
        return None

    def report_counters(self) -> None:
        """Send the counters to the actors that answer questions about the service, if any counter has grown."""
        totals = self.counted.copy()
        totals["actor_restarts"] = self.restart_counts.total()
        for child in self.children.values():
            if child.running:
                totals.update(counters_of(child))
        if totals == self.reported:
            return
        self.reported = totals
        for child in self.children.values():
            if child.running and child.spec.role == "actor" and "endpoint" in child.facts:
                child.send(control.ReportCounters({name: float(count) for name, count in totals.items()}))

    def actors(self, serving: bool, draining: bool) -> Actors:
        """The state of each actor, and of the service."""
        states = [self.describe(child) for child in self.children.values()]
        return Actors(
            actors=states,
            live=all(state.state != "hung" for state in states),
            ready=serving
            and not draining
            and all(state.state == "ready" for state in states if state.role not in HELPERS),
            draining=draining,
        )

    def describe(self, child: Child) -> ActorState:
        now = time.monotonic()
        liveness, report = child.liveness, child.report
        return ActorState(
            name=child.spec.name,
            role=child.spec.role,
            state=child.state,
            pid=child.process.pid,
            epoch=child.epoch,
            restarts=self.restart_counts[child.spec.name],
            uptime_s=round(now - child.since, 3),
            mailbox_depth=self.mailbox_depth(child),
            last_progress_s=0.0 if liveness is None else round(now - liveness.turned_at, 3),
            working=liveness is not None and liveness.working,
            busy_s=0.0 if report is None else round(report.busy_s, 6),
            ready_s=None if child.ready_at is None else round(child.ready_at - child.since, 3),
            full_speed_s=full_speed_s(child),
        )

    def mailbox_depth(self, child: Child) -> int:
        """The number of messages that others have sent to it, less those that it has taken in, as far as each has
        reported."""
        depth = 0
        taken = {} if child.report is None else child.report.received
        for other in self.children.values():
            if other.report is None:
                continue
            epoch, sent = other.report.sent.get(child.spec.name, (0, 0))
            if epoch == child.epoch:
                known, received = taken.get(other.spec.name, (0, 0))
                depth += max(0, sent - (received if known == other.epoch else 0))
        return depth


def restart_in(question: bytes) -> str | None:
    """The actor that a question asks to restart; None if it only wants to know."""
    if not question:
        return None
    try:
        return msgspec.msgpack.decode(question, type=dict[str, str])["restart"]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError):
        raise InvalidRequest("send nothing, or a map with an actor's name under restart") from None


def full_speed_s(child: Child) -> float | None:
    """Seconds from a child's start until it was as fast as it gets, as far as it has reported; None: it is not yet."""
    report = child.report
    if child.ready_at is None or report is None or report.full_speed_at is None:
        return None
    return round(max(child.ready_at, report.full_speed_at) - child.since, 3)


def counters_of(child: Child) -> dict[str, int]:
    """The counters of a child, as far as it has reported."""
    return {} if child.report is None else child.report.counters
