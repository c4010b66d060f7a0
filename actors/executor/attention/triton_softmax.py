"""The inner loop of attention: the online softmax over the keys of one sequence, a tile at a time.

It is that of FlashAttention (Dao et al. 2022, 2023). It walks over the keys in tiles and keeps three numbers per query:
the greatest score so far ``m``, the sum of ``2^(score - m)``, and the values summed with these weights. When a tile
brings a greater score, the two sums are rescaled, so the scores themselves never leave the chip. Scores are in units of
log 2, because the hardware has ``2^x``.

Where a row has one token, an FP8 cache is read in *pairs*: as 16-bit words of two numbers, one of an even and one of an
odd column. The matrix unit multiplies 16-bit numbers, and takes what it multiplies from shared memory in the order that
it needs, but only in words of 16 bits. Numbers of 8 bits would be loaded one by one, which takes more time than memory.
"""

from __future__ import annotations

import triton.language as tl

from ..triton_tools.kernel import PTX, jit
from .triton_common import first_seen

LOG2E = tl.constexpr(1.4426950408889634)
MASKED = tl.constexpr(-1.0e30)
"""Score of a key that a query must not see. Finite: a tile may hide all its keys from a query, and then
the difference of two infinities would be NaN; the next visible key rescales what was summed to zero."""


@jit
def unpack(pairs):
    """The even and the odd columns, float16, of int16 ``pairs`` of numbers of an FP8 cache. Nothing is rounded."""
    if PTX:
        # Of two pairs at once: the bytes of the even columns together and those of the odd, then one conversion for
        # each. The compiler takes twice the instructions for the lines below.
        even, odd = tl.inline_asm_elementwise(  # type: ignore[misc]
            """{
            .reg .b32 sorted;
            .reg .b16 low, high;
            prmt.b32 sorted, $2, $2, 0x3120;
            mov.b32 {low, high}, sorted;
            cvt.rn.f16x2.e4m3x2 $0, low;
            cvt.rn.f16x2.e4m3x2 $1, high;
            }""",
            "=r,=r,r",
            [pairs],
            dtype=(tl.float16, tl.float16),
            is_pure=True,
            pack=2,
        )
    else:
        even = pairs.to(tl.uint8).to(tl.float8e4nv, bitcast=True).to(tl.float16)
        odd = (pairs >> 8).to(tl.uint8).to(tl.float8e4nv, bitcast=True).to(tl.float16)
    return even, odd


@jit
def softcapped(score, scale, SOFTCAP: tl.constexpr):
    """``SOFTCAP * tanh(score * scale / SOFTCAP)``, by way of the exponential."""
    return SOFTCAP - 2 * SOFTCAP / (tl.exp2(score * (scale * 2 * LOG2E / SOFTCAP)) + 1)


@jit
def _products(q, k):
    """The products of queries, as `attend` has them, with keys [BLOCK_N, DK_PAD] as they were read: float32 [M,
    BLOCK_N]."""
    if len(q) == 2:
        # The numbers of an FP8 cache are exact in float16, which ``q`` is then.
        k_even, k_odd = unpack(k)
        score = tl.dot(q[0], tl.trans(k_even))
        score = tl.dot(q[1], tl.trans(k_odd), score)  # type: ignore[misc]
    else:
        score = tl.dot(q[0], tl.trans(k.to(q[0].dtype)), input_precision="ieee")
    return score


@jit
def _with_values(acc, rescale, weight, v):
    """``acc`` times ``rescale``, and the values of one tile times ``weight`` [M, BLOCK_N]."""
    if len(acc) == 2:
        v_even, v_odd = unpack(v)
        even = tl.dot(weight, v_even, acc[0] * rescale[:, None])
        acc = (even, tl.dot(weight, v_odd, acc[1] * rescale[:, None]))  # type: ignore[misc]
    else:
        acc = (tl.dot(weight, v.to(weight.dtype), acc[0] * rescale[:, None], input_precision="ieee"),)
    return acc


