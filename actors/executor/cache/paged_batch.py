"""One step's batch as attention over the paged cache sees it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .kv_cache import KVCache
from .state import StateCache


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
    adapter_ids: Tensor | None = None
    """int32 [T]: the id of each token's adapter, 0 for none; None: no token has one."""
