"""The prefix cache: blocks are found by the hash of all tokens up to their end.

A hash covers a block of tokens and, through the hash of the block before, everything up to it. Only requests with
the same salt share blocks.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np

from .blocks import BlockList, BlockPool
from .sequence import Sequence


def salt_of(cache_salt: str, adapter: bytes = b"") -> bytes:
    """The root of the hashes of a prefix, from the ``cache_salt`` and the bytes that stand for an ``adapter``; empty
    without either.

    It is of a kind of its own (``person``): no tokens have this hash, whatever text a client chooses.
    """
    if not cache_salt and not adapter:
        return b""
    return blake2b(cache_salt.encode(), key=adapter, digest_size=16, person=b"cache salt").digest()


def digest(tokens: memoryview, parent: bytes) -> bytes:
    """The hash of some tokens behind the prefix that ``parent`` is the hash of."""
    return blake2b(tokens, key=parent, digest_size=16).digest()


def extend_hashes(hashes: list[bytes], tokens: memoryview, size: int, salt: bytes) -> None:
    """Extend ``hashes``, those of the full blocks of ``size`` tokens (int32) over their whole prefix.

    Requests of different salts have no hash in common.
    """
    parent = hashes[-1] if hashes else salt
    for index in range(len(hashes), len(tokens) // size):
        parent = digest(tokens[index * size : (index + 1) * size], parent)
        hashes.append(parent)


def hash_of_end(sequence: Sequence, tokens: np.ndarray, size: int) -> bytes:
    """The hash of the last block of ``tokens``, full or not; those of the full ones are known."""
    full, hashes = len(tokens) // size, sequence.hashes
    if len(tokens) == full * size:
        return hashes[full - 1]
    return digest(tokens[full * size :].data, hashes[full - 1] if full else sequence.salt)


def share_prefix(
    blocks: BlockPool, sequence: Sequence, block_list: BlockList, copied: BlockList, step: int
) -> None:
    """Share what is cached of the sequence's tokens before the last one, which has to be computed in ``step``.

    Full blocks are shared, by ``block_list``. If all of the rest is cached too, in a block that an earlier step has
    written, that block is held by ``copied``, so that the last token can be written behind a copy of it.
    """
    size, length = blocks.block_size, len(sequence.tokens)
    full = (length - 1) // size
    extend_hashes(sequence.hashes, sequence.tokens.data, size, sequence.salt)
    found = blocks.find(sequence.hashes[:full])
    blocks.share(block_list, found)
    if len(found) == full and length > full * size + 1:
        block = blocks.block_of.get(hash_of_end(sequence, sequence.tokens, size))
        if block is not None and blocks.written[block] < step:
            blocks.share(copied, [block])


def publish(blocks: BlockPool, sequence: Sequence, known: np.ndarray, computed: int, step: int) -> None:
    """Let other sequences find what is computed of the ``known`` tokens: full blocks, and the end of the prompt.

    ``computed`` is the number of tokens whose keys and values are in the cache once ``step`` is over. The token that
    ended a sequence is among them if a step after it was launched: a row that has finished still computes, only its
    result is dropped.
    """
    if not blocks.caching:
        return
    size = blocks.block_size
    full = computed // size
    if full > sequence.published:
        extend_hashes(sequence.hashes, known[: full * size].data, size, sequence.salt)
        for index in range(sequence.published, full):
            blocks.publish(sequence.block_list.blocks[index], sequence.hashes[index], step)
        sequence.published = full
    if computed == len(known) == len(sequence.tokens) and computed % size > 1:
        blocks.publish(sequence.block_list.blocks[full], hash_of_end(sequence, known, size), step)
