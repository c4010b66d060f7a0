"""Chooses the service for a request: the one, among those with room, that has least to compute before its first
token."""

from __future__ import annotations

from collections.abc import Container, Sequence
from itertools import repeat
from operator import attrgetter
from typing import Any

from .prompt_blocks import blocks_of
from .replica import Replica

MAX_ABOVE_MEAN = 0.5
"""A service with this share more open answers than the mean, and ``SLACK`` more, gets nothing for its cache's sake. A
larger share finds more in caches and spreads load less evenly; ``python examples/day_of_traffic.py`` shows both."""

SLACK = 4
"""A difference of this many open answers does not count: a step takes hardly longer with them."""

MAX_LOOKED_AT = 32
"""How many of the services that are alike are looked at for one request, so that a choice among many
costs no more; others for each prompt, so that none is left out."""

LOAD = attrgetter("load")
WORK = attrgetter("uncomputed", "load")
IDENTITY = attrgetter("identity")


def choose(
    replicas: Sequence[Replica], hashes: list[bytes], among: Container[Replica] | None = None
) -> Replica:
    """One of ``replicas``, of which there is at least one, for a request whose blocks have these hashes.

    The replica with the least to do, unless another has more of the prefix cached and would finish this prompt sooner,
    after the prompts that it has already. Ties are broken by a hash of the prefix, so that routers that know nothing of
    each other send the same prefix to the same replica.

    ``among``: the same as ``replicas``, to look one up.
    """
    if len(replicas) == 1:
        return replicas[0]
    among = replicas if among is None else among
    compared = some(replicas, hashes)
    loads = [replica.load for replica in compared]
    most = sum(loads) / len(loads) * (1 + MAX_ABOVE_MEAN) + SLACK
    best: Replica | None = None
    least_work = 0
    for has, group in holders(replicas[0].prefixes.holders, hashes):
        able = [one for one in some(group, hashes) if one in among and preferred_for_cache(one, most)]
        if not able:
            continue
        replica = first_by(WORK, able, hashes)
        work = replica.uncomputed - has
        if best is None or work < least_work:
            best, least_work = replica, work
        if best.uncomputed <= 0:  # nobody has more, and nothing is before it
            return best
    other = first_by(LOAD, compared, hashes)
    if best is None or other.uncomputed - has_of(other, hashes, most) < least_work:
        return other
    return best


def some(replicas: Sequence[Replica], hashes: list[bytes]) -> Sequence[Replica]:
    """All replicas; if there are many, as many as are compared, from one on that the end of the prompt chooses."""
    if len(replicas) <= MAX_LOOKED_AT or not hashes:
        return replicas
    start = int.from_bytes(hashes[-1]) % len(replicas)
    found = replicas[start : start + MAX_LOOKED_AT]
    return [*found, *replicas[: MAX_LOOKED_AT - len(found)]]


def holders(
    known: dict[bytes, tuple[Replica, ...]], hashes: list[bytes]
) -> list[tuple[int, Sequence[Replica]]]:
    """Numbers of blocks, and the replicas that have so many cached; the longest cached prefix comes first.

    A replica that has a block has all before it, so that the longest prefix is found by halving.
    """
    found: list[tuple[int, Sequence[Replica]]] = []
    has, lacks = 0, len(hashes) + 1
    middle = 1
    while lacks - has > 1:
        group = known.get(hashes[middle - 1])
        if group is None:
            lacks = middle
        else:
            has = middle
            found.append((blocks_of(has), group))
        middle = (has + lacks) // 2
    found.reverse()
    return found


def preferred_for_cache(replica: Replica, most: float) -> bool:
    """Whether what a replica has cached is a reason to take it: not if the prompt would wait there for others to end,
    or if its cache has proved unreliable."""
    return replica.load <= most and replica.prefixes.reliable and not replica.crowded


def has_of(replica: Replica, hashes: list[bytes], most: float) -> int:
    """The number of blocks in the cache of a replica, or 0 where they are no reason to prefer it."""
    return blocks_of(replica.prefixes.matched(hashes)) if preferred_for_cache(replica, most) else 0


def first_by(key: attrgetter[Any], replicas: Sequence[Replica], hashes: list[bytes]) -> Replica:
    """The one with the least ``key``; of several, by rendezvous hashing, so that a service that comes or goes changes
    only what is its own."""
    values = list(map(key, replicas))
    least = min(values)
    if values.count(least) == 1:
        return replicas[values.index(least)]
    first = int.from_bytes(hashes[0]) if hashes else 0
    equals = [replica for replica, value in zip(replicas, values, strict=True) if value == least]
    # Pairs of numbers have the same hash in every process, and many of them take no time.
    merits = list(map(hash, zip(map(IDENTITY, equals), repeat(first))))
    return equals[merits.index(max(merits))]
