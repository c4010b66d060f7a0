"""Decides when a helper that ended, a spare or the keeper, is started again. No I/O, no clock.

The pause before the next one grows while helpers do not last.
"""

from __future__ import annotations

from .restarts import PERIOD_S

FIRST_PAUSE_S, MAX_PAUSE_S = 1.0, 60.0
"""The first addition to the pause before another helper, and the longest pause."""


class HelperRestarts:
    """When the next incarnation of a helper may be started, after the last one has ended."""

    def __init__(self, first_pause_s: float = 0.0) -> None:
        """``first_pause_s``: after the first death of a row. Each further one adds to it, first ``FIRST_PAUSE_S`` and
        then twice as much as before."""
        self.first_pause_s = first_pause_s
        self.number = 0
        """The number of the latest."""
        self.running = False
        self.ready_at: float | None = None
        """Since when the one that runs is ready."""
        self.not_before = 0.0
        self.in_a_row = 0
        """Helpers in a row that did not last."""

    def next_due(self) -> float | None:
        """When the next one may be started; None: there is one."""
        return None if self.running else self.not_before

    def on_start(self) -> None:
        self.number += 1
        self.running, self.ready_at = True, None

    def on_ready(self, now: float) -> None:
        self.ready_at = now

    def on_death(self, now: float) -> None:
        if self.ready_at is not None and now - self.ready_at >= PERIOD_S:
            self.in_a_row = 0
        self.running, self.ready_at = False, None
        pause_s = self.first_pause_s + FIRST_PAUSE_S * (2**self.in_a_row - 1)
        self.not_before = now + min(MAX_PAUSE_S, pause_s)
        self.in_a_row += 1
