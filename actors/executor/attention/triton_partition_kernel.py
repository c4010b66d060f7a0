"""The Triton kernel that divides the rows of a step into items, which ``triton_partition.py`` explains.

The inner loop of attention takes a fixed number of keys in each iteration. ``work`` is the sum over all tiles of the
iterations of the longest tile of their row. A row's tiles are cut into as many splits of whole iterations as leave at
least ``goal`` iterations to each, where ``goal`` is at least ``work / target``: so the items fit into the partition.

Of the goals that this allows, the one is taken with which the programs are expected to finish first. The estimate has
two parts. A multiprocessor computes the iterations of its share of the programs, the last of which may be the longest.
And each wave of programs that are on the device at once takes ``overhead`` iterations to begin and to end.
"""

from __future__ import annotations

import triton.language as tl

from ..triton_tools.kernel import follow, jit
from .triton_common import STEP_INPUTS, first_seen

ITEM_FIELDS = tl.constexpr(9)
"""Slot, first token, tokens (0: nothing to do), position of the first token, first key, last key + 1; of a tile in
several splits the index of its first result, otherwise -1; which split this is, and of how many."""

COMBINING = tl.constexpr(2.0)
"""Iterations of the inner loop that a program could have made while it combines splits."""

CANDIDATES = tl.constexpr(16)
"""Goals that are compared."""

ROWS_AT_ONCE = tl.constexpr(256)
ITEMS_AT_ONCE = tl.constexpr(32)
"""Rows that a program of the partition looks at together, and items that it writes."""


@jit
def _tiles_of(
    row,  # int32 [ROWS_AT_ONCE]
    kv_lens,
    query_start,
    num_rows,
    num_tokens,
    SINGLE: tl.constexpr,
    TOKENS: tl.constexpr,
    WINDOW: tl.constexpr,
    KEYS: tl.constexpr,
    ALIGN: tl.constexpr,
):
    """Tiles of each row, and the iterations of ``KEYS`` keys of its longest tile, both int32; 0 for rows of the other
    kind.

    Row ``num_rows`` stands for the tokens that belong to no row, and sees no keys.
    """
    begin = tl.load(query_start + row, mask=row <= num_rows, other=0)
    end = tl.load(query_start + row + 1, mask=row < num_rows, other=0)
    kv_len = tl.load(kv_lens + row, mask=row < num_rows, other=0)
    count = tl.where(row < num_rows, end - begin, tl.where(row == num_rows, num_tokens - begin, 0))
    if SINGLE:
        tiles = ((count == 1) & (row < num_rows)).to(tl.int32)
    else:
        tiles = tl.where((count > 1) | (row == num_rows), tl.cdiv(count, TOKENS), 0)
    longest = kv_len
    if WINDOW > 0:
        longest = tl.minimum(kv_len, WINDOW + TOKENS + ALIGN - 2)
    return tiles, tl.where(tiles > 0, tl.cdiv(longest, KEYS), 0)


