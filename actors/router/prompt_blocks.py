"""The blocks of a prompt as a router sees it, each with a hash.

As in the scheduler, a hash covers a block and, through the hash of the block before, everything up to it, and requests
of different salts have none in common. The router has no tokenizer, so that its blocks are of what was asked: of token
ids, of text, or of the messages of a conversation.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from hashlib import blake2b

from ...protocol.codec import pack
from ...protocol.messages import Generate

BLOCK_BYTES = 64
"""How much of what was asked a block has: 16 token ids, or about as many in text."""

MAX_BLOCKS = 1024
"""Most blocks of one prompt that are looked at: what differs only behind them is the same prefix."""

ENDS = (*range(1, 16), *range(16, 64, 4), *range(64, MAX_BLOCKS + 1, 8))
"""Numbers of blocks behind which there is a hash: long prefixes that differ do so long before their ends, and
many services have very many."""


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
