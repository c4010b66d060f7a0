"""A timer for each service, so that of a thousand services only those are checked that are due."""

from __future__ import annotations

import heapq

from .replica import Replica


class ReplicaTimers:
    """A heap of times. Each service is in it with the earliest time that was set since it was last checked."""

    def __init__(self) -> None:
        self.heap: list[tuple[float, int, Replica]] = []
        self.added = 0

    def set(self, replica: Replica) -> None:
        """Fire when ``replica`` is due, or earlier if an earlier time was set before."""
        due = replica.due
        if due < replica.check_at:
            replica.check_at = due
            self.added += 1
            heapq.heappush(self.heap, (due, self.added, replica))

    @property
    def next(self) -> float:
        return self.heap[0][0] if self.heap else float("inf")

    def take(self, now: float) -> list[Replica]:
        """The replicas whose timers have fired; each is set again when it is given to ``set``."""
        found: list[Replica] = []
        while self.heap and self.heap[0][0] <= now:
            due, _, replica = heapq.heappop(self.heap)
            if due == replica.check_at:  # else it was set to an earlier time, and has fired then
                replica.check_at = float("inf")
                found.append(replica)
        return found
