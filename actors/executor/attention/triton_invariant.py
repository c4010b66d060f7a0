"""Batch-invariant attention backend ``triton``: a token's result does not depend on the rest of its step.

The keys of a sequence are cut into *splits* of a fixed number, counted from its first position. Each split gives a mean
of its values, and the means are combined in the order of the keys. Whether a split has its own program, as with few
rows that decode, or one program goes through all splits, as with the tokens of a prompt, every number is made of the
same numbers by the same operations:

- within a split keys are taken by iterations of a fixed number; what a query must not see has a weight of exactly zero;
- sums over keys are made by the matrix unit alone, whose order is that of the keys, not by threads among themselves;
- where a product is added to, one rounding or two is not left to the compiler.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..cache.paged_batch import PagedBatch
from ..triton_tools.kernel import FOLLOWING, follow, jit
from .triton_attend import keys_of, load_queries, places_of
from .triton_backend import TritonAttention, device_limits
from .triton_common import STEP_INPUTS, first_seen, pad, pad_value
from .triton_partition import MAX_SPLITS, WorkPartition, partition_work
from .triton_partition_kernel import ITEM_FIELDS
from .triton_softmax import LOG2E, MASKED, softcapped

MIN_SPLIT = 512
"""Least number of keys in a split: shorter splits cost more to combine than to compute. The length follows from the
longest context of the service, never from a step, so that a token's sum is always cut alike."""


class LaunchConfig(NamedTuple):
    """The launch configuration of the kernel. Only ``keys`` matters for the bits."""

    queries: int
    warps: int
    stages: int


KEYS = {1: 64, 2: 64, 4: 32}
"""Keys of one iteration of the inner loop, by the bytes of a number in the cache."""

SINGLE, SEVERAL = LaunchConfig(16, 4, 3), LaunchConfig(64, 4, 2)
"""For rows with one token, and for all others; of some the fastest on an H200."""