@jit
def attend(
    q,  # ([M, DK_PAD],), or the even and the odd columns where the cache is read in pairs
    q_pos,  # [M]: position of each query in its sequence
    state,  # (acc ([M, DV_PAD],), in columns as q; m [M]; total [M]), float32: what earlier keys gave
    context,  # pointers: the sequence's blocks, its head's first key and first value in the cache
    scale,
    lo,
    hi,
    MASK: tl.constexpr,
    WINDOW: tl.constexpr,
    CHUNKED: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    KV_HEADS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Online softmax of ``q`` over the keys at positions ``lo .. hi`` of one sequence and head.

    Without ``MASK`` every query sees them all, and they fill whole tiles. ``lo`` is where a block begins if tiles are
    whole blocks. Returns the new state, of which ``acc / total`` is the output.
    """
    acc, m, total = state
    PAIRS: tl.constexpr = len(q) == 2  # type: ignore[assignment]
    KEY: tl.constexpr = DK // 2 if PAIRS else DK  # numbers, or pairs of them, of a key and of a value
    VALUE: tl.constexpr = DV // 2 if PAIRS else DV
    blocks, keys, values = context
    KEY_PAD: tl.constexpr = q[0].shape[1]
    VALUE_PAD: tl.constexpr = acc[0].shape[1]
    WHOLE: tl.constexpr = BLOCK_N % BLOCK_SIZE == 0
    offset = tl.arange(0, BLOCK_N)
    k_dim = tl.arange(0, KEY_PAD)[None, :]
    v_dim = tl.arange(0, VALUE_PAD)[None, :]
    # Addresses are half of the work where they are computed anew: all that tiles have in common is added here.
    keys += k_dim
    values += v_dim

    # The blocks of the next tile are looked up one iteration ahead: a load whose address is itself still being
    # loaded would halve the depth of Triton's software pipeline.
    if WHOLE:
        blocks += offset // BLOCK_SIZE
        next_block = tl.load(blocks + lo // BLOCK_SIZE, mask=lo + offset < hi, other=0)
    else:
        next_block = tl.load(blocks + (lo + offset) // BLOCK_SIZE, mask=lo + offset < hi, other=0)
    for start in range(lo, hi, BLOCK_N):
        pos = start + offset
        block = next_block
        following = start + BLOCK_N
        if not MASK:
            following = tl.minimum(following, hi - BLOCK_N)  # of the last tile, the same again
        if WHOLE:
            next_blocks = blocks + following // BLOCK_SIZE
            token = offset % BLOCK_SIZE
        else:
            next_blocks = blocks + (following + offset) // BLOCK_SIZE
            token = pos % BLOCK_SIZE
        place = (block * BLOCK_SIZE + token).to(tl.int64)[:, None]
        k_ptr = keys + place * (KV_HEADS * KEY)
        v_ptr = values + place * (KV_HEADS * VALUE)
        if MASK:
            next_block = tl.load(next_blocks, mask=following + offset < hi, other=0)
            # Past the end the block table and the cache hold anything, NaN too: read zeros instead.
            inside = (pos < hi)[:, None]
            k = tl.load(k_ptr, mask=inside & (k_dim < KEY), other=0.0)
            v = tl.load(v_ptr, mask=inside & (v_dim < VALUE), other=0.0)
        else:
            next_block = tl.load(next_blocks)
            k = tl.load(k_ptr, mask=k_dim < KEY, other=0.0) if KEY < KEY_PAD else tl.load(k_ptr)
            v = tl.load(v_ptr, mask=v_dim < VALUE, other=0.0) if VALUE < VALUE_PAD else tl.load(v_ptr)

        score = _products(q, k)
        if SOFTCAP > 0:
            score = softcapped(score, scale, SOFTCAP)
            unit = LOG2E
        else:
            unit = scale * LOG2E
        if MASK:
            visible = pos[None, :] <= q_pos[:, None]
            if WINDOW > 0:
                visible = visible & (pos[None, :] >= first_seen(q_pos, WINDOW, CHUNKED)[:, None])
            # Scaled before it is masked: the fused product and difference of an equal pair is not exactly zero.
            score = tl.where(visible, score * unit, MASKED)
            m_new = tl.maximum(m, tl.max(score, 1))
            weight = tl.exp2(score - m_new[:, None])
        else:
            m_new = tl.maximum(m, tl.max(score, 1) * unit)
            weight = tl.exp2(score * unit - m_new[:, None])
        rescale = tl.exp2(m - m_new)
        total = total * rescale + tl.sum(weight, 1)
        acc = _with_values(acc, rescale, weight.to(q[0].dtype), v)
        m = m_new
    return acc, m, total
