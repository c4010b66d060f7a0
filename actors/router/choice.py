"""Where a request goes: to the service that has most of its beginning, of those that have not far more to do."""

from __future__ import annotations

from hashlib import blake2b

from .replica import Replica

MOST_ABOVE_MEAN = 0.5
"""A service with this share more open answers than the mean, and ``SLACK`` more, gets nothing for its cache's sake."""

SLACK = 4
"""A difference of this many open answers does not count: a step takes hardly longer with them."""


def choose(replicas: list[Replica], hashes: list[bytes]) -> Replica:
    """One of ``replicas`` for a request whose blocks have these hashes; there must be one.

    Among those that have equally much of it, the one with least to do; and among these, one that follows from the
    beginning, so that several routers that know nothing of each other send the same beginning to the same service.
    """
    loads = [replica.load for replica in replicas]
    most = sum(loads) / len(loads) * (1 + MOST_ABOVE_MEAN) + SLACK
    merits = [
        ((matched(replica, hashes), -load), replica)
        for replica, load in zip(replicas, loads, strict=True)
        if load <= most
    ]
    best = max(merit for merit, _ in merits)
    equals = [replica for merit, replica in merits if merit == best]
    if len(equals) == 1:
        return equals[0]
    first = hashes[0] if hashes else b""
    return max(equals, key=lambda replica: affinity(first, replica.endpoint))


def matched(replica: Replica, hashes: list[bytes]) -> int:
    """How many of the blocks count for it: none where what is sent would wait, longer than they take to compute."""
    if not hashes or replica.crowded or not replica.prefixes.count:
        return 0
    return replica.prefixes.matched(hashes)


def affinity(first: bytes, endpoint: str) -> bytes:
    """The highest decides (rendezvous hashing): a service that comes or goes changes only what is its own."""
    return blake2b(first + endpoint.encode(), digest_size=8).digest()
