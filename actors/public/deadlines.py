"""When requests have to be over."""

from __future__ import annotations

import heapq
from collections.abc import Mapping


class Deadlines:
    """The deadlines of requests by number. Those of requests that are over go by themselves."""

    def __init__(self, open_requests: Mapping[int, object]) -> None:
        """``open_requests``: those that are not over, as they come and go."""
        self.open = open_requests
        self.heap: list[tuple[float, int]] = []

    def add(self, request: int, due: float) -> None:
        if len(self.heap) > 1000 + 2 * len(self.open):
            self.heap = [kept for kept in self.heap if kept[1] in self.open]
            heapq.heapify(self.heap)
        heapq.heappush(self.heap, (due, request))

    def overdue(self, now: float) -> list[int]:
        """Open requests whose deadline has passed."""
        found: list[int] = []
        while self.heap and self.heap[0][0] <= now:
            request = heapq.heappop(self.heap)[1]
            if request in self.open:
                found.append(request)
        return found

    @property
    def next(self) -> float | None:
        """The next deadline of an open request."""
        while self.heap and self.heap[0][1] not in self.open:
            heapq.heappop(self.heap)
        return self.heap[0][0] if self.heap else None
