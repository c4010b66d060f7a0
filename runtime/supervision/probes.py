"""Probes the children of a supervisor, and ends those that hang: that make no progress, or do not get ready.

Whether a child hangs shows in what it answers (``liveness``). In a group the member to blame is ended (``groups``).
"""

from __future__ import annotations

import math
import time

from ...protocol.actors import HELPERS
from ..log import logger
from . import control
from .children import Child
from .groups import hanging, members_of
from .liveness import Liveness
from .status import Status

START_MARGIN_S, START_FACTOR = 30.0, 3.0
"""A restarted child has this long to be ready, or this many times what it took at first, whichever is more."""

SECOND_TIME_FACTOR = 2.0
"""After one that hung, the next has this many times its limit: what was learned may have been too little for a step
that is slower than it looked, and which comes again."""


SILENCE_S = 60.0
"""A loop that has not answered for this long stands still, unless ``--hang-timeout`` says more: however long a step may
take, as on a CPU of which nothing was measured yet, other threads compute it."""


class Probes:
    """The probes of one supervisor."""

    def __init__(self, children: dict[str, Child], status: Status) -> None:
        """``children``: those of the supervisor, by name, as they come and go. ``status`` counts those that hang."""
        self.children = children
        self.status = status
        self.first_start_s: dict[str, float] = {}
        """The time that the first start of each child took, in seconds."""
        self.limits_s: dict[str, float] = {}
        """The limit that the last incarnation of each had at its end: what it had learned holds for the next one."""

    def begin(self, child: Child, now: float) -> None:
        """Watch a child that is ready."""
        limit_s = self.limits_s.get(child.spec.name, math.inf)
        silence_s = max(child.spec.hang_timeout_s, SILENCE_S)
        child.liveness = Liveness(min(child.hang_timeout_s, limit_s), now, silence_s)
        self.first_start_s.setdefault(child.spec.name, now - child.since)

    def end_watch(self, child: Child) -> None:
        """A child has ended: stop watching it."""
        if child.liveness is not None:
            self.limits_s[child.spec.name] = child.liveness.limit_s * (
                SECOND_TIME_FACTOR if child.hung else 1.0
            )

    def reset_timers(self, now: float) -> None:
        """Begin anew, as the supervisor itself was stopped: no child hangs because of that time."""
        for child in self.children.values():
            if child.liveness is not None and child.running:
                child.liveness.reset_timers(now)

    def look_for_stopped(self, now: float) -> None:
        """A child that was stopped while it had nothing to do would not say that something has come: probe it."""
        for child in self.children.values():
            if child.liveness is not None and child.stopped():
                child.liveness.wake(now)

    def check(self, *, serving: bool) -> float | None:
        """Probe the children whose time it is, and end those that hang; returns the seconds until the next look."""
        now = time.monotonic()
        due_times: list[float] = []
        for child in self.children.values():
            if not child.running or child.hung:
                continue
            liveness = child.liveness
            if liveness is None:
                if child.spec.role not in HELPERS:
                    due_times += self.check_start(child, now, serving=serving)
                continue
            if liveness.hung(now):
                self.end_hanging(child, liveness, now)
                continue
            if liveness.probe_due(now):
                liveness.ask(now)
                child.send(control.Probe())
            if liveness.due is not None:
                due_times.append(liveness.due)
        return min((max(0.0, due - now) for due in due_times), default=None)

    def check_start(self, child: Child, now: float, *, serving: bool) -> list[float]:
        """The time by which a restarted child has to be ready; otherwise it is ended."""
        first = self.first_start_s.get(child.spec.name)
        if first is None or not serving:
            return []  # the first start has a limit of its own
        limit = max(START_MARGIN_S, START_FACTOR * first)
        if now - child.since >= limit:
            self.end(child, f"was not ready within {limit:.0f} s")
            return []
        return [child.since + limit]

    def end_hanging(self, child: Child, liveness: Liveness, now: float) -> None:
        """End a child that makes no progress, or the member of its group that keeps it from making any."""
        blamed = hanging(child, members_of(child, self.children), now)
        if not blamed.hung:
            limit_s = round(liveness.hangs_after_s, 1)
            self.end(blamed, f"made no progress for {limit_s:g} s although it has something to do")

    def end(self, child: Child, why: str) -> None:
        child.hung, child.state = True, "hung"
        self.status.counted["actor_hangs"] += 1
        logger.warning("%s (pid %d) %s: ending it", child.spec.name, child.process.pid, why)
        child.process.kill()