@jit
def _mean_of_split(
    q,  # [M, DK_PAD]
    q_pos,  # [M]: position of each query in its sequence
    context,  # pointers: the sequence's blocks, its head's first key and first value in the cache
    scale,
    lo,
    hi,
    WINDOW: tl.constexpr,
    CHUNKED: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    DV_PAD: tl.constexpr,
    KV_HEADS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The mean [M, DV_PAD] of the values at ``lo .. hi``, weighted by ``2^score``, and log2 of the sum of weights.

    The online softmax of `triton_softmax`. A query that sees none of them gets something of next to no weight.
    """
    blocks, keys, values = context
    k_dim = tl.arange(0, q.shape[1])[None, :]
    v_dim = tl.arange(0, DV_PAD)[None, :]
    offset = tl.arange(0, BLOCK_N)
    ones = tl.full([BLOCK_N, 16], 1.0, q.dtype)
    m = tl.full([q.shape[0]], float("-inf"), tl.float32)
    total = tl.zeros([q.shape[0], 16], tl.float32)
    acc = tl.zeros([q.shape[0], DV_PAD], tl.float32)
    # The blocks of the next tile are looked up one iteration ahead, as in `triton_softmax`.
    next_block = tl.load(blocks + (lo + offset) // BLOCK_SIZE, mask=lo + offset < hi, other=0)
    for start in range(lo, hi, BLOCK_N):
        pos = start + offset
        block = next_block
        following = pos + BLOCK_N
        next_block = tl.load(blocks + following // BLOCK_SIZE, mask=following < hi, other=0)
        place = (block * BLOCK_SIZE + pos % BLOCK_SIZE).to(tl.int64)[:, None]
        # Past the end the block table and the cache hold anything, NaN too: read zeros instead.
        inside = (pos < hi)[:, None]
        k = tl.load(keys + place * (KV_HEADS * DK) + k_dim, mask=inside & (k_dim < DK), other=0.0)
        v = tl.load(values + place * (KV_HEADS * DV) + v_dim, mask=inside & (v_dim < DV), other=0.0)
        score = tl.dot(q, tl.trans(k.to(q.dtype)), input_precision="ieee")
        if SOFTCAP > 0:
            score = softcapped(score, scale, SOFTCAP)
            score = score * LOG2E
        else:
            score = score * (scale * LOG2E)
        visible = pos[None, :] <= q_pos[:, None]
        if WINDOW > 0:
            visible = visible & (pos[None, :] >= first_seen(q_pos, WINDOW, CHUNKED)[:, None])
        score = tl.where(visible, score, MASKED)
        m_new = tl.maximum(m, tl.max(score, 1))
        weight = tl.exp2(score - m_new[:, None]).to(q.dtype)
        rescale = tl.exp2(m - m_new)[:, None]
        total = tl.dot(weight, ones, total * rescale, input_precision="ieee")
        acc = tl.dot(weight, v.to(q.dtype), acc * rescale, input_precision="ieee")
        m = m_new
    summed = tl.max(total, 1)  # all columns are the same
    return acc / summed[:, None], m + tl.log2(summed)  # type: ignore[index]


@jit
def _with_split(state, mean, sums):
    """``state`` with one split more: its values, all weights, and the greatest ``sums`` until now."""
    acc, total, m = state
    m_new = tl.maximum(m, sums)
    weight = tl.where(sums == float("-inf"), 0.0, tl.exp2(sums - m_new))
    rescale = tl.where(m == float("-inf"), 0.0, tl.exp2(m - m_new))
    total = tl.fma(total, rescale, weight)
    acc = tl.fma(mean, weight[:, None] + tl.zeros_like(mean), acc * rescale[:, None])
    return acc, total, m_new


@jit
def _with_all_splits(
    state,
    results,
    result_sums,
    queries,  # [M]: the places of the first split's queries
    splits,
    valid,  # [M]
    mask,  # [M, DV_PAD]
    STRIDE: tl.constexpr,  # from a query to the same one in the next split
    DV: tl.constexpr,
    DV_PAD: tl.constexpr,
):
    """``state`` with what the programs of all splits have stored.

    Other multiprocessors wrote it: it is read past the first-level cache.
    """
    v_dim = tl.arange(0, DV_PAD)
    acc, total, m = state
    for split in range(0, splits):
        theirs = queries + split * STRIDE
        sums = tl.load(result_sums + theirs, mask=valid, other=0.0, cache_modifier=".cg")
        pointer = results + (theirs * DV)[:, None] + v_dim[None, :]
        mean = tl.load(pointer, mask=mask, other=0.0, cache_modifier=".cg")
        acc, total, m = _with_split((acc, total, m), mean, sums)
    return acc, total, m


@jit
def _nothing_yet(sinks, head, valid, DV_PAD: tl.constexpr):
    """The state before the first split. A sink is a key that every query sees and whose value is zero."""
    acc = tl.zeros([head.shape[0], DV_PAD], tl.float32)
    m = tl.full([head.shape[0]], float("-inf"), tl.float32)
    total = tl.zeros([head.shape[0]], tl.float32)
    if sinks is not None:
        m = tl.load(sinks + head, mask=valid, other=0.0).to(tl.float32) * LOG2E
        total += 1.0
    return acc, total, m


@jit(do_not_specialize_on_alignment=STEP_INPUTS)
def attend_in_order_kernel(
    out,  # [T, query_heads, DV]
    results,  # float32 [results, kv_heads, TOKENS * GROUP, DV] or None: of the splits of tiles in several
    result_sums,  # float32 [results, kv_heads, TOKENS * GROUP] or None: log2 of the sum of exponentials
    arrived,  # int32 [results, kv_heads] or None: at a tile's first result, how many of its splits have theirs
    query,  # [T, query_heads, DK]
    keys,  # [num_blocks, block_size, kv_heads, DK]
    values,  # [num_blocks, block_size, kv_heads, DV]
    key_scales,  # float32 [kv_heads] of an FP8 cache, or None
    value_scales,
    sinks,  # [query_heads] or None
    items,  # int32 [items, ITEM_FIELDS]
    block_table,  # int32 [slots, max_blocks]
    scale,
    query_token_stride,
    query_head_stride,
    table_stride,
    SPLIT: tl.constexpr,
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
):
    """One item: ``TOKENS * GROUP`` queries, of ``BLOCK_M``, over one split of their keys or all.

    Grid: (kv_heads, items).
    """
    follow()
    kv_head = tl.program_id(0)
    items += (tl.num_programs(1) - 1 - tl.program_id(1)) * ITEM_FIELDS
    tokens = tl.load(items + 2)
    if tokens == 0:
        return
    slot, first, position, lo, hi = keys_of(items)

    index = tl.arange(0, BLOCK_M)
    head, place, valid = places_of(index, kv_head, first, tokens, GROUP, TOKENS)
    q_pos = position + index // GROUP
    v_dim = tl.arange(0, DV_PAD)
    rows = query + (place * query_token_stride + head * query_head_stride)[:, None]
    q, scale = load_queries(rows, valid, scale, keys, key_scales, kv_head, DK, DK_PAD, 1)
    context = (block_table + slot * table_stride, keys + kv_head * DK, values + kv_head * DV)
    mask = valid[:, None] & (v_dim < DV)[None, :]

    acc, total, m = _nothing_yet(sinks, head, valid, DV_PAD)
    splits = 1
    if results is not None:
        splits = tl.load(items + 8)
    last = True
    if splits > 1:
        mean, sums = _mean_of_split(
            q, q_pos, context, scale, lo, hi,
            WINDOW, CHUNKED, SOFTCAP, BLOCK_SIZE, DK, DV, DV_PAD, KV_HEADS, BLOCK_N,
        )  # fmt: skip
        if results is not None:
            query_of = tl.load(items + 6).to(tl.int64) * KV_HEADS + kv_head
            queries = query_of * (TOKENS * GROUP) + index
            stride: tl.constexpr = KV_HEADS * TOKENS * GROUP
            mine = queries + tl.load(items + 7) * stride
            tl.store(result_sums + mine, sums, mask=valid)
            tl.store(results + (mine * DV)[:, None] + v_dim[None, :], mean, mask=mask)
            # What all threads of this program have stored is there before it says so, by one of them.
            tl.debug_barrier()
            last = tl.atomic_add(arrived + query_of, 1, sem="acq_rel") == splits - 1
            if last:
                acc, total, m = _with_all_splits(
                    (acc, total, m), results, result_sums, queries, splits, valid, mask, stride, DV, DV_PAD
                )
                tl.store(arrived + query_of, 0)  # for the next layer
    else:
        for begin in range(lo // SPLIT * SPLIT, hi, SPLIT):
            mean, sums = _mean_of_split(
                q, q_pos, context, scale, tl.maximum(begin, lo), tl.minimum(begin + SPLIT, hi),
                WINDOW, CHUNKED, SOFTCAP, BLOCK_SIZE, DK, DV, DV_PAD, KV_HEADS, BLOCK_N,
            )  # fmt: skip
            acc, total, m = _with_split((acc, total, m), mean, sums)
    if last:
        # Where there was no key, as for a token that belongs to no row, the output is zero.
        acc = acc / tl.where(total > 0, total, 1.0)[:, None]
        if value_scales is not None:
            acc *= tl.load(value_scales + kv_head)
        out_ptr = out + ((place * (KV_HEADS * GROUP) + head) * DV)[:, None] + v_dim[None, :]
        tl.store(out_ptr, acc.to(out.dtype.element_ty), mask=mask)


class InvariantTritonAttention(TritonAttention):
    """As `TritonAttention`, with sums of one order."""

    single, several = SINGLE, SEVERAL
    keys: Mapping[int, int] = KEYS
    least_split = MIN_SPLIT

    def _attend(
        self,
        out: Tensor,
        query: Tensor,
        layer: int,
        batch: PagedBatch,
        scale: float,
        window: int,
        chunked: bool,
        softcap: float,
        sinks: Tensor | None,
        single: bool,
    ) -> None:
        keys, values = batch.cache.keys[layer], batch.cache.values[layer]
        scales = batch.cache.scales_of(layer)
        block_size, kv_heads, key_dim = keys.shape[1:]
        value_dim = values.shape[3]
        group = query.shape[1] // kv_heads
        config, block_n = self.single if single else self.several, self.keys[keys.element_size()]
        queries = max(pad(group), config.queries)
        tokens = 1 if single else queries // group
        split = self.split_of(batch.block_table.shape[1] * block_size, block_n)
        partition = self._fixed_partition_of(
            batch, single, tokens, window, chunked, block_n, split, kv_heads, query.device
        )
        results, sums = partition.room(tokens * group, value_dim)
        attend_in_order_kernel[(kv_heads, len(partition.items))](
            out,
            results,
            sums,
            partition.arrived,
            query,
            keys,
            values,
            None if scales is None else scales.keys,
            None if scales is None else scales.values,
            sinks,
            partition.items,
            batch.block_table,
            scale,
            *query.stride()[:2],
            batch.block_table.stride(0),
            SPLIT=split,
            GROUP=group,
            WINDOW=window,
            CHUNKED=chunked,
            SOFTCAP=softcap,
            BLOCK_SIZE=block_size,
            DK=key_dim,
            DV=value_dim,
            DK_PAD=pad(key_dim),
            DV_PAD=pad_value(value_dim, values),
            KV_HEADS=kv_heads,
            TOKENS=tokens,
            BLOCK_M=queries,
            BLOCK_N=block_n,
            num_warps=config.warps,
            num_stages=config.stages,
            **FOLLOWING,
        )

    def split_of(self, longest: int, block_n: int) -> int:
        """Keys of a split in a service whose sequences have up to ``longest`` positions."""
        return max(self.least_split, triton.cdiv(triton.cdiv(longest, MAX_SPLITS), block_n) * block_n)

    def _fixed_partition_of(
        self,
        batch: PagedBatch,
        single: bool,
        tokens: int,
        window: int,
        chunked: bool,
        block_n: int,
        split: int,
        kv_heads: int,
        device: torch.device,
    ) -> WorkPartition:
        """The partition of this step, made once for all layers that are alike."""
        key = (single, tokens, window, chunked, block_n, split, kv_heads)
        if key not in self._partitions:
            self._partitions[key] = partition_work(
                batch,
                single=single,
                tokens=tokens,
                window=window,
                chunked=chunked,
                keys=block_n,
                block_size=batch.cache.block_size,
                least=block_n,
                target=2,
                kv_heads=kv_heads,
                multiprocessors=device_limits(device).multiprocessors,
                resident=1,
                split=split,
            )
        return self._partitions[key]