@jit
def _divided(iterations, goal, most_splits, FIXED: tl.constexpr):
    """The number of splits of tiles of ``iterations``, and the iterations of each, ``FIXED`` if that is not 0; the last
    split may have fewer."""
    if FIXED > 0:
        each = tl.where(most_splits > 1, FIXED, tl.maximum(iterations, 1))
    else:
        splits = tl.maximum(tl.minimum(iterations // goal, most_splits), 1)
        each = tl.maximum(tl.cdiv(iterations, splits), 1)
    return tl.maximum(tl.cdiv(iterations, each), 1), each


@jit
def _iterations_of_a_split(
    kv_lens,
    query_start,
    num_rows,
    num_tokens,
    target,
    most_splits,
    multiprocessors,
    places,
    overhead,
    SINGLE: tl.constexpr,
    TOKENS: tl.constexpr,
    WINDOW: tl.constexpr,
    KEYS: tl.constexpr,
    ALIGN: tl.constexpr,
    LEAST: tl.constexpr,
    KV_HEADS: tl.constexpr,
):
    """The goal in iterations: that of the ``CANDIDATES`` for which the programs come to their end first."""
    work = tl.zeros([], tl.int32)
    most = tl.zeros([], tl.int32)
    for start in range(0, num_rows + 1, ROWS_AT_ONCE):
        row = start + tl.arange(0, ROWS_AT_ONCE)
        tiles, iterations = _tiles_of(
            row, kv_lens, query_start, num_rows, num_tokens, SINGLE, TOKENS, WINDOW, KEYS, ALIGN
        )
        work += tl.sum(tiles * iterations, 0)
        most = tl.maximum(most, tl.max(iterations, 0))
    least = tl.maximum(tl.cdiv(work, target), LEAST // KEYS)

    # They cut the longest tile into 1, 2, 3, ... splits, the last as finely as is allowed. Of equals the first wins.
    candidate = tl.arange(0, CANDIDATES)
    goal = tl.where(candidate == CANDIDATES - 1, least, tl.maximum(tl.cdiv(most, candidate + 1), least))
    items = tl.zeros([CANDIDATES], tl.int32)
    longest_split = tl.zeros([CANDIDATES], tl.int32)
    all_tiles = tl.zeros([], tl.int32)
    for start in range(0, num_rows + 1, ROWS_AT_ONCE):
        row = start + tl.arange(0, ROWS_AT_ONCE)
        tiles, iterations = _tiles_of(
            row, kv_lens, query_start, num_rows, num_tokens, SINGLE, TOKENS, WINDOW, KEYS, ALIGN
        )
        splits, each = _divided(iterations[None, :], goal[:, None], most_splits, 0)
        items += tl.sum(tiles[None, :] * splits, 1)
        longest_split = tl.maximum(longest_split, tl.max(each, 1))
        all_tiles += tl.sum(tiles, 0)
    programs = items * KV_HEADS
    mean = work.to(tl.float32) / tl.maximum(items, 1)
    cost = tl.cdiv(programs, places) * overhead
    cost += (tl.cdiv(programs, multiprocessors) - 1) * mean + longest_split
    cost += tl.where(items > all_tiles, COMBINING, 0.0)
    return tl.sum(tl.where(candidate == tl.argmin(cost, 0), goal, 0), 0)


@jit
def _before(
    item,  # [ITEMS_AT_ONCE]
    arrived,
    kv_lens,
    query_start,
    num_rows,
    num_tokens,
    goal,
    most_splits,
    SINGLE: tl.constexpr,
    TOKENS: tl.constexpr,
    WINDOW: tl.constexpr,
    KEYS: tl.constexpr,
    ALIGN: tl.constexpr,
    FIXED: tl.constexpr,
):
    """What lies before each item: rows, items of these rows, and of those the ones in splits; and how many items there
    are in all."""
    row_of = tl.zeros([ITEMS_AT_ONCE], tl.int32)
    items_before = tl.zeros([ITEMS_AT_ONCE], tl.int32)
    results_before = tl.zeros([ITEMS_AT_ONCE], tl.int32)
    all_items = tl.zeros([], tl.int32)
    for start in range(0, num_rows + 1, ROWS_AT_ONCE):
        row = start + tl.arange(0, ROWS_AT_ONCE)
        tiles, iterations = _tiles_of(
            row, kv_lens, query_start, num_rows, num_tokens, SINGLE, TOKENS, WINDOW, KEYS, ALIGN
        )
        splits, _ = _divided(iterations, goal, most_splits, FIXED)
        ends = all_items + tl.cumsum(tiles * splits, 0)
        passed = (ends[None, :] <= item[:, None]) & (row <= num_rows)[None, :]
        row_of += tl.sum(passed.to(tl.int32), 1)
        items_before += tl.sum(tl.where(passed, (tiles * splits)[None, :], 0), 1)
        all_items += tl.sum(tiles * splits, 0)
        if arrived is not None:
            tiles = tl.where(splits > 1, tiles, 0)
            results_before += tl.sum(tl.where(passed, (tiles * splits)[None, :], 0), 1)
    return row_of, items_before, results_before, all_items


@jit
def _store_items(
    item,  # [ITEMS_AT_ONCE], as all that follows
    items,
    num_items,
    slot,
    begin,  # the first token of the row
    first,  # the first token of the tile, counted from there
    used,  # what is not is an item of no tokens
    tokens,
    position,
    first_key,
    end_key,
    first_result,
    which,
    splits,
):
    """Write the fields of items in the order that `ITEM_FIELDS` has."""
    write = item < num_items
    record = items + item * ITEM_FIELDS
    tl.store(record, slot.to(tl.int32), mask=write)
    tl.store(record + 1, begin + first, mask=write)
    tl.store(record + 2, tl.where(used, tokens, 0), mask=write)
    tl.store(record + 3, position, mask=write)
    tl.store(record + 4, first_key, mask=write)
    tl.store(record + 5, end_key, mask=write)
    tl.store(record + 6, first_result, mask=write)
    tl.store(record + 7, which, mask=write)
    tl.store(record + 8, splits, mask=write)


@jit(
    do_not_specialize=[
        "num_rows",
        "num_tokens",
        "num_items",
        "num_results",
        "target",
        "most_splits",
        "multiprocessors",
        "places",
    ],
    do_not_specialize_on_alignment=STEP_INPUTS,
)
def partition_kernel(
    items,  # int32 [num_items, ITEM_FIELDS]
    arrived,  # int32 [num_results, KV_HEADS] or None
    rows,  # int64 [R]
    kv_lens,  # int32 [R]
    query_start,  # int32 [R + 1]
    num_rows,
    num_tokens,
    num_items,
    num_results,
    target,
    most_splits,
    multiprocessors,
    places,
    overhead,
    SINGLE: tl.constexpr,
    TOKENS: tl.constexpr,
    WINDOW: tl.constexpr,
    CHUNKED: tl.constexpr,
    KEYS: tl.constexpr,
    ALIGN: tl.constexpr,
    LEAST: tl.constexpr,
    FIXED: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEADS_PAD: tl.constexpr,
):
    """Write ``ITEMS_AT_ONCE`` items. Grid: (items / ITEMS_AT_ONCE). Each program goes over all rows by itself."""
    follow()
    goal = tl.zeros([], tl.int32) + 2147483647  # iterations of a split, or more
    if arrived is not None and FIXED == 0:
        goal = _iterations_of_a_split(
            kv_lens, query_start, num_rows, num_tokens, target, most_splits, multiprocessors, places, overhead,
            SINGLE, TOKENS, WINDOW, KEYS, ALIGN, LEAST, KV_HEADS,
        )  # fmt: skip

    item = tl.program_id(0) * ITEMS_AT_ONCE + tl.arange(0, ITEMS_AT_ONCE)
    row_of, items_before, results_before, all_items = _before(
        item, arrived, kv_lens, query_start, num_rows, num_tokens, goal, most_splits,
        SINGLE, TOKENS, WINDOW, KEYS, ALIGN, FIXED,
    )  # fmt: skip

    used = item < all_items
    row = tl.where(used, row_of, 0)
    begin = tl.load(query_start + row, mask=used, other=0)
    in_row = used & (row < num_rows)
    end = tl.load(query_start + row + 1, mask=in_row, other=0)
    kv_len = tl.load(kv_lens + row, mask=in_row, other=0)
    slot = tl.load(rows + row, mask=in_row, other=0)
    count = tl.where(in_row, end - begin, num_tokens - begin)
    longest = kv_len
    if WINDOW > 0:
        longest = tl.minimum(kv_len, WINDOW + TOKENS + ALIGN - 2)
    splits, each = _divided(tl.cdiv(longest, KEYS), goal, most_splits, FIXED)
    split = each * KEYS

    in_row_items = item - items_before
    tile = in_row_items // splits
    which = in_row_items % splits
    first = tile * TOKENS
    tokens = tl.minimum(count - first, TOKENS)
    position = tl.where(in_row, kv_len - count + first, 0)
    end_key = tl.where(in_row, tl.minimum(position + tokens, kv_len), 0)
    first_key = tl.zeros([ITEMS_AT_ONCE], tl.int32)
    if WINDOW > 0:
        first_key = first_seen(position, WINDOW, CHUNKED) // ALIGN * ALIGN
    first_key += tl.where(splits > 1, which * split, 0)
    end_key = tl.where(splits > 1, tl.minimum(end_key, first_key + split), end_key)
    first_result = tl.where(splits > 1, results_before + tile * splits, -1)

    _store_items(
        item, items, num_items, slot, begin, first, used, tokens, position, first_key, end_key,
        first_result, which, splits,
    )  # fmt: skip
    if arrived is not None:
        # There are at least as many items as results.
        head = tl.arange(0, HEADS_PAD)[None, :]
        empty = (item < num_results)[:, None] & (head < KV_HEADS)
        tl.store(arrived + item[:, None] * KV_HEADS + head, 0, mask=empty)
