"""Values counted by size, as Prometheus has them."""

from __future__ import annotations

from bisect import bisect_left


class Histogram:
    """Values counted by the smallest bound that they do not exceed."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def counters(self, name: str) -> dict[str, float]:
        """``NAME_bucket_BOUND``: how many were at most as large; ``NAME_sum``, ``NAME_count``."""
        found: dict[str, float] = {}
        total = 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            total += count
            found[f"{name}_bucket_{bound:g}"] = float(total)
        return found | {f"{name}_sum": self.sum, f"{name}_count": float(total)}
