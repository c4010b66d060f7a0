"""When a spare is started, what an incarnation is made of, and when a spare is not trusted any more. No I/O, no clock.

A spare that ended is followed by a new one: not before streams run again, since its imports take the time of those who
serve, and after a pause that grows where spares do not last.
"""

from __future__ import annotations

from typing import Literal

from .restarts import PERIOD_S

FIRST_PAUSE_S, MOST_PAUSE_S = 1.0, 60.0
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
        """Spares in a row that did not last."""

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
        self.not_before = now + min(MOST_PAUSE_S, pause_s)
        self.in_a_row += 1


class Spares(HelperRestarts):
    """The spares of one factory."""

    def __init__(self, *, from_the_first: bool) -> None:
        """``from_the_first``: the first incarnations are forked too."""
        super().__init__(FIRST_PAUSE_S)
        self.from_the_first = from_the_first

    def due(self, *, serving: bool, whole: bool) -> float | None:
        """When the next one may be started; None: not now. ``whole``: every actor is ready."""
        if self.running or not (whole if serving else self.from_the_first and not self.number):
            return None
        return self.not_before

    def source(self, *, first: bool) -> Literal["spare", "nothing", "later"]:
        """The way in which the next incarnation is started; ``later``: that is not known yet. ``first``: none was
        before it."""
        if self.ready_at is not None:
            return "spare"
        return "later" if first and self.from_the_first and self.running else "nothing"

    def is_to_blame(self, *, was_ready: bool, own_fault: bool) -> bool:
        """Whether a fork that has ended lets believe that further ones would end as it did.

        It is one of this spare: no other is started before it is ready.
        """
        return self.running and own_fault and not was_ready
