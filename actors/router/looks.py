"""When each service wants to be looked at: of a thousand, only those are that it is time for."""

from __future__ import annotations

import heapq

from .replica import Replica


class Looks:
    """A heap of times. A service stands in it with the earliest that it has wanted since the last look at it."""

    def __init__(self) -> None:
        self.heap: list[tuple[float, int, Replica]] = []
        self.added = 0

    def at_its_time(self, replica: Replica) -> None:
        """Look at it when it wants that now, or before."""
        due = replica.due
        if due < replica.look_at:
            replica.look_at = due
            self.added += 1
            heapq.heappush(self.heap, (due, self.added, replica))

    @property
    def next(self) -> float:
        return self.heap[0][0] if self.heap else float("inf")

    def take(self, now: float) -> list[Replica]:
        """The replicas that it is time to look at."""
        found: list[Replica] = []
        while self.heap and self.heap[0][0] <= now:
            due, _, replica = heapq.heappop(self.heap)
            if due == replica.look_at:  # not wanted sooner since, and looked at then
                replica.look_at = float("inf")
                found.append(replica)
        return found
