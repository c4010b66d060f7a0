"""Whether an actor lives: by its progress, not by its process or its socket. No I/O and no clock.

The supervisor probes an actor while there is something to do, and the actor's own loop answers; a loop
that is stopped, spins or waits for something that never comes does not. An actor that is ``working`` must
also come forward between two answers, for which it may have more time than its loop for an answer. One that
has nothing to do is not probed: it says so before it handles the next message (``Awake``), and so an idle
service costs nothing.
"""

from __future__ import annotations

import math

from .control import Report

MOST_PROBES_EVERY_S = 0.5
"""Longest time between two probes of an actor that has work, in seconds: a hang is then seen at most this much late."""

PROBES_PER_LIMIT = 4
"""Probes, at least, within the time after which an actor counts as hung, so that one late answer does not decide."""


class Liveness:
    """Tracks the progress of one incarnation; it hangs after ``limit_s`` without any, and after ``silence_s`` without
    an answer of its loop, if that is less.

    An actor that knows better how long its work may take reports another limit.
    """

    def __init__(self, limit_s: float, now: float, silence_s: float = math.inf) -> None:
        self.limit_s = limit_s
        self.silence_s = silence_s
        self.every_s = min(MOST_PROBES_EVERY_S, limit_s / PROBES_PER_LIMIT)
        self.awake = True
        self.asked = False
        """A probe is on its way and not answered."""
        self.heard_at = now
        self.turned_at = now
        """When it was last seen to have handled a message."""
        self.forward_at = now
        """When what it is working at was last seen to come forward, or when it last had nothing."""
        self.report: Report | None = None

    def wake(self, now: float) -> None:
        """There is something to do."""
        if not self.awake:
            self.awake = True
            self.heard_at = now

    def ask(self, now: float) -> None:
        """A probe is sent."""
        self.wake(now)
        self.asked = True

    def take(self, report: Report, now: float) -> None:
        """The answer to a probe."""
        last, self.report = self.report, report
        self.asked, self.awake, self.heard_at = False, not report.idle, now
        if report.hang_limit_s is not None:
            self.limit_s = report.hang_limit_s
        if last is None or report.turns != last.turns:
            self.turned_at = now
        if last is None or not report.working or not last.working or report.progress != last.progress:
            self.forward_at = now

    def reset_timers(self, now: float) -> None:
        """The supervisor itself was away: nothing is known of that time."""
        self.heard_at = self.forward_at = now

    @property
    def working(self) -> bool:
        return self.report is not None and self.report.working

    @property
    def hangs_at(self) -> float | None:
        """When it counts as hung if nothing more is heard; None while it has nothing to do."""
        return min(self.ends)[0] if self.awake else None

    @property
    def hangs_after_s(self) -> float:
        """The limit that it reaches first."""
        return min(self.ends)[1]

    @property
    def ends(self) -> list[tuple[float, float]]:
        """When it reaches each of its limits, and the limit."""
        silence_s = min(self.limit_s, self.silence_s)
        ends = [(self.heard_at + silence_s, silence_s)]
        return [*ends, (self.forward_at + self.limit_s, self.limit_s)] if self.working else ends

    def hung(self, now: float) -> bool:
        return self.hangs_at is not None and now >= self.hangs_at

    def probe_due(self, now: float) -> bool:
        return self.awake and not self.asked and now >= self.heard_at + self.every_s

    @property
    def due(self) -> float | None:
        """When the next probe is due, or a limit is reached, whichever comes first."""
        if not self.awake or self.hangs_at is None:
            return None
        return self.hangs_at if self.asked else min(self.hangs_at, self.heard_at + self.every_s)
