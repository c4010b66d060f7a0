"""Tracks which prefixes of prompts each service has computed, as far as the router can know: by the hashes of their
blocks, which ``prompt_blocks.py`` makes."""

from __future__ import annotations

from typing import Any

Holders = dict[bytes, tuple[Any, ...]]
"""Who has the prefix of a hash, of all services behind a router."""


class Prefixes:
    """The presumed content of one service's prefix cache: everything that was sent there, without the oldest."""

    def __init__(self, holder: object = None, holders: Holders | None = None) -> None:
        """``holders`` is told what ``holder`` has."""
        self.known: dict[bytes, bool] = {}
        """Hashes, those that were needed last behind all others."""
        self.holders: Holders = {} if holders is None else holders
        self.alone = (holder,) if holder is not None else ()
        self.found = 1.0
        """The share of the expected tokens that the service has lately reported to have found in its cache."""

    @property
    def reliable(self) -> bool:
        """Whether what was sent to the service is a reason to send more that begins so."""
        return self.found >= MIN_FOUND

    def matched(self, hashes: list[bytes]) -> int:
        """The number of hashes, from the first on, whose blocks it has."""
        known = self.known
        for count, one in enumerate(hashes):
            if one not in known:
                return count
        return len(hashes)

    def note(self, hashes: list[bytes], most: int) -> None:
        """The service is sent a prompt of these blocks. The ends of prefixes are forgotten before their starts."""
        known = self.known
        for one in reversed(hashes):
            if not known.pop(one, False):
                self.holders[one] = self.holders.get(one, ()) + self.alone
            known[one] = True
        while len(known) > most:
            one = next(iter(known))
            del known[one]
            self.drop(one)

    def drop(self, one: bytes) -> None:
        """Record that the service no longer holds this hash."""
        left = tuple(holder for holder in self.holders[one] if holder not in self.alone)
        if left:
            self.holders[one] = left
        else:
            del self.holders[one]

    def learn(self, expected: float, reported: int, prompt: int) -> None:
        """Compare the tokens of a prompt that were ``expected`` in the cache with those that the service ``reported``.
        A report of more tokens than ``prompt``, which is all of them, counts as none."""
        if expected > 0:
            share = min(max(reported / expected, 0.0), 1.0) if reported <= prompt else 0.0
            self.found += (share - self.found) * LEARNING

    def forget(self) -> None:
        """Start afresh, as another incarnation of the service has an empty cache and has reported nothing yet."""
        for one in self.known:
            self.drop(one)
        self.known.clear()
        self.found = 1.0


MIN_FOUND = 0.2
"""Least share of the expected blocks that a service has to find in its cache for its cache to count. Below it, it has
no prefix cache, one that is far too small, or reports wrongly; an honest one finds most."""

LEARNING = 0.1
"""Weight of the newest report in the average: ten reports count, about ten seconds."""
