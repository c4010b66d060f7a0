"""Batch-invariant attention backend ``torch``, for a CPU: a token's result does not depend on the rest of its step.

Every query is computed by itself, those of a prompt too. Its context ends, and with a window begins, at a multiple of
some blocks, so that the context's length depends on the token's position alone.
"""

from __future__ import annotations

from itertools import groupby, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ..cache.paged_batch import PagedBatch
from .torch_backend import CPU_GATHER_BYTES, Attend, CachePool, Window, bias_of, window_of, written

MIN_KEYS = 128
"""Contexts are filled up to a multiple of this many positions, or of a block that is larger."""


class Group(NamedTuple):
    """Tokens whose contexts have the same length."""

    tokens: Tensor
    """int64 [n], in the step."""
    table: Tensor
    """[n, blocks] of their contexts; [1, blocks] if they are of one sequence, and have the same."""
    bias: Tensor
    """[n, 1, 1, positions]: zero, or minus infinity where a position must not be seen."""


class InvariantTorchAttention:
    """As `TorchAttention`, and slower for prompts."""

    name = "torch"
    capturable = False

    def __init__(self) -> None:
        self._batch: PagedBatch | None = None
        """The step under way."""
        self._groups: dict[Window | None, list[Group]] = {}
        """Its tokens: layers differ in how far they see."""

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layer: int,
        batch: PagedBatch,
        *,
        scale: float,
        sliding_window: int | None,
        softcap: float | None,
        sinks: Tensor | None,
        attention_chunk: int | None = None,
    ) -> Tensor:
        keys, values = written(batch, layer, key, value)
        if layer == 0 or batch is not self._batch:
            # The tensors of a new step may be those of the step before, with other contents.
            self._batch, self._groups = batch, {}
        window = window_of(sliding_window, attention_chunk)
        if window not in self._groups:
            self._groups[window] = list(groups_of(batch, window, query.dtype))
        attend = Attend(scale, softcap, sinks)
        output = query.new_zeros(query.shape[0], query.shape[1], value.shape[2])
        for group in self._groups[window]:
            output[group.tokens] = attend_group(attend, query[group.tokens, None], keys, values, group)[:, 0]
        return output


def groups_of(batch: PagedBatch, window: Window | None, dtype: torch.dtype) -> list[Group]:
    """The tokens of a step: those of a longer row in runs that see the same blocks, and single ones by length."""
    size = batch.cache.block_size
    whole = -(-MIN_KEYS // size) * size
    starts, kv_lens = batch.query_start.tolist(), batch.kv_lens.tolist()
    slots = batch.rows.tolist()

    def context(position: int) -> tuple[int, int]:
        """The first position of a token's context, and the length of the context."""
        begin = 0 if window is None else max(0, window.first(position)) // whole * whole
        return begin, (position // whole + 1) * whole - begin

    found: list[Group] = []
    single: list[tuple[int, int, int]] = []  # token, slot, position
    for row, (first, end) in enumerate(pairwise(starts)):
        before = kv_lens[row] - end
        if end - first == 1:
            single.append((first, slots[row], before + first))
            continue
        where = [(token, slots[row], before + token) for token in range(first, end)]
        for (begin, length), run in groupby(where, lambda one: context(one[2])):
            found.append(group_of(batch, list(run), window, [begin], length, dtype))
    single.sort(key=lambda one: context(one[2])[1])
    for length, run in groupby(single, lambda one: context(one[2])[1]):
        where = list(run)
        begins = [context(position)[0] for _, _, position in where]
        found.append(group_of(batch, where, window, begins, length, dtype))
    return found


def group_of(
    batch: PagedBatch,
    where: list[tuple[int, int, int]],
    window: Window | None,
    begins: list[int],
    length: int,
    dtype: torch.dtype,
) -> Group:
    """Tokens by (token, slot, position), whose contexts of ``length`` begin at ``begins``, or all at the only one."""
    device, size = batch.rows.device, batch.cache.block_size
    token, slot, position = torch.tensor(where, device=device).unbind(1)
    begin = torch.tensor(begins, device=device)
    # What goes past the table of a sequence is masked.
    ordinal = begin[:, None] // size + torch.arange(length // size, device=device)
    table = batch.block_table[slot[: len(begins), None], ordinal.clamp_(max=batch.block_table.shape[1] - 1)]
    seen = begin[:, None] + torch.arange(length, device=device)
    visible = seen <= position[:, None]
    if window is not None:
        visible &= seen >= window.first(position[:, None])
    return Group(token, table, bias_of(visible, dtype)[:, None, None])


def attend_group(attend: Attend, query: Tensor, keys: CachePool, values: CachePool, group: Group) -> Tensor:
    """From ``query`` [n, 1, Hq, D] to their contexts: [n, 1, Hq, Dv], a few at a time."""
    table, count = group.table, len(query)
    row_bytes = table.shape[1] * (keys.block_bytes(query.dtype) + values.block_bytes(query.dtype))
    at_once = max(1, CPU_GATHER_BYTES // row_bytes)
    if len(table) < count:
        key, value = (pool.gather(table, query.dtype).expand(count, -1, -1, -1) for pool in (keys, values))
        return one_by_one(attend, query, key, value, group.bias)
    parts = []
    for first in range(0, count, at_once):
        rows = slice(first, first + at_once)
        key, value = (pool.gather(table[rows], query.dtype) for pool in (keys, values))
        parts.append(one_by_one(attend, query[rows], key, value, group.bias[rows]))
    return torch.cat(parts)


def one_by_one(attend: Attend, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """As `Attend.biased`, where each query has the bits that it has alone.

    In bfloat16 torch's own attention computes each with its heads by itself, whatever is beside it. In other dtypes its
    products differ from one thread to another, and batches of products always do.
    """
    own = attend.softcap is None and attend.sinks is None and key.shape[3] == value.shape[3]
    if own and query.dtype == torch.bfloat16:
        return attend.biased(query, key, value, bias)
    return torch.cat(
        [
            attend.biased(query[n : n + 1], key[n : n + 1], value[n : n + 1], bias[n : n + 1])
            for n in range(len(query))
        ]
    )
