"""When a spare is started, what an incarnation is made of, and when a spare is not trusted any more. No I/O, no clock.

A spare that ended is followed by a new one: not before streams run again, since its imports take the time of those who
serve, and after a pause that grows where spares do not last.
"""

from __future__ import annotations

from typing import Literal

from .helper_restarts import FIRST_PAUSE_S, HelperRestarts


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
        """Whether the end of a fork shows that further forks of this spare would end as it did.

        The fork was one of this spare: another spare is started only when all actors are ready.
        """
        return self.running and own_fault and not was_ready
