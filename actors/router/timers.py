"""A timer for each service, so that of many services only those are checked that are due."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from .replica import Replica

MIN_BETWEEN_CHECKS_S = 0.02
"""Between two checks: of many services, timers would fire all the time."""


class ReplicaTimers:
    """A heap of times. Each service is in it with the earliest time that was set since it was last checked."""

    def __init__(self, wake_by: Callable[[float], None]) -> None:
        """``wake_by`` wakes the router at a time, or before."""
        self.wake_by = wake_by
        self.heap: list[tuple[float, int, Replica]] = []
        self.added = 0
        self.check_at = 0.0
        """When the next timer fires, or a request tries again to find a service."""
        self.checked_at = float("-inf")

    def set(self, replica: Replica) -> None:
        """Fire when ``replica`` is due, or earlier if an earlier time was set before."""
        due = replica.due
        if due < replica.check_at:
            replica.check_at = due
            self.added += 1
            heapq.heappush(self.heap, (due, self.added, replica))
        if self.next < self.check_at:
            self.check_by(self.next)

    def check_by(self, when: float) -> None:
        """Check the services that are due, and the requests that wait for one, at this time or before."""
        self.check_at = min(self.check_at, max(when, self.checked_at + MIN_BETWEEN_CHECKS_S))
        self.wake_by(self.check_at)

    @property
    def next(self) -> float:
        return self.heap[0][0] if self.heap else float("inf")

    def take(self, now: float) -> list[Replica]:
        """The replicas whose timers have fired; each is set again when it is given to ``set``."""
        self.check_at, self.checked_at = float("inf"), now
        found: list[Replica] = []
        while self.heap and self.heap[0][0] <= now:
            due, _, replica = heapq.heappop(self.heap)
            if due == replica.check_at:  # else it was set to an earlier time, and has fired then
                replica.check_at = float("inf")
                found.append(replica)
        return found
