"""Adds up the counters of all services behind the router, as if they were one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from ...protocol.messages import is_gauge
from .replica import Replica

MEANS = ("kv_cache_usage_perc", "kv_cache_block_size")
"""Counters of which the mean over all services is reported, and not the sum."""


def totals(replicas: Iterable[Replica]) -> dict[str, float]:
    """The sums of what they have last said; of what is true only at one time, of those that are there now."""
    replicas = list(replicas)
    found: defaultdict[str, float] = defaultdict(float)
    for replica in replicas:
        for name, value in replica.counters.items():
            if replica.ready or not is_gauge(name):
                found[name] += value
    for name in MEANS:
        said = [one.counters[name] for one in replicas if one.ready and name in one.counters]
        if said:
            found[name] = sum(said) / len(said)
    return dict(found)
