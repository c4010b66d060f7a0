"""When a spare is started, and whether an incarnation may be forked from it. No I/O and no clock.

A spare that ended, or whose fork could not start, is followed by a new one: not before streams run again, since its
imports take the time of those who serve, and after a pause that grows where spares do not last.
"""

from __future__ import annotations

from .restarts import PERIOD_S

FIRST_PAUSE_S, MOST_PAUSE_S = 1.0, 60.0


class Spares:
    """Those of one factory, one after the other."""

    def __init__(self, *, from_the_first: bool) -> None:
        self.from_the_first = from_the_first
        self.started = 0
        self.there = False
        self.ready_at: float | None = None
        self.not_before = 0.0
        self.in_a_row = 0
        """That did not last."""

    def due(self, *, serving: bool, whole: bool) -> float | None:
        """When the next one may be started; None: not now. ``whole``: every actor is ready."""
        if self.there or not (whole if serving else self.from_the_first and not self.started):
            return None
        return self.not_before

    @property
    def expected(self) -> bool:
        """The first incarnation waits for it."""
        return self.from_the_first and self.started == 1 and self.there and self.ready_at is None

    @property
    def usable(self) -> bool:
        return self.there and self.ready_at is not None

    def on_start(self) -> None:
        self.started += 1
        self.there, self.ready_at = True, None

    def on_ready(self, now: float) -> None:
        self.ready_at = now

    def on_death(self, now: float) -> None:
        """It ended, or is not used any more: what was forked from it could not start."""
        if self.ready_at is not None and now - self.ready_at >= PERIOD_S:
            self.in_a_row = 0
        self.there, self.ready_at = False, None
        self.not_before = now + min(MOST_PAUSE_S, FIRST_PAUSE_S * 2**self.in_a_row)
        self.in_a_row += 1
