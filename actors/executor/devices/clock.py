"""Times of a device's events on the host's clock.

A device gives the time between two events as a 32-bit float of milliseconds, which after some hours is no
finer than a step; and its clock runs a few millionths faster or slower than the host's. So about once a
second times are counted from a new origin, and the rate between the clocks is adjusted. No time jumps: what
one clock has gained on the other is made up for over the next seconds.
"""

from __future__ import annotations

from typing import Any, Protocol

MOVE_EVERY_NS = 1_000_000_000
"""Time from one move of the origin to the next: after a second a float of milliseconds still resolves 0.1 µs."""

STALE_NS = 10 * MOVE_EVERY_NS
"""Without a move for this long, as after an idle night, the clock is set anew: what the clocks differ by has then grown
too large to be made up for without a jump."""

UNCERTAIN_NS = 200_000
"""A reading that took longer is not used: its middle is taken for the time of the event, and steps are about a
millisecond."""

HORIZON_NS = 4 * MOVE_EVERY_NS
"""Time over which a difference of the clocks is made up for: several moves, so that the error of one reading is
averaged."""

MAX_RATE = 5e-4
"""Most by which a device's clock is corrected, relative to the host's: a hundred times what crystals differ by, and too
little to be seen in a step."""


class Origin(Protocol):
    """An event that the device has passed, as torch has it."""

    def elapsed_time(self, end_event: Any) -> float:
        """Milliseconds from this event to another."""
        ...


class DeviceClock:
    """Counts from an origin. One thread moves it while another reads times."""

    def __init__(self, origin: Origin, host_ns: int) -> None:
        self.anchor: tuple[Origin, int, float] = (origin, host_ns, 0.0)
        """The origin, its time on the host's clock, and how much faster the host's clock runs."""
        self.drift = 0.0
        """What of the rate is there to stay."""

    def time_ns(self, event: Any) -> int:
        """When the device passed ``event``."""
        origin, host_ns, rate = self.anchor
        return host_ns + round(origin.elapsed_time(event) * 1e6 * (1.0 + rate))

    def is_due(self, now_ns: int) -> bool:
        return now_ns - self.anchor[1] >= MOVE_EVERY_NS

    def move(self, origin: Origin, before_ns: int, after_ns: int) -> None:
        """Count from ``origin``, which the device passed between these two times of the host's clock."""
        if after_ns - before_ns > UNCERTAIN_NS:
            return
        host_ns = (before_ns + after_ns) // 2
        if host_ns - self.anchor[1] > STALE_NS:
            self.anchor = (origin, host_ns, self.drift)
            return
        expected_ns = self.time_ns(origin)
        behind = (host_ns - expected_ns) / HORIZON_NS
        self.drift = bounded(self.drift + behind / 16)
        self.anchor = (origin, expected_ns, bounded(self.drift + behind))


def bounded(rate: float) -> float:
    return max(-MAX_RATE, min(MAX_RATE, rate))
