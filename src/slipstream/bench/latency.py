"""Latencies of many requests: from when their deltas came to mean and percentiles, in milliseconds."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from itertools import pairwise

from ..protocol.messages import Delta


@dataclass(frozen=True, kw_only=True)
class Latency:
    """One kind of latency, over all requests."""

    mean: float
    p50: float
    p99: float

    @classmethod
    def of(cls, seconds: list[float]) -> Latency:
        ordered = sorted(seconds) or [0.0]
        return cls(
            mean=1e3 * statistics.fmean(ordered),
            p50=1e3 * percentile(ordered, 0.50),
            p99=1e3 * percentile(ordered, 0.99),
        )


def percentile(ordered: list[float], share: float) -> float:
    """Between the two nearest values, in proportion."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


class Arrivals:
    """When the deltas of each request came; every request was sent at ``begun``."""

    def __init__(self, requests: int) -> None:
        self.times: list[list[float]] = [[] for _ in range(requests)]
        self.tokens = [0] * requests
        self.begun = time.perf_counter()

    def add(self, number: int, delta: Delta) -> None:
        if delta.token_ids:
            self.times[number].append(time.perf_counter())
            self.tokens[number] += len(delta.token_ids)

    def latencies(self) -> dict[str, Latency]:
        """The field's four: to the first token, per output token after it, between two arrivals, to the end."""
        ttft = [times[0] - self.begun for times in self.times]
        e2el = [times[-1] - self.begun for times in self.times]
        tpot = [
            (times[-1] - times[0]) / (tokens - 1)
            for times, tokens in zip(self.times, self.tokens, strict=True)
            if tokens > 1
        ]
        itl = [later - earlier for times in self.times for earlier, later in pairwise(times)]
        kinds = {"ttft": ttft, "tpot": tpot, "itl": itl, "e2el": e2el}
        return {name: Latency.of(times) for name, times in kinds.items()}
