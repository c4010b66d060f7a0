"""Decides whether an actor lives, by its progress and not by its process or its socket. No I/O and no clock.

The supervisor probes an actor while it has something to do, and the actor's own loop answers. A loop that is stopped,
spins, or waits for something that never comes does not answer. An actor that is ``working`` must also have made
progress between two answers, for which it may have more time than for an answer. An actor that has nothing to do is not
probed: it reports before it handles the next message (``Awake``), so that an idle service costs nothing.
"""

from __future__ import annotations

import math

from .control import Report

MAX_PROBES_EVERY_S = 0.5
"""Longest time between two probes of an actor that has work, in seconds: a hang is then seen at most this much late."""

PROBES_PER_LIMIT = 4
"""Probes, at least, within the time after which an actor counts as hung, so that one late answer does not decide."""


class Liveness:
    """Tracks the progress of one incarnation. It hangs after ``limit_s`` without progress, or after ``silence_s``
    without an answer of its loop, if that is less.

    An actor that knows better how long its work may take reports another limit.
    """

    def __init__(self, limit_s: float, now: float, silence_s: float = math.inf) -> None:
        self.limit_s = limit_s
        self.silence_s = silence_s
        self.every_s = min(MAX_PROBES_EVERY_S, limit_s / PROBES_PER_LIMIT)
        self.awake = True
        self.asked = False
        """A probe is on its way and not answered."""
        self.heard_at = now
        self.turned_at = now
        """The time of the last answer that showed that it had handled a message."""
        self.forward_at = now
        """The time of the last answer that showed progress of its work, or that it had no work."""
        self.report: Report | None = None

    def wake(self, now: float) -> None:
        """The actor has something to do from now on."""
        if not self.awake:
            self.awake = True
            self.heard_at = now

    def ask(self, now: float) -> None:
        """A probe is being sent."""
        self.wake(now)
        self.asked = True

    def take(self, report: Report, now: float) -> None:
        """Take in the answer to a probe."""
        last, self.report = self.report, report
        self.asked, self.awake, self.heard_at = False, not report.idle, now
        if report.hang_limit_s is not None:
            self.limit_s = report.hang_limit_s
        if last is None or report.turns != last.turns:
            self.turned_at = now
        if last is None or not report.working or not last.working or report.progress != last.progress:
            self.forward_at = now

    def reset_timers(self, now: float) -> None:
        """Begin anew, as the supervisor itself was stopped: nothing is known of that time."""
        self.heard_at = self.forward_at = now

    @property
    def working(self) -> bool:
        return self.report is not None and self.report.working

    @property
    def hangs_at(self) -> float | None:
        """The time at which it counts as hung if nothing more is heard; None while it has nothing to do."""
        return min(self.limits)[0] if self.awake else None

    @property
    def hangs_after_s(self) -> float:
        """The limit that it will reach first, in seconds."""
        return min(self.limits)[1]

    @property
    def limits(self) -> list[tuple[float, float]]:
        """For each of its limits, the time at which it is reached, and the limit."""
        silence_s = min(self.limit_s, self.silence_s)
        limits = [(self.heard_at + silence_s, silence_s)]
        return [*limits, (self.forward_at + self.limit_s, self.limit_s)] if self.working else limits

    def hung(self, now: float) -> bool:
        return self.hangs_at is not None and now >= self.hangs_at

    def probe_due(self, now: float) -> bool:
        return self.awake and not self.asked and now >= self.heard_at + self.every_s

    @property
    def due(self) -> float | None:
        """The time at which the next probe is due or a limit is reached, whichever is first."""
        if not self.awake or self.hangs_at is None:
            return None
        return self.hangs_at if self.asked else min(self.hangs_at, self.heard_at + self.every_s)
