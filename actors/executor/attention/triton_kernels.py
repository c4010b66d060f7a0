"""Paged attention in Triton: a decode kernel split over the context, and a prefill kernel over chunks.

Both kernels run the same inner loop, the *online softmax* of FlashAttention (Dao et al. 2022, 2023). It walks
over the keys in tiles and keeps three numbers per query: the greatest score so far ``m``, the sum of
``2^(score - m)``, and the values summed with these weights. When a tile brings a greater score, the two sums
are rescaled, so the scores themselves never leave the chip.

A decoding row has one query, and so one program per key/value head would leave most of the GPU idle. As in
Flash-Decoding (Dao, Haziza, Massa, Sizov 2023) the context of a row is therefore cut into ``splits`` equal
parts with a program each, and a second, small kernel combines their results, each weighted by the sum of
its exponentials. ``splits`` is chosen on the host from bounds alone, so that a captured CUDA graph stays
right whatever the lengths are when it is replayed; a program whose part of the context is empty ends at once.

The query heads that share a key/value head ("group") are the rows of one tile: keys and values are read once.

With ``TRITON_INTERPRET=1`` in the environment before the first import of ``triton`` the kernels run on a CPU,
slowly, which is how they are tested without a GPU.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ....protocol.errors import InvalidRequest, ModelNotSupported
from ..cache.paged import PagedBatch

PREFILL_QUERIES = 64
"""Rows of a prefill tile: tokens times the query heads that share a key/value head."""
PROGRAMS_PER_MULTIPROCESSOR = 12
"""Decode programs to aim for: several waves, so that rows of unequal length still end together. Of 4, 6, 8,
12 and 16 within 3 % of the best on one H200, from 8 rows to 256, of equal and of spread lengths."""
MAX_SPLITS = 32
"""Bounds the scratch memory, and the tile of the kernel that combines the splits."""
ROWS_AT_ONCE = tl.constexpr(256)
"""Rows that a program looks at together to find its own."""
WRITE_TILE = 2048
"""Elements that one program copies into the cache."""

jit: Any = triton.jit
"""Untyped, because a kernel is launched with more than it declares: a grid, warps, stages."""

STEP_INPUTS = ["rows", "kv_lens", "query_start", "write_index", "block_table"]
"""Views into a step's packed inputs, at any offset. By default Triton compiles a kernel anew for another
alignment of a pointer, which would be in the middle of serving."""

LOG2E = tl.constexpr(1.4426950408889634)
MASKED = tl.constexpr(-1.0e30)
"""Score of a key that a query must not see. Finite: a tile may hide all its keys from a query, and then
the difference of two infinities would be NaN; the next visible key rescales what was summed to zero."""


@jit(do_not_specialize_on_alignment=STEP_INPUTS)
def _write_kernel(
    key,  # [T, kv_heads, DK]
    value,  # [T, kv_heads, DV]
    keys,  # [num_blocks, block_size, kv_heads, DK]
    values,  # [num_blocks, block_size, kv_heads, DV]
    write_index,  # int64 [T]
    kv_heads,
    key_token_stride,
    key_head_stride,
    value_token_stride,
    value_head_stride,
    keys_slot_stride,
    keys_head_stride,
    values_slot_stride,
    values_head_stride,
    DK: tl.constexpr,
    DV: tl.constexpr,
    DK_PAD: tl.constexpr,
    DV_PAD: tl.constexpr,
    HEADS: tl.constexpr,
):
    """Copy one token's key and value, ``HEADS`` heads of them, to its place in the cache."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    slot = tl.load(write_index + token)

    dim = tl.arange(0, DK_PAD)[None, :]
    mask = (head < kv_heads) & (dim < DK)
    row = tl.load(key + token * key_token_stride + head * key_head_stride + dim, mask=mask)
    tl.store(keys + slot * keys_slot_stride + head * keys_head_stride + dim, row, mask=mask)

    dim = tl.arange(0, DV_PAD)[None, :]
    mask = (head < kv_heads) & (dim < DV)
    row = tl.load(value + token * value_token_stride + head * value_head_stride + dim, mask=mask)
    tl.store(values + slot * values_slot_stride + head * values_head_stride + dim, row, mask=mask)


