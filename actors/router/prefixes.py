"""Tracks which prefixes of prompts each service has computed, as far as the router can know: by hash, block after
block.

As in the scheduler, a hash covers a block and, through the hash of the block before, everything up to it, and requests
of different salts have none in common. The router has no tokenizer, so that its blocks are of what was asked: of token
ids, of text, or of the messages of a conversation.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from hashlib import blake2b
from typing import Any

from ...protocol.codec import pack
from ...protocol.messages import Generate

Holders = dict[bytes, tuple[Any, ...]]
"""Who has the prefix of a hash, of all services behind a router."""

BLOCK_BYTES = 64
"""How much of what was asked a block has: 16 token ids, or about as many in text."""

MAX_BLOCKS = 1024
"""Most blocks of one prompt that are looked at: what differs only behind them is the same prefix."""

ENDS = (*range(1, 16), *range(16, 64, 4), *range(64, MAX_BLOCKS + 1, 8))
"""Numbers of blocks behind which there is a hash: long prefixes that differ do so long before their ends, and a
thousand services have very many."""


def size_and_bytes(request: Generate) -> tuple[int, bytes]:
    """About how many bytes the prompt takes, and its prefix, as the blocks cover it."""
    most = BLOCK_BYTES * MAX_BLOCKS
    if isinstance(request.prompt, list):
        try:
            return 4 * len(request.prompt), array("i", request.prompt[: most // 4]).tobytes()
        except OverflowError:  # ids that no model has: the service says which
            return 4 * len(request.prompt), b""
    if request.prompt is not None:
        return len(request.prompt), request.prompt[:most].encode("utf-8", "surrogatepass")[:most]
    # What a template writes before the messages comes first, and each message stands for itself, so that the next
    # question of a conversation begins with all that was before it.
    parts = [pack([request.tools, request.chat_template_kwargs]), *map(pack, request.messages or ())]
    return sum(map(len, parts)), b"".join(parts)[:most]


def hash_blocks(prefix: bytes, cache_salt: str, adapter: str = "") -> list[bytes]:
    """Hashes of the full blocks, those that ``ENDS`` names, each over everything up to its end."""
    hashes: list[bytes] = []
    if len(prefix) < BLOCK_BYTES:
        return hashes
    parent = b""
    for text, person in ((adapter, b"adapter"), (cache_salt, b"cache salt")):
        parent = blake2b(
            text.encode("utf-8", "surrogatepass"), key=parent, digest_size=8, person=person
        ).digest()
    start = 0
    for blocks in ENDS[: bisect_right(ENDS, len(prefix) // BLOCK_BYTES)]:
        end = blocks * BLOCK_BYTES
        parent = blake2b(prefix[start:end], key=parent, digest_size=8).digest()
        hashes.append(parent)
        start = end
    return hashes


def blocks_of(hashes: int) -> int:
    """The number of blocks that a number of hashes of one prefix cover."""
    return ENDS[hashes - 1] if hashes else 0


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
