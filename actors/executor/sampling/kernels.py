"""Sampling that needs nothing but the logits, a temperature and a draw, in two or three Triton kernels.

Plain torch makes a dozen passes over the vocabulary in float32 and two dozen kernels of a few numbers. These read the
logits, in whatever dtype they have, once to find the greatest and once more to add up the weights. `distribution`
says what is computed; sums are in float64 there as here, so that the same draw falls on the same token.

With ``TRITON_INTERPRET=1`` in the environment before the first import of ``triton`` they run on a CPU, for tests.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton_tools.kernel import FOLLOWING, follow, jit
from . import random_numbers

PART = 2048
"""Tokens of the vocabulary that one program looks at: few, so that a single row occupies the whole GPU."""

BLOCK = tl.constexpr(256)
"""Tokens whose weights have one sum: the draw first finds such a block, then the token in it."""

BELOW_ONE = tl.constexpr(1.0 - 2.0**-52)
NEVER = tl.constexpr(float("-inf"))

GOLDEN = tl.constexpr(random_numbers.GOLDEN)
MIX_1, MIX_2 = map(tl.constexpr, random_numbers.MIX)


@jit
def _logits(row, place, V: tl.constexpr):
    """Float32; what is no number is impossible, as is what lies beyond the vocabulary."""
    logit = tl.load(row + place, mask=place < V, other=NEVER).to(tl.float32)
    return tl.where(logit == logit, logit, NEVER)


@jit
def _best_of_part_kernel(logits, values, places, stride, parts, V: tl.constexpr, PART: tl.constexpr):
    """The greatest logit of each part of each row, and where it is first."""
    follow()
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    place = part * PART + tl.arange(0, PART)
    logit = _logits(logits + row * stride, place, V)
    value, first = tl.max(logit, 0, return_indices=True)
    tl.store(values + row * parts + part, value)
    tl.store(places + row * parts + part, tl.minimum(part * PART + first, V - 1))


@jit
def _best(values, places, row, parts, PARTS: tl.constexpr):
    """The greatest logit of a row, and where it is first."""
    part = tl.arange(0, PARTS)
    value, first = tl.max(
        tl.load(values + row * parts + part, mask=part < parts, other=NEVER), 0, return_indices=True
    )
    return value, tl.load(places + row * parts + tl.minimum(first, parts - 1))


@jit
def _best_kernel(values, places, out, parts, PARTS: tl.constexpr):
    follow()
    row = tl.program_id(0).to(tl.int64)
    _, place = _best(values, places, row, parts, PARTS)
    tl.store(out + row, place)


@jit
def _mix(z):
    z = (z ^ (z >> 30)) * tl.full((), MIX_1, tl.uint64)
    z = (z ^ (z >> 27)) * tl.full((), MIX_2, tl.uint64)
    return z ^ (z >> 31)


@jit
def _weights_kernel(
    logits,  # [S, V]
    values,  # [S, parts]
    places,
    sums,  # float64 [S, blocks]
    temperatures,
    request_stride,
    stride,
    parts,
    blocks,
    V: tl.constexpr,
    PART: tl.constexpr,
    PARTS: tl.constexpr,
):
    """The sum of the weights of each block of each row."""
    follow()
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    best, _ = _best(values, places, row, parts, PARTS)
    temperature = tl.load(temperatures + row * request_stride)
    place = part * PART + tl.arange(0, PART)
    logit = _logits(logits + row * stride, place, V)
    weights = tl.exp((logit - best) / tl.where(temperature == 0.0, 1.0, temperature))
    found = tl.sum(tl.reshape(weights.to(tl.float64), (PART // BLOCK, BLOCK)), 1)
    block = part * (PART // BLOCK) + tl.arange(0, PART // BLOCK)
    tl.store(sums + row * blocks + block, found, mask=block < blocks)


@jit
def _draw_kernel(
    logits,  # [S, V]
    values,  # [S, parts]
    places,
    sums,  # float64 [S, blocks]
    out,  # int32 [S]
    positions,  # int64 [S]
    temperatures,  # these lie in the records of the requests
    top_ks,
    prompt_lens,
    low_seeds,
    high_seeds,
    request_stride,
    stride,
    parts,
    blocks,
    V: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """The token of each row."""
    follow()
    row = tl.program_id(0).to(tl.int64)
    request = row * request_stride
    best, greedy = _best(values, places, row, parts, PARTS)
    temperature = tl.load(temperatures + request)

    # SplitMix64 as a function of seed and index: `random_numbers.uniform`
    high = tl.load(high_seeds + request).to(tl.uint32, bitcast=True).to(tl.uint64)
    low = tl.load(low_seeds + request).to(tl.uint32, bitcast=True).to(tl.uint64)
    index = (tl.load(positions + row) - tl.load(prompt_lens + request) + 1).to(tl.uint64)
    drawn = _mix(_mix((high << 32) | low) + index * tl.full((), GOLDEN, tl.uint64))
    uniform = (drawn >> 11).to(tl.int64).to(tl.float64) * 1.1102230246251565e-16  # 2**-53

    block = tl.arange(0, BLOCKS)
    ends = tl.cumsum(tl.load(sums + row * blocks + block, mask=block < blocks, other=0.0), 0)
    total = tl.max(ends, 0)
    wanted = tl.minimum(uniform * total, total * BELOW_ONE)
    chosen = tl.minimum(tl.sum((ends <= wanted).to(tl.int32), 0), blocks - 1)
    wanted -= tl.max(tl.where(block < chosen, ends, 0.0), 0)

    place = chosen * BLOCK + tl.arange(0, BLOCK)
    logit = _logits(logits + row * stride, place, V)
    weights = tl.exp((logit - best) / tl.where(temperature == 0.0, 1.0, temperature))
    ends = tl.cumsum(weights.to(tl.float64), 0)
    wanted = tl.minimum(wanted, tl.max(ends, 0) * BELOW_ONE)
    inside = tl.minimum(tl.sum((ends <= wanted).to(tl.int32), 0), BLOCK - 1)
    token = tl.minimum(chosen * BLOCK + inside, V - 1)
    is_greedy = (temperature == 0.0) | (tl.load(top_ks + request) == 1)
    tl.store(out + row, tl.where(is_greedy, greedy, token))


def best_tokens(logits: Tensor) -> Tensor:
    """The most likely token int32 [S] of each row of ``logits`` [S, V], the first of equals."""
    values, places = _best_of_parts(logits)
    rows, parts = values.shape
    out = places.new_empty(rows)
    _best_kernel[(rows,)](values, places, out, parts, PARTS=triton.next_power_of_2(parts), **FOLLOWING)
    return out


def sampled_tokens(
    logits: Tensor,
    position: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    prompt_len: Tensor,
    seed_low: Tensor,
    seed_high: Tensor,
) -> Tensor:
    """The next token int32 [S] of each row, as `sampler.sample` without truncation.

    ``logits`` [S, V]; ``position`` int64 [S]; all others are fields of the rows' requests, [S] of one stride.
    """
    values, places = _best_of_parts(logits)
    (rows, parts), vocab = values.shape, logits.shape[1]
    blocks = triton.cdiv(vocab, BLOCK.value)
    sums = torch.empty(rows, blocks, dtype=torch.float64, device=logits.device)
    sizes = {"V": vocab, "PARTS": triton.next_power_of_2(parts)}
    stride = temperature.stride(0)
    _weights_kernel[(rows, parts)](
        logits,
        values,
        places,
        sums,
        temperature,
        stride,
        logits.stride(0),
        parts,
        blocks,
        PART=PART,
        **sizes,
        **FOLLOWING,
    )
    out = places.new_empty(rows)
    _draw_kernel[(rows,)](
        logits,
        values,
        places,
        sums,
        out,
        position,
        temperature,
        top_k,
        prompt_len,
        seed_low,
        seed_high,
        stride,
        logits.stride(0),
        parts,
        blocks,
        BLOCKS=triton.next_power_of_2(blocks),
        **sizes,
        **FOLLOWING,
    )
    return out


def _best_of_parts(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Values float32 and places int32, both [S, parts]."""
    assert logits.stride(1) == 1
    rows, vocab = logits.shape
    parts = triton.cdiv(vocab, PART)
    values = torch.empty(rows, parts, dtype=torch.float32, device=logits.device)
    places = torch.empty(rows, parts, dtype=torch.int32, device=logits.device)
    _best_of_part_kernel[(rows, parts)](
        logits, values, places, logits.stride(0), parts, V=vocab, PART=PART, **FOLLOWING
    )
    return values, places
