"""Children that are to start again, each at its time: after its back-off, or when the machine may have room for it."""

from __future__ import annotations

from ..log import logger
from .children import CannotStart, ChildSpec

ROOM_PAUSE_S, ROOM_WITHIN_S = 0.5, 60.0
"""Where the machine has no room for a process that is due: when it is tried again, and how long."""


class DueRestarts:
    """The children that are to start again, and when."""

    def __init__(self) -> None:
        self.waiting: list[tuple[float, ChildSpec]] = []
        self.no_room_since: dict[str, float] = {}
        """Who has found no room on the machine, since when."""

    def add(self, spec: ChildSpec, when: float) -> None:
        self.waiting.append((when, spec))

    def take(self, now: float) -> list[ChildSpec]:
        """Those whose time has come."""
        taken = [spec for when, spec in self.waiting if when <= now]
        self.waiting = [(when, spec) for when, spec in self.waiting if when > now]
        return taken

    def put_off(self, spec: ChildSpec, now: float, error: CannotStart) -> None:
        """Try again in a moment to start a child for which the machine has no room; not for ever."""
        if spec.name not in self.no_room_since:
            logger.warning("%s; trying again for %g s", error, ROOM_WITHIN_S)
        if now - self.no_room_since.setdefault(spec.name, now) > ROOM_WITHIN_S:
            raise error
        self.add(spec, now + ROOM_PAUSE_S)

    def on_started(self, spec: ChildSpec) -> None:
        """There was room."""
        self.no_room_since.pop(spec.name, None)

    def clear(self) -> None:
        self.waiting.clear()
        self.no_room_since.clear()

    @property
    def next(self) -> float | None:
        """When the next one is to start."""
        return min((when for when, _ in self.waiting), default=None)
