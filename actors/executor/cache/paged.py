"""The paged key-value cache, and one step's batch as the attention sees it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..devices.float8 import FP8
from .state import StateCache


@dataclass(frozen=True, slots=True)
class LayerScales:
    """The factors by which the numbers of one layer in an FP8 cache are multiplied to give keys and values."""

    keys: Tensor
    """float32 [kv_heads], powers of two."""
    values: Tensor
    """The factors of the values."""


@dataclass(slots=True)
class KVCache:
    """Keys and values of all layers, in blocks of ``block_size`` tokens.

    ``keys[layer]`` is ``[num_blocks, block_size, kv_heads, head_dim]``, ``values[layer]`` the same shape with
    the value's head size; both contiguous, in the model's dtype or in `FP8`. Layers may differ in heads and sizes.
    """

    block_size: int
    keys: list[Tensor]
    values: list[Tensor]
    scales: list[LayerScales] | None = None
    """The scales of each layer of an FP8 cache; None: the numbers are the keys and values themselves."""

    def scales_of(self, layer: int) -> LayerScales | None:
        return None if self.scales is None else self.scales[layer]

    def copy_blocks(self, source: Tensor, target: Tensor) -> None:
        """Copy whole blocks in all layers; ``source`` and ``target`` int64 [N]."""
        for pool in (*self.keys, *self.values):
            # Of numbers of a byte torch has no copy by index.
            bits = pool.view(torch.uint8) if pool.dtype == FP8 else pool
            bits[target] = bits[source]


@dataclass(slots=True)
class PagedBatch:
    """One step's tokens, row by row: ``R`` rows, ``T`` tokens, each row with none, one or many of them.

    What differs from step to step is in tensors on the device, so that a captured graph reads it anew. The plain
    values, with R and T, are what the host knows: bounds, the same for all steps that replay one graph.

    R and T may be larger than the step. The rows at the end then have no tokens and the null slot, and the
    tokens from ``query_start[R]`` on belong to no row: attention gives zeros for them.
    """

    cache: KVCache
    rows: Tensor
    """int64 [R]: sequence slot of each row, an index into ``block_table``."""
    kv_lens: Tensor
    """int32 [R]: tokens of the row that are in the cache after this step."""
    query_start: Tensor
    """int32 [R + 1]: first token of each row, rising; then the end of the last row's tokens, at most T."""
    write_index: Tensor
    """int64 [T]: where each token's key and value go: ``block * block_size + offset``."""
    block_table: Tensor
    """int32 [slots, max_blocks]: block of each ``block_size`` positions of each sequence slot."""
    decode_only: bool
    """Every row has exactly one token, so that R = T."""
    max_kv_len: int
    """Upper bound of ``kv_lens`` over the rows that have one token."""
    states: StateCache | None = None
    """The states of the layers that keep one; None where the model has none."""
    row_tokens: tuple[int, ...] = ()
    """Tokens of each row that has any, as the host knows them: of a step with prompts of a model with ``states``."""
    adapters: Tensor | None = None
    """int32 [T]: the id of each token's adapter, 0 for none; None: no token has one."""
