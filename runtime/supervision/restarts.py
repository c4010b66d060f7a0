"""Decides how a child that died starts again: alone, with all others, or not at all. No I/O and no clock.

Deaths of a child count as one series until it has lived for ``PERIOD_S`` after it was ready. For the first
``INTENSITY`` deaths of a series it is started again alone, each time after a longer pause. Then the fault may lie in
what the other children hold, so all are started again, once. If that does not help either, the service ends.

A child that says that what it needs is lost for good is tried ``TRIES`` times in all, without the others, which could
not help it; then the service ends.

A frontend is only a client of the service: it is started again alone, however often, each time after a longer pause.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

INTENSITY, PERIOD_S = 5, 60.0
"""Deaths in a series that are followed by a restart alone, and how long a child lives to begin a new series: Erlang's
names."""

TRIES, TRY_PAUSE_S = 3, 1.0
"""Starts in a series that may report a resource lost before the service ends, several since the first report may be
wrong shortly after a fault; and the pause before each further one."""

BACK_OFF_S, MAX_BACK_OFF_S = 0.02, 2.0
"""Pause before the second restart in a row; it doubles with each further one."""

MAX_FRONTEND_BACK_OFF_S = 30.0
"""The longest pause before a frontend is started again. It holds no stream, so it is retried for ever, and not
often."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The reaction to a death."""

    restart: Literal["one", "all", "none"]
    in_a_row: int
    pause_s: float = 0.0


class Restarts:
    """Counts the deaths of all children of one supervisor, and decides on each."""

    def __init__(self) -> None:
        self.in_a_row: defaultdict[str, int] = defaultdict(int)
        self.lost_in_a_row: defaultdict[str, int] = defaultdict(int)
        """How often each child found that what it needs is lost for good, since it was last ready."""
        self.all_restarted = False
        """Whether all were started again, and no child has lived for ``PERIOD_S`` since."""

    def on_death(
        self, name: str, lived_s: float, *, frontend: bool = False, for_good: bool = False
    ) -> Decision:
        """``lived_s`` is how long it had been ready; 0 if it never was. ``for_good``: as in ``control.Failed``."""
        self.lost_in_a_row[name] = lost = self.lost_in_a_row[name] + 1 if for_good else 0
        if lost:
            return Decision("none" if lost == TRIES else "one", lost, TRY_PAUSE_S)
        if lived_s >= PERIOD_S:
            self.in_a_row[name] = 0
            self.all_restarted &= frontend
        self.in_a_row[name] = count = self.in_a_row[name] + 1
        if frontend or count <= INTENSITY:
            most = MAX_FRONTEND_BACK_OFF_S if frontend else MAX_BACK_OFF_S
            pause = 0.0 if count == 1 else min(most, BACK_OFF_S * 2 ** min(count - 2, 20))
            return Decision("one", count, pause)
        if self.all_restarted:
            return Decision("none", count)
        self.all_restarted = True
        self.in_a_row.clear()
        return Decision("all", count)
