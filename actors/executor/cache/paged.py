"""The paged key-value cache, and one step's batch as the attention sees it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

NULL_BLOCK = 0
"""Block that belongs to nobody: padding rows write here. The scheduler never hands it out."""


@dataclass(slots=True)
class KVCache:
    """Keys and values of all layers, in blocks of ``block_size`` tokens.

    ``keys[layer]`` is ``[num_blocks, block_size, kv_heads, head_dim]``, ``values[layer]`` the same with
    the value's head size; both in the model's dtype. Layers may differ in heads and sizes.
    """

    block_size: int
    keys: list[Tensor]
    values: list[Tensor]


@dataclass(slots=True)
class PagedBatch:
    """One step's tokens: rows that decode one token each come first, then rows that prefill a chunk.

    ``R`` rows, ``T`` tokens. Everything that a captured graph must read anew is a tensor on the device;
    the plain ints are upper bounds and shapes that the host knows.
    """

    cache: KVCache
    rows: Tensor
    """int64 [R]: sequence slot of each row, an index into ``block_table``."""
    kv_lens: Tensor
    """int32 [R]: tokens of the row that are in the cache after this step."""
    query_start: Tensor
    """int32 [R + 1]: first token of each row, then T."""
    write_index: Tensor
    """int64 [T]: where each token's key and value go: ``block * block_size + offset``."""
    block_table: Tensor
    """int32 [slots, max_blocks]: block of each ``block_size`` positions of each sequence slot."""
    num_decode: int
    """The first ``num_decode`` rows have one token each, which are also the first ``num_decode`` tokens."""
    chunks: list[tuple[int, int, int]]
    """(first token, tokens, kv_len) of each row after those."""
    max_decode_kv_len: int
    """Upper bound of ``kv_lens`` over the rows that decode."""