@jit
def _attend(
    q,  # [M, DK_PAD]
    q_pos,  # [M]: position of each query in its sequence
    state,  # (acc [M, DV_PAD], m [M], total [M]), float32: what earlier keys gave, scores in units of log 2
    context,  # the sequence's blocks; its head's keys: pointer, block stride, token stride; its head's values
    scale,
    lo,
    hi,
    MASK: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Online softmax of ``q`` over the keys at positions ``lo .. hi`` of one sequence and head.

    Without ``MASK`` every query sees them all, and they fill whole tiles. Returns the new state, of which
    ``acc / total`` is the output.
    """
    acc, m, total = state
    blocks, keys, keys_block_stride, keys_token_stride, values, values_block_stride, values_token_stride = (
        context
    )
    DK_PAD: tl.constexpr = q.shape[1]
    DV_PAD: tl.constexpr = acc.shape[1]
    offset = tl.arange(0, BLOCK_N)
    k_dim = tl.arange(0, DK_PAD)
    v_dim = tl.arange(0, DV_PAD)

    # The blocks of the next tile are looked up one step ahead: a load whose address is itself still being
    # loaded would halve the depth of Triton's software pipeline.
    next_block = tl.load(blocks + (lo + offset) // BLOCK_SIZE, mask=lo + offset < hi, other=0)
    for start in range(lo, hi, BLOCK_N):
        pos = start + offset
        block = next_block.to(tl.int64)
        next_pos = pos + BLOCK_N
        next_block = tl.load(blocks + next_pos // BLOCK_SIZE, mask=next_pos < hi, other=0)

        # Past the end the block table and the cache hold anything, NaN too: read zeros instead.
        inside = pos < hi
        token = pos % BLOCK_SIZE
        k_mask = inside[:, None]
        if DK < DK_PAD:
            k_mask = k_mask & (k_dim < DK)[None, :]
        v_mask = inside[:, None]
        if DV < DV_PAD:
            v_mask = v_mask & (v_dim < DV)[None, :]
        k_row = block * keys_block_stride + token * keys_token_stride
        k = tl.load(keys + k_row[:, None] + k_dim[None, :], mask=k_mask, other=0.0)
        v_row = block * values_block_stride + token * values_token_stride
        v = tl.load(values + v_row[:, None] + v_dim[None, :], mask=v_mask, other=0.0)

        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        if SOFTCAP > 0:
            # SOFTCAP * tanh(score / SOFTCAP), by way of the exponential.
            score = SOFTCAP - 2 * SOFTCAP / (tl.exp2(score * (2 * LOG2E / SOFTCAP)) + 1)
        score *= LOG2E
        if MASK:
            visible = pos[None, :] <= q_pos[:, None]
            if WINDOW > 0:
                visible = visible & (pos[None, :] > q_pos[:, None] - WINDOW)
            score = tl.where(visible, score, MASKED)

        m_new = tl.maximum(m, tl.max(score, 1))
        weight = tl.exp2(score - m_new[:, None])
        rescale = tl.exp2(m - m_new)
        total = total * rescale + tl.sum(weight, 1)
        acc = acc * rescale[:, None]
        acc = tl.dot(weight.to(v.dtype), v, acc, input_precision="ieee")
        m = m_new
    return acc, m, total


@jit(do_not_specialize_on_alignment=STEP_INPUTS)
def _decode_kernel(
    partial,  # [R, query_heads, splits, DV]; the output [T, query_heads, 1, DV] itself when there is one split
    lse,  # float32 [R, query_heads, splits]: log2 of the sum of exponentials, -inf if empty
    query,  # [T, query_heads, DK]
    keys,  # [num_blocks, block_size, kv_heads, DK]
    values,  # [num_blocks, block_size, kv_heads, DV]
    sinks,  # [query_heads] or None
    rows,  # int64 [R]
    kv_lens,  # int32 [R]
    query_start,  # int32 [R + 1]
    block_table,  # int32 [slots, max_blocks]
    scale,
    partial_row_stride,
    partial_head_stride,
    partial_split_stride,
    query_token_stride,
    query_head_stride,
    keys_block_stride,
    keys_token_stride,
    keys_head_stride,
    values_block_stride,
    values_token_stride,
    values_head_stride,
    table_stride,
    GROUP: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    SPLIT: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    DK_PAD: tl.constexpr,
    DV_PAD: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One row, one key/value head with its group of query heads, one split of the context."""
    # Heads vary fastest: programs that run together then read neighbouring memory.
    kv_head = tl.program_id(0)
    split = tl.program_id(1)
    row = tl.program_id(2)
    kv_heads = tl.num_programs(0)
    splits = tl.num_programs(1)
    token = tl.load(query_start + row)
    if tl.load(query_start + row + 1) - token != 1:
        return

    kv_len = tl.load(kv_lens + row)
    first = 0
    if WINDOW > 0:
        first = tl.maximum(kv_len - WINDOW, 0)
    span = tl.cdiv(tl.cdiv(kv_len - first, BLOCK_N), splits) * BLOCK_N
    lo = first + split * span
    hi = tl.minimum(lo + span, kv_len)

    group = tl.arange(0, GROUP_PAD)
    in_group = group < GROUP
    head = kv_head * GROUP + group
    lse += (row * kv_heads * GROUP + head) * splits + split
    if (split > 0) & (lo >= hi):
        tl.store(lse, tl.full([GROUP_PAD], float("-inf"), tl.float32), mask=in_group)
        return

    k_dim = tl.arange(0, DK_PAD)
    q_ptr = (
        query + token.to(tl.int64) * query_token_stride + head[:, None] * query_head_stride + k_dim[None, :]
    )
    q = tl.load(q_ptr, mask=in_group[:, None] & (k_dim < DK)[None, :], other=0.0).to(keys.dtype.element_ty)
    q_pos = tl.zeros([GROUP_PAD], tl.int32) + (kv_len - 1)

    m = tl.full([GROUP_PAD], float("-inf"), tl.float32)
    total = tl.zeros([GROUP_PAD], tl.float32)
    if sinks is not None:
        # A sink is a key that every query sees and whose value is zero. It must count once: in split 0.
        sink = tl.load(sinks + head, mask=in_group, other=0.0).to(tl.float32) * LOG2E
        m = tl.where(split == 0, sink, m)
        total = tl.where(split == 0, 1.0, total)

    acc = tl.zeros([GROUP_PAD, DV_PAD], tl.float32)
    context = (
        block_table + tl.load(rows + row) * table_stride,
        keys + kv_head * keys_head_stride,
        keys_block_stride,
        keys_token_stride,
        values + kv_head * values_head_stride,
        values_block_stride,
        values_token_stride,
    )
    acc, m, total = _attend(
        q,
        q_pos,
        (acc, m, total),
        context,
        scale,
        lo,
        hi,
        True,
        WINDOW,
        SOFTCAP,
        BLOCK_SIZE,
        DK,
        DV,
        BLOCK_N,
    )
    # A padding row of length 0 has nothing to sum: its output is zero.
    acc = acc / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(lse, m + tl.log2(total), mask=in_group)
    v_dim = tl.arange(0, DV_PAD)
    place = row if SPLIT else token
    partial += place.to(tl.int64) * partial_row_stride + split * partial_split_stride
    partial_ptr = partial + head[:, None] * partial_head_stride + v_dim[None, :]
    tl.store(partial_ptr, acc, mask=in_group[:, None] & (v_dim < DV)[None, :])


@jit(do_not_specialize=["splits", "query_heads"], do_not_specialize_on_alignment=STEP_INPUTS)
def _combine_kernel(
    out,  # [T, query_heads, DV]
    partial,  # float32 [R, query_heads, splits, DV]
    lse,  # float32 [R, query_heads, splits]
    query_start,  # int32 [R + 1]
    splits,
    query_heads,
    DV: tl.constexpr,
    DV_PAD: tl.constexpr,
    SPLITS_PAD: tl.constexpr,
):
    """Mean of one row's and head's splits, weighted by their sums of exponentials."""
    index = tl.program_id(0).to(tl.int64)  # row * query_heads + head
    row = index // query_heads
    token = tl.load(query_start + row)
    if tl.load(query_start + row + 1) - token != 1:
        return
    split = tl.arange(0, SPLITS_PAD)
    dim = tl.arange(0, DV_PAD)
    lse_of = tl.load(lse + index * splits + split, mask=split < splits, other=float("-inf"))
    used = lse_of != float("-inf")
    weight = tl.where(used, tl.exp2(lse_of - tl.max(lse_of, 0)), 0.0)
    # An empty split has written no output: do not read it.
    part_ptr = partial + ((index * splits + split) * DV)[:, None] + dim[None, :]
    part = tl.load(part_ptr, mask=used[:, None] & (dim < DV)[None, :], other=0.0)
    # The greatest weight is 1, so the sum is at least that; for a padding row of length 0 it is 0.
    mean = tl.sum(part * weight[:, None], 0) / tl.maximum(tl.sum(weight, 0), 1.0)
    out += (token.to(tl.int64) * query_heads + index % query_heads) * DV
    tl.store(out + dim, mean, mask=dim < DV)


@jit(do_not_specialize=["num_rows", "num_tokens"], do_not_specialize_on_alignment=STEP_INPUTS)
def _prefill_kernel(
    out,  # [T, query_heads, DV]
    query,  # [T, query_heads, DK]
    keys,  # [num_blocks, block_size, kv_heads, DK]
    values,  # [num_blocks, block_size, kv_heads, DV]
    sinks,  # [query_heads] or None
    rows,  # int64 [R]
    kv_lens,  # int32 [R]
    query_start,  # int32 [R + 1]
    block_table,  # int32 [slots, max_blocks]
    scale,
    num_rows,  # R
    num_tokens,  # T
    out_token_stride,
    out_head_stride,
    query_token_stride,
    query_head_stride,
    keys_block_stride,
    keys_token_stride,
    keys_head_stride,
    values_block_stride,
    values_token_stride,
    values_head_stride,
    table_stride,
    GROUP: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    DK_PAD: tl.constexpr,
    DV_PAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """``BLOCK_M // GROUP`` tokens of one row that has several, with all query heads of one key/value head.

    Every row gets one tile more than its tokens fill, so that the row of a tile follows from where the rows
    start. The tokens that belong to no row are the tiles of one more row; they become zeros.
    """
    TOKENS: tl.constexpr = BLOCK_M // GROUP
    # The last tokens see the most keys: they start first, so that no long program runs alone at the end.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    kv_head = tl.program_id(1)
    row = -1
    for start in range(0, num_rows + 1, ROWS_AT_ONCE):
        candidate = start + tl.arange(0, ROWS_AT_ONCE)
        there = candidate <= num_rows
        first_tile = tl.load(query_start + candidate, mask=there, other=0) // TOKENS + candidate
        row += tl.sum((there & (first_tile <= tile)).to(tl.int32), 0)  # type: ignore[operator]
    begin = tl.load(query_start + row)
    first_token = (tile - begin // TOKENS - row) * TOKENS
    if row == num_rows:
        index = first_token + tl.arange(0, BLOCK_M)[:, None] // GROUP
        dim = tl.arange(0, DV_PAD)[None, :]
        place = (begin + index).to(tl.int64)
        head = kv_head * GROUP + tl.arange(0, BLOCK_M)[:, None] % GROUP
        inside = (tl.arange(0, BLOCK_M)[:, None] < TOKENS * GROUP) & (place < num_tokens) & (dim < DV)
        zero = tl.zeros([BLOCK_M, DV_PAD], out.dtype.element_ty)
        tl.store(out + place * out_token_stride + head * out_head_stride + dim, zero, mask=inside)
        return
    count = tl.load(query_start + row + 1) - begin
    if (count < 2) | (first_token >= count):
        return

    kv_len = tl.load(kv_lens + row)
    index = tl.arange(0, BLOCK_M)
    token = first_token + index // GROUP
    head = kv_head * GROUP + index % GROUP
    valid = (index < TOKENS * GROUP) & (token < count)
    q_pos = kv_len - count + token
    hi = tl.minimum(kv_len - count + first_token + TOKENS, kv_len)
    lo = 0
    if WINDOW > 0:
        lo = tl.maximum(kv_len - count + first_token - WINDOW + 1, 0)

    k_dim = tl.arange(0, DK_PAD)
    place = (begin + token).to(tl.int64)
    q_ptr = query + (place * query_token_stride + head * query_head_stride)[:, None] + k_dim[None, :]
    q = tl.load(q_ptr, mask=valid[:, None] & (k_dim < DK)[None, :], other=0.0).to(keys.dtype.element_ty)
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    if sinks is not None:
        m = tl.load(sinks + head, mask=valid, other=0.0).to(tl.float32) * LOG2E
        total += 1.0

    acc = tl.zeros([BLOCK_M, DV_PAD], tl.float32)
    context = (
        block_table + tl.load(rows + row) * table_stride,
        keys + kv_head * keys_head_stride,
        keys_block_stride,
        keys_token_stride,
        values + kv_head * values_head_stride,
        values_block_stride,
        values_token_stride,
    )
    if WINDOW == 0:
        # Most tiles lie before the first query: all queries see all of them, and nothing need be masked.
        before = (kv_len - count + first_token + 1) // BLOCK_N * BLOCK_N
        acc, m, total = _attend(
            q,
            q_pos,
            (acc, m, total),
            context,
            scale,
            0,
            before,
            False,
            WINDOW,
            SOFTCAP,
            BLOCK_SIZE,
            DK,
            DV,
            BLOCK_N,
        )
        lo = before
    acc, m, total = _attend(
        q,
        q_pos,
        (acc, m, total),
        context,
        scale,
        lo,
        hi,
        True,
        WINDOW,
        SOFTCAP,
        BLOCK_SIZE,
        DK,
        DV,
        BLOCK_N,
    )
    v_dim = tl.arange(0, DV_PAD)
    out_ptr = out + (place * out_token_stride + head * out_head_stride)[:, None] + v_dim[None, :]
    tl.store(out_ptr, acc / total[:, None], mask=valid[:, None] & (v_dim < DV)[None, :])


class Tile(NamedTuple):
    """Shape of a kernel's step: keys, and the warps and pipeline stages that Triton runs it with."""

    keys: int
    warps: int
    stages: int


# The figures are the best of a sweep on one H200. ``dims``: padded sizes of a key and a value together.


def decode_tile(dims: int, dtype: torch.dtype) -> Tile:
    """About 32 KiB in flight per stage: memory is the limit. Float32 needs more registers, so more warps."""
    keys = _floor_power_of_2(32768 // (dims * dtype.itemsize))
    return Tile(keys=max(16, min(128, keys)), warps=8 if dtype == torch.float32 else 4, stages=3)


def prefill_tile(dims: int, dtype: torch.dtype, shared_memory: int) -> Tile:
    """As for decode; ``shared_memory`` of a multiprocessor decides whether a third stage has room."""
    keys = _floor_power_of_2(32768 // (dims * dtype.itemsize))
    return Tile(
        keys=max(16, min(64, keys)),
        warps=8 if dtype == torch.float32 else 4,
        stages=3 if shared_memory >= 160 << 10 else 2,
    )


class TritonAttention:
    """Attention backend ``triton``: our kernels, on any GPU that Triton compiles for.

    Float32, bfloat16 and float16 caches, sums in float32; head sizes 1 to 256, different ones for keys and
    values; any block size; grouped query heads, sliding window, softcap and sinks. A call launches at most
    four kernels, does not wait for the device, and can be captured in a CUDA graph.
    """

    name = "triton"
    capturable = True

    def __init__(self, splits: int | None = None) -> None:
        """``splits`` fixes the number of parts that a decoding row's context is cut into (default: chosen
        per call from the number of rows and heads, the bound on the context and the multiprocessors).

        Raises InvalidRequest where the kernels cannot run.
        """
        if not torch.cuda.is_available() and not interpreted():
            raise InvalidRequest(
                "attention backend 'triton' needs a GPU, and torch sees none: choose another backend, or set "
                "TRITON_INTERPRET=1 before the start to run the kernels on the CPU, slowly, for a test"
            )
        self._splits = splits

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layer: int,
        batch: PagedBatch,
        *,
        scale: float,
        sliding_window: int | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Write ``key`` and ``value`` into the cache of ``layer``, then attend to each row's context.

        ``query [T, Hq, DK]``, ``key [T, Hkv, DK]`` and ``value [T, Hkv, DV]`` may be views whose last
        dimension is dense; ``sinks [Hq]`` are extra scores in the denominator. A query at position ``p`` sees
        the keys at ``p`` and before, the last ``sliding_window`` of them if given. Returns ``[T, Hq, DV]`` in
        the dtype of ``query``.

        Raises ValueError for shapes that do not belong together, ModelNotSupported for heads over 256.
        """
        keys, values = batch.cache.keys[layer], batch.cache.values[layer]
        tokens, query_heads, key_dim = query.shape
        kv_heads, value_dim = values.shape[2], values.shape[3]
        if query_heads % kv_heads or key.shape != (tokens, kv_heads, key_dim) or keys.shape[3] != key_dim:
            raise ValueError(
                f"query {list(query.shape)}, key {list(key.shape)}, cache {list(keys.shape)} do not match:"
                " the query heads must be a multiple of the key/value heads, and the head sizes equal"
            )
        if max(key_dim, value_dim) > 256:
            raise ModelNotSupported(
                f"attention backend 'triton' takes head sizes up to 256, not {key_dim} and {value_dim}"
            )
        if keys.dtype == torch.bfloat16 and interpreted():
            raise InvalidRequest(
                "Triton's interpreter multiplies bfloat16 wrongly: use float32 or float16 there"
            )
        query, key, value = _dense(query), _dense(key), _dense(value)
        self._write(key, value, keys, values, batch.write_index)

        out = query.new_empty(tokens, query_heads, value_dim)
        shape = {
            "GROUP": query_heads // kv_heads,
            "WINDOW": sliding_window or 0,
            "SOFTCAP": softcap or 0.0,
            "BLOCK_SIZE": keys.shape[1],
            "DK": key_dim,
            "DV": value_dim,
            "DK_PAD": _pad(key_dim),
            "DV_PAD": _pad(value_dim),
        }
        if len(batch.rows):
            self._decode(out, query, keys, values, sinks, batch, scale, shape)
        if not batch.decode_only:
            self._prefill(out, query, keys, values, sinks, batch, scale, shape)
        return out

    def _write(self, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, write_index: Tensor) -> None:
        tokens, kv_heads, key_dim = key.shape
        value_dim = value.shape[2]
        widest = max(_pad(key_dim), _pad(value_dim))
        heads = min(triton.next_power_of_2(kv_heads), max(1, WRITE_TILE // widest))
        _write_kernel[(tokens, triton.cdiv(kv_heads, heads))](
            key,
            value,
            keys,
            values,
            write_index,
            kv_heads,
            *key.stride()[:2],
            *value.stride()[:2],
            *keys.stride()[1:3],
            *values.stride()[1:3],
            DK=key_dim,
            DV=value_dim,
            DK_PAD=_pad(key_dim),
            DV_PAD=_pad(value_dim),
            HEADS=heads,
        )

    def _decode(
        self,
        out: Tensor,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        sinks: Tensor | None,
        batch: PagedBatch,
        scale: float,
        shape: dict[str, int | float],
    ) -> None:
        rows, query_heads, kv_heads = len(batch.rows), query.shape[1], keys.shape[2]
        value_dim = values.shape[3]
        tile = decode_tile(_dims(shape), keys.dtype)
        reach = max(1, min(batch.max_kv_len, int(shape["WINDOW"]) or batch.max_kv_len))
        splits = self._splits or choose_splits(
            rows * kv_heads, triton.cdiv(reach, tile.keys), _processor(query.device).multiprocessors
        )
        lse = query.new_empty((rows, query_heads, splits), dtype=torch.float32)
        if splits == 1:
            partial = out.unsqueeze(2)
        else:
            partial = query.new_empty((rows, query_heads, splits, value_dim), dtype=torch.float32)
        _decode_kernel[(kv_heads, splits, rows)](
            partial,
            lse,
            query,
            keys,
            values,
            sinks,
            batch.rows,
            batch.kv_lens,
            batch.query_start,
            batch.block_table,
            scale,
            *partial.stride()[:3],
            *query.stride()[:2],
            *keys.stride()[:3],
            *values.stride()[:3],
            batch.block_table.stride(0),
            **shape,
            GROUP_PAD=_pad(int(shape["GROUP"])),
            SPLIT=splits > 1,
            BLOCK_N=tile.keys,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
        if splits > 1:
            _combine_kernel[(rows * query_heads,)](
                out,
                partial,
                lse,
                batch.query_start,
                splits,
                query_heads,
                DV=value_dim,
                DV_PAD=shape["DV_PAD"],
                SPLITS_PAD=triton.next_power_of_2(splits),
            )

    def _prefill(
        self,
        out: Tensor,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        sinks: Tensor | None,
        batch: PagedBatch,
        scale: float,
        shape: dict[str, int | float],
    ) -> None:
        tile = prefill_tile(_dims(shape), keys.dtype, _processor(query.device).shared_memory)
        group = int(shape["GROUP"])
        queries = max(PREFILL_QUERIES, triton.next_power_of_2(group))
        tiles = query.shape[0] // (queries // group) + len(batch.rows) + 1
        _prefill_kernel[(tiles, keys.shape[2])](
            out,
            query,
            keys,
            values,
            sinks,
            batch.rows,
            batch.kv_lens,
            batch.query_start,
            batch.block_table,
            scale,
            len(batch.rows),
            query.shape[0],
            *out.stride()[:2],
            *query.stride()[:2],
            *keys.stride()[:3],
            *values.stride()[:3],
            batch.block_table.stride(0),
            **shape,
            BLOCK_M=queries,
            BLOCK_N=tile.keys,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )


def choose_splits(programs: int, tiles: int, multiprocessors: int) -> int:
    """Parts to cut each row's context into, for ``programs`` rows times heads of at most ``tiles`` tiles.

    All three are bounds known to the host; the lengths themselves are only on the device.
    """
    wanted = triton.cdiv(PROGRAMS_PER_MULTIPROCESSOR * multiprocessors, programs)
    return max(1, min(wanted, tiles, MAX_SPLITS))


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on the CPU."""
    return not isinstance(_attend, triton.JITFunction)


class _Processor(NamedTuple):
    multiprocessors: int
    shared_memory: int


@lru_cache
def _processor(device: torch.device) -> _Processor:
    if device.type != "cuda":
        return _Processor(1, 0)
    properties = torch.cuda.get_device_properties(device)
    return _Processor(properties.multi_processor_count, properties.shared_memory_per_multiprocessor)


def _dims(shape: dict[str, int | float]) -> int:
    return int(shape["DK_PAD"]) + int(shape["DV_PAD"])


def _dense(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _pad(size: int) -> int:
    """The matrix unit takes powers of two, from 16."""
    return max(16, triton.next_power_of_2(size))


def _floor_power_of_2(size: int) -> int:
    return 1 << (size.bit_length() - 1)
