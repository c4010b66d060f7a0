"""Virtual time: it jumps from each event to the next."""

from __future__ import annotations

import heapq
from collections.abc import Callable


class VirtualTime:
    """Events in the order of their time; those of one time in the order in which they were asked for."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order = 0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.turns = 0
        """Messages that were handled; whoever handles one counts it."""

    def clock_ns(self) -> int:
        return round(self.now * 1e9)

    def at(self, time: float, event: Callable[[], None]) -> None:
        self.order += 1
        heapq.heappush(self.events, (time, self.order, event))

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        self.at(self.now + seconds, event)

    def run(
        self, until: Callable[[], bool], most_turns: int = 10_000_000, most_s: float = float("inf")
    ) -> None:
        """Let time pass until ``until``; ``AssertionError`` if that does not come.

        It does not if nothing happens any more, or after ``most_turns``, or ``most_s`` seconds of virtual time.
        """
        begun, deadline = self.turns, self.now + most_s
        while not until():
            if not self.events:
                raise AssertionError(f"nothing happens any more at {self.now:.6f} s")
            if self.turns - begun > most_turns:
                raise AssertionError(f"not over after {most_turns} messages")
            if self.now > deadline:
                raise AssertionError(f"not over after {most_s:g} s")
            self.now, _, event = heapq.heappop(self.events)
            event()
