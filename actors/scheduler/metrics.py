"""The scheduler's counters of requests, steps and tokens, for ``Stats``.

The device is busy while it computes a step, and idle between two steps while there is work for it: before its first
step, and after the last one that was outstanding, nothing is counted.
"""

from __future__ import annotations

from ...protocol.internal import Sampled
from ..histogram import Histogram

COUNTERS = (
    "steps",
    "device_busy_s",
    "device_idle_s",
    "scheduled_rows",
    "wasted_rows",
    "prompt_tokens",
    "generation_tokens",
    "num_preemptions",
    "num_preemptions_for_fairness",
    "num_requests_refused",
    "num_requests_quarantined",
    "num_block_copies",
    "prefill_tokens",
    "prefix_cache_queries",
    "prefix_cache_hits",
    "prefix_cache_evictions",
)

EVERY_S = 0.2
"""Between two times that counters are sent while steps follow each other: dashboards look every second."""

STEP_TOKENS = (1.0, 8.0, *(float(2**power) for power in range(4, 15)))
"""Bounds of the histogram of tokens in a step."""


class Metrics:
    """The scheduler's counters, and a histogram of the tokens in each step."""

    def __init__(self) -> None:
        self.counters: dict[str, float] = dict.fromkeys(COUNTERS, 0.0)
        """Shared with the planner, which counts what it decides."""
        self.step_tokens = Histogram(STEP_TOKENS)
        """Tokens of prompts and sampled ones, in each step."""
        self.free_since_ns: int | None = None
        """When the device finished the last step, if there was work left for it: what follows is an idle gap."""
        self.due_at = 0.0

    def on_step(self, message: Sampled) -> tuple[int, float]:
        """Count the device's time for a step: how long it computed, in ns, and how long it had waited for it, in s."""
        busy_ns = message.ended_ns - message.started_ns - message.stalled_ns
        waited_s = 0.0
        if self.free_since_ns is not None:
            waited_s = max(0, message.started_ns - self.free_since_ns) * 1e-9
        counters = self.counters
        counters["steps"] += 1
        counters["device_busy_s"] += busy_ns * 1e-9
        counters["device_idle_s"] += message.stalled_ns * 1e-9 + waited_s
        return busy_ns, waited_s

    def on_rows(self, scheduled: int, alive: int, prefill: int) -> None:
        """Count the rows that a step sampled for, those whose sequence had not ended, and its tokens of prompts."""
        counters = self.counters
        counters["scheduled_rows"] += scheduled
        counters["wasted_rows"] += scheduled - alive
        counters["generation_tokens"] += alive
        self.step_tokens.add(prefill + alive)

    def due(self, now: float) -> bool:
        """Whether counters are to be sent although steps are outstanding; ``now`` 0: the time is not known."""
        return now != 0.0 and now >= self.due_at

    def take(self, now: float) -> dict[str, float]:
        self.due_at = now + EVERY_S
        return self.counters | self.step_tokens.counters("iteration_tokens_total")
