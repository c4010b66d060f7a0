"""Chooses the service for a request: the one, among those with room, that has least to compute before its first
token."""

from __future__ import annotations

from collections.abc import Container, Sequence
from itertools import repeat
from operator import attrgetter
from typing import Any

from .prefixes import blocks_of
from .replica import Replica

MOST_ABOVE_MEAN = 0.5
"""A service with this share more open answers than the mean, and ``SLACK`` more, gets nothing for its cache's sake. A
larger share finds more in caches and spreads load less evenly; ``python examples/day_of_traffic.py`` shows both."""

SLACK = 4
"""A difference of this many open answers does not count: a step takes hardly longer with them."""

MOST_LOOKED_AT = 32
"""How many of the services that are alike are looked at for one request, so that a choice costs the same before a
thousand; others for each prompt, so that none is left out."""

LOAD = attrgetter("load")
WORK = attrgetter("uncomputed", "load")
PLACE = attrgetter("place")


def choose(
    replicas: Sequence[Replica], hashes: list[bytes], among: Container[Replica] | None = None
) -> Replica:
    """One of ``replicas`` for a request whose blocks have these hashes; there must be one.

    The service with least to do, unless one that has more of the beginning computes the rest sooner, the prompts
    before it included. Among equals it is one that follows from the beginning, so that several routers that know
    nothing of each other send the same beginning to the same service.

    ``among``: the same as ``replicas``, to look one up.
    """
    if len(replicas) == 1:
        return replicas[0]
    among = replicas if among is None else among
    compared = some(replicas, hashes)
    loads = [replica.load for replica in compared]
    most = sum(loads) / len(loads) * (1 + MOST_ABOVE_MEAN) + SLACK
    best: Replica | None = None
    least_work = 0
    for has, group in holders(replicas[0].prefixes.holders, hashes):
        able = [one for one in some(group, hashes) if one in among and counts(one, most)]
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
    """All, or of many a part that follows from the end of the prompt, so that it is another for each."""
    if len(replicas) <= MOST_LOOKED_AT or not hashes:
        return replicas
    start = int.from_bytes(hashes[-1]) % len(replicas)
    found = replicas[start : start + MOST_LOOKED_AT]
    return [*found, *replicas[: MOST_LOOKED_AT - len(found)]]


def holders(
    known: dict[bytes, tuple[Replica, ...]], hashes: list[bytes]
) -> list[tuple[int, Sequence[Replica]]]:
    """How many blocks services have, and which; first those that have most of all, and then ever more that have less.

    Who has a block has all before it, so that the longest beginning that anybody has is found by halving.
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


def counts(replica: Replica, most: float) -> bool:
    """Whether its cache counts for it: not where what is sent would wait for others to end, or does not find it."""
    return replica.load <= most and replica.prefixes.count and not replica.crowded


def has_of(replica: Replica, hashes: list[bytes], most: float) -> int:
    """Blocks that count for it."""
    return blocks_of(replica.prefixes.matched(hashes)) if counts(replica, most) else 0


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
    merits = list(map(hash, zip(map(PLACE, equals), repeat(first))))
    return equals[merits.index(max(merits))]
