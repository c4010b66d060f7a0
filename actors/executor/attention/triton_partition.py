"""The partition of the attention of one step: how its work is divided among programs, on the device, once a step.

A **tile** is some consecutive tokens of a row with all query heads of one key/value head. Its keys are one
**split**, or several when there are fewer tiles than the device has room for (*split-KV*, the idea of
Flash-Decoding, Dao, Haziza, Massa, Sizov 2023): their results are then combined. An **item** is one split of
one tile, the work of one program for each key/value head.

This file says how large a partition is, for which the host's bounds are enough: there are at most ``tiles + target``
items, and those of tiles in several splits are at most ``target``, whatever the lengths are. So grids and memory depend
on the numbers of rows and tokens alone, and a captured graph takes every step. ``triton_partition_kernel.py`` divides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ..cache.paged_batch import PagedBatch
from ..triton_tools.kernel import FOLLOWING
from .triton_partition_kernel import ITEM_FIELDS, ITEMS_AT_ONCE, partition_kernel

MAX_SPLITS = 32
"""Most splits of one tile. More cost more to combine than they save."""

MAX_FIXED = 1024
"""Items of rows whose splits have a fixed length. More rows, or longer ones, occupy the device without any splits."""

OVERHEAD = 3.0
"""Iterations of the inner loop that a program could have made while it begins and ends."""


@dataclass(frozen=True, slots=True)
class WorkPartition:
    """The items of one step's rows with one token, or of all its other rows. The sizes are the host's bounds."""

    items: Tensor
    """int32 [items, ITEM_FIELDS]; those that are not needed come last."""
    arrived: Tensor | None
    """int32 [results, kv_heads], zero between layers: at the first result of a tile in several splits, how many of
    them have been computed. There are no more results than this has places. None: no tile can be in several splits."""

    def room(self, queries: int, value_dim: int) -> tuple[Tensor | None, Tensor | None]:
        """Memory for results of splits, float32 [results, kv_heads, queries, value_dim], and their sums, without the
        last dimension."""
        if self.arrived is None:
            return None, None
        sums = torch.empty(*self.arrived.shape, queries, dtype=torch.float32, device=self.arrived.device)
        return sums.new_empty(*sums.shape, value_dim), sums


class PartitionSizes(NamedTuple):
    """What the host knows of a partition: the same for all steps within the bounds of a batch."""

    items: int
    """The number of items that it has room for."""
    results: int
    """Those of them that can be one of several splits of a tile, whose results are combined."""
    target: int
    """Items that are enough for the device."""
    most_splits: int
    """Most splits of a tile; 1: no tile is split."""


def sizes_of(
    batch: PagedBatch,
    *,
    single: bool,
    tokens: int,
    window: int,
    keys: int,
    least: int,
    target: int,
    split: int,
) -> PartitionSizes:
    """The sizes of the partition that `partition_work` makes with the same arguments."""
    num_rows, num_tokens = len(batch.rows), len(batch.write_index)
    if single:
        tiles, most_splits = num_rows, min(MAX_SPLITS, triton.cdiv(batch.max_kv_len, keys) // (least // keys))
    else:
        # As many as are full, one for the rest of each row, and one for what belongs to no row.
        tiles = num_tokens // tokens + min(num_rows, num_tokens // 2) + 1
        most_splits = MAX_SPLITS if tiles <= target else 1
    if split:
        most_splits = triton.cdiv(batch.max_kv_len, split) if single and not window else 1
        most_splits = most_splits if tiles * most_splits <= MAX_FIXED else 1
        target = tiles * most_splits
    items = min(tiles + target, tiles * most_splits) if most_splits > 1 else tiles
    return PartitionSizes(items, min(items, target), target, most_splits)


def partition_work(
    batch: PagedBatch,
    *,
    single: bool,
    tokens: int,
    window: int,
    chunked: bool,
    keys: int,
    block_size: int,
    least: int,
    target: int,
    kv_heads: int,
    multiprocessors: int,
    resident: int,
    split: int = 0,
) -> WorkPartition:
    """Divide the rows with one token if ``single``, otherwise those with more and the tokens without a row.

    A tile has ``tokens`` tokens, an iteration ``keys`` keys, a split about ``least`` keys or more; ``target`` items, at
    least 2, are enough for the device. ``window`` 0: none; ``chunked`` as in `first_seen`. Splits begin with a block of
    ``block_size`` tokens where ``keys`` are whole blocks. Each of the ``multiprocessors`` holds ``resident`` programs
    at once.

    ``split``: splits have this many keys, counted from the first position, whatever the load is; with a window there
    is one.
    """
    items, results, target, most_splits = sizes_of(
        batch, single=single, tokens=tokens, window=window, keys=keys, least=least, target=target, split=split
    )
    is_split = most_splits > 1
    device = batch.rows.device
    partition = WorkPartition(
        items=torch.empty(items, ITEM_FIELDS.value, dtype=torch.int32, device=device),
        arrived=torch.empty(results, kv_heads, dtype=torch.int32, device=device) if is_split else None,
    )
    partition_kernel[(triton.cdiv(items, ITEMS_AT_ONCE.value),)](
        partition.items,
        partition.arrived,
        batch.rows,
        batch.kv_lens,
        batch.query_start,
        len(batch.rows),
        len(batch.write_index),
        items,
        results,
        target,
        most_splits,
        multiprocessors,
        multiprocessors * resident,
        OVERHEAD,
        SINGLE=single,
        TOKENS=tokens,
        WINDOW=window,
        CHUNKED=chunked,
        KEYS=keys,
        ALIGN=keys if split else block_size if keys % block_size == 0 else 1,
        LEAST=least,
        FIXED=split // keys,
        KV_HEADS=kv_heads,
        HEADS_PAD=triton.next_power_of_2(kv_heads),
        **FOLLOWING,
    )
    return partition
