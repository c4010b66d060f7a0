"""The Triton kernel that attends: one item of a partition a program.

The query heads that share a key/value head ("group") are rows of one tile: keys and values are read once.

If the keys of a tile are in several splits, the program that ends last combines their results (the "fix-up" of
Stream-K, Osama et al. 2023). It does so in the order of the keys, so the output does not depend on which program that
is. A kernel of its own for that took longer than attention itself where contexts are short.
"""

from __future__ import annotations

import triton.language as tl

from ..triton_tools.kernel import follow, jit
from .triton_common import STEP_INPUTS, first_seen
from .triton_partition_kernel import ITEM_FIELDS
from .triton_softmax import LOG2E, attend


@jit
def _combine(
    results,
    result_sums,
    queries,  # [M]: the places of the first split's queries
    valid,  # [M]
    splits,
    STRIDE: tl.constexpr,  # from a query to the same one in the next split
    DV: tl.constexpr,
    DV_PAD: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """Mean [M, DV_PAD] of the splits of one tile, weighted by their sums of exponentials; ``AT_ONCE`` loads at a time.

    Other multiprocessors wrote them: they are read past the first-level cache.
    """
    dim = tl.arange(0, DV_PAD)[None, :]
    m = tl.full([queries.shape[0]], float("-inf"), tl.float32)
    total = tl.zeros([queries.shape[0]], tl.float32)
    acc = tl.zeros([queries.shape[0], DV_PAD], tl.float32)
    for start in range(0, splits, AT_ONCE):
        for which in tl.static_range(AT_ONCE):  # type: ignore[attr-defined]
            split = start + which + tl.zeros([queries.shape[0]], tl.int32)
            known = valid & (split < splits)
            place = queries + split * STRIDE
            sums = tl.load(result_sums + place, mask=known, other=float("-inf"), cache_modifier=".cg")
            pointer = results + (place * DV)[:, None] + dim
            mean = tl.load(pointer, mask=known[:, None] & (dim < DV), other=0.0, cache_modifier=".cg")
            # A split without a key that the query sees has a sum of no weight, or none; another's is finite.
            m_new = tl.maximum(m, sums)
            weight = tl.where(sums == float("-inf"), 0.0, tl.exp2(sums - m_new))
            rescale = tl.where(m == float("-inf"), 0.0, tl.exp2(m - m_new))
            total = total * rescale + weight
            acc = acc * rescale[:, None] + mean * weight[:, None]
            m = m_new
    return acc / tl.where(total > 0, total, 1.0)[:, None]


@jit
def places_of(index, kv_head, first, tokens, GROUP: tl.constexpr, TOKENS: tl.constexpr):
    """Where the queries ``index`` [M] of an item are: query head, token in the step, and whether there is such a
    query."""
    token = index // GROUP
    head = (kv_head * GROUP + index % GROUP).to(tl.int64)
    return head, (first + token).to(tl.int64), (index < TOKENS * GROUP) & (token < tokens)


@jit
def load_queries(
    rows,
    valid,
    scale,
    keys,
    key_scales,
    kv_head,
    DK: tl.constexpr,
    DK_PAD: tl.constexpr,
    STRIDE: tl.constexpr,
):
    """The queries [M, DK_PAD] that begin at the pointers ``rows`` [M, 1], every ``STRIDE``-th number, and the scale of
    their scores."""
    k_dim = tl.arange(0, DK_PAD)
    q = tl.load(rows + (k_dim * STRIDE)[None, :], mask=valid[:, None] & (k_dim < DK)[None, :], other=0.0)
    if key_scales is None:
        q = q.to(keys.dtype.element_ty)
    else:
        q = q.to(tl.float16)
        scale *= tl.load(key_scales + kv_head)
    return q, scale


@jit
def keys_of(items):
    """The range of an item: its slot, first token, position of that, first key, and last key + 1."""
    slot = tl.load(items).to(tl.int64)
    first = tl.load(items + 1)
    position = tl.load(items + 3)
    lo = tl.load(items + 4)
    hi = tl.load(items + 5)
    return slot, first, position, lo, hi


@jit
def _before_keys(items, sinks, head, valid):
    """``m`` and ``total`` [M] of an item before its first key. A sink is a key that every query sees and whose value is
    zero. It must count once: in the first split."""
    m = tl.full([head.shape[0]], float("-inf"), tl.float32)
    total = tl.zeros([head.shape[0]], tl.float32)
    if sinks is not None:
        sink = tl.load(sinks + head, mask=valid, other=0.0).to(tl.float32) * LOG2E
        is_first = tl.load(items + 7) == 0
        m = tl.where(is_first, sink, m)
        total = tl.where(is_first, 1.0, total)
    return m, total


@jit
def _attend_all(
    q,
    q_pos,
    state,
    context,
    scale,
    lo,
    hi,
    position,
    tokens,
    WINDOW: tl.constexpr,
    CHUNKED: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    KV_HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """`attend` over all keys of an item. Most of them lie before the first query and inside the window of the last:
    nothing of these need be masked."""
    acc, m, total = state
    if TOKENS > 1:
        if WINDOW > 0:
            last = first_seen(position + tokens - 1, WINDOW, CHUNKED)
            hidden = tl.minimum(tl.maximum(last - lo, 0), tl.maximum(hi - lo, 0))
            edge = lo + tl.cdiv(hidden, BLOCK_N) * BLOCK_N
            acc, m, total = attend(
                q, q_pos, (acc, m, total), context, scale, lo, tl.minimum(edge, hi),
                True, WINDOW, CHUNKED, SOFTCAP, BLOCK_SIZE, DK, DV, KV_HEADS, BLOCK_N,
            )  # fmt: skip
            lo = edge
        whole = tl.maximum(tl.minimum(position + 1, hi) - lo, 0) // BLOCK_N * BLOCK_N
        acc, m, total = attend(
            q, q_pos, (acc, m, total), context, scale, lo, lo + whole,
            False, WINDOW, CHUNKED, SOFTCAP, BLOCK_SIZE, DK, DV, KV_HEADS, BLOCK_N,
        )  # fmt: skip
        lo += whole
    return attend(
        q, q_pos, (acc, m, total), context, scale, lo, hi,
        True, WINDOW, CHUNKED, SOFTCAP, BLOCK_SIZE, DK, DV, KV_HEADS, BLOCK_N,
    )  # fmt: skip


@jit
def _store_split(
    out_ptr,  # [M, DV_PAD]
    results,
    result_sums,
    arrived,
    items,
    kv_head,
    valid,
    mean,  # [M, DV_PAD] of this split
    m,  # [M], and ``total``, as in `attend`
    total,
    TILE: tl.constexpr,  # queries of a tile
    DV: tl.constexpr,
    KV_HEADS: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """Store what an item gives where its tile is in several splits; the program that comes last combines them."""
    first_result = tl.load(items + 6)
    v_dim = tl.arange(0, mean.shape[1])
    mask = valid[:, None] & (v_dim < DV)[None, :]
    if first_result >= 0:
        split = tl.load(items + 7)
        splits = tl.load(items + 8)
        query_of = first_result.to(tl.int64) * KV_HEADS + kv_head
        queries = query_of * TILE + tl.arange(0, valid.shape[0])
        mine = queries + split * (KV_HEADS * TILE)
        tl.store(result_sums + mine, m + tl.log2(total), mask=valid)
        tl.store(results + (mine * DV)[:, None] + v_dim[None, :], mean, mask=mask)
        # What all threads of this program have stored is there before it says so, by one of them.
        tl.debug_barrier()
        before = tl.atomic_add(arrived + query_of, 1, sem="acq_rel")
        if before == splits - 1:
            mean = _combine(
                results, result_sums, queries, valid, splits, KV_HEADS * TILE, DV, mean.shape[1], AT_ONCE
            )
            tl.store(out_ptr, mean, mask=mask)
            tl.store(arrived + query_of, 0)  # for the next layer
    else:
        tl.store(out_ptr, mean, mask=mask)


@jit(do_not_specialize_on_alignment=STEP_INPUTS)
def attend_kernel(
    out,  # [T, query_heads, DV]
    results,  # float32 [results, kv_heads, TOKENS * GROUP, DV] or None: of the splits of tiles in several
    result_sums,  # float32 [results, kv_heads, TOKENS * GROUP] or None: log2 of the sum of exponentials
    arrived,  # int32 [results, kv_heads] or None: at a tile's first result, how many of its splits have theirs
    query,  # [T, query_heads, DK]
    keys,  # [num_blocks, block_size, kv_heads, DK], or int16 […, DK / 2] to be read in pairs
    values,  # the same with DV
    key_scales,  # float32 [kv_heads] of an FP8 cache, or None
    value_scales,
    sinks,  # [query_heads] or None
    items,  # int32 [items, ITEM_FIELDS]
    block_table,  # int32 [slots, max_blocks]
    scale,
    query_token_stride,
    query_head_stride,
    table_stride,
    GROUP: tl.constexpr,
    WINDOW: tl.constexpr,
    CHUNKED: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    DK_PAD: tl.constexpr,
    DV_PAD: tl.constexpr,
    KV_HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    AT_ONCE: tl.constexpr,  # splits that are loaded before they are added up
):
    """One item: ``TOKENS * GROUP`` queries, of ``BLOCK_M``, over a split of their keys. Grid: (kv_heads, items)."""
    follow()
    # Heads vary fastest: programs that run together then read neighbouring memory. The last tiles of a row see
    # the most keys: they start first, so that no long program runs alone at the end.
    kv_head = tl.program_id(0)
    items += (tl.num_programs(1) - 1 - tl.program_id(1)) * ITEM_FIELDS
    tokens = tl.load(items + 2)
    if tokens == 0:
        return
    slot, first, position, lo, hi = keys_of(items)

    index = tl.arange(0, BLOCK_M)
    head, place, valid = places_of(index, kv_head, first, tokens, GROUP, TOKENS)
    q_pos = position + index // GROUP
    rows = query + (place * query_token_stride + head * query_head_stride)[:, None]
    PAIRS: tl.constexpr = keys.dtype.element_ty == tl.int16
    if PAIRS:
        even, _ = load_queries(rows, valid, scale, keys, key_scales, kv_head, DK // 2, DK_PAD // 2, 2)
        odd, scale = load_queries(rows + 1, valid, scale, keys, key_scales, kv_head, DK // 2, DK_PAD // 2, 2)
        q = (even, odd)
        nothing = tl.zeros([BLOCK_M, DV_PAD // 2], tl.float32)
        acc = (nothing, nothing)
    else:
        whole_rows, scale = load_queries(rows, valid, scale, keys, key_scales, kv_head, DK, DK_PAD, 1)
        q = (whole_rows,)
        acc = (tl.zeros([BLOCK_M, DV_PAD], tl.float32),)

    m, total = _before_keys(items, sinks, head, valid)
    context = (
        block_table + slot * table_stride,
        keys + kv_head * (DK // 2 if PAIRS else DK),
        values + kv_head * (DV // 2 if PAIRS else DV),
    )
    acc, m, total = _attend_all(
        q, q_pos, (acc, m, total), context, scale, lo, hi, position, tokens,
        WINDOW, CHUNKED, SOFTCAP, BLOCK_SIZE, DK, DV, KV_HEADS, TOKENS, BLOCK_N,
    )  # fmt: skip

    mean = tl.interleave(acc[0], acc[1]) if PAIRS else acc[0]
    # Where there was no key, as for a token that belongs to no row, the output is zero.
    mean = mean / tl.where(total > 0, total, 1.0)[:, None]
    if value_scales is not None:
        mean *= tl.load(value_scales + kv_head)
    v_dim = tl.arange(0, DV_PAD)
    out_ptr = out + ((place * (KV_HEADS * GROUP) + head) * DV)[:, None] + v_dim[None, :]
    if results is not None:
        _store_split(
            out_ptr, results, result_sums, arrived, items, kv_head, valid, mean, m, total,
            TOKENS * GROUP, DV, KV_HEADS, AT_ONCE,
        )  # fmt: skip
    else:
        tl.store(out_ptr, mean, mask=valid[:, None] & (v_dim < DV)[None, :])
