"""The small operations of a decoder, between its matrix products, as one Triton kernel each.

With few rows a step is bound by the number of its kernels, not by their arithmetic; with many, by how often the
states go through memory. Each of these reads and writes them once. ``operations.py`` says what they compute.

With ``TRITON_INTERPRET=1`` in the environment before the first import of ``triton`` they run on a CPU, for tests.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...ranks.exchange_kernels import MAX_WARPS
from ...ranks.layers import Unsummed
from ...ranks.words import WORD
from ...triton_tools.kernel import FOLLOWING, follow, jit
from .norm_kernels import add_norm_kernel, norm_kernel, sum_add_norm_kernel
from .operations import Norm

HEADS = 4
"""Heads of a token that one program rotates: few, so that a single token occupies several multiprocessors."""

GATE_TILE = 1024
"""Outputs of one program of the activation: eight for each of its 128 threads, which load 16 bytes of each input at
once."""

ANGLE_TOKENS = 16
"""Tokens of one program that computes angles: a step of few tokens still has several programs."""


STEP_INPUTS = ["positions"]
"""Views into a step's packed inputs, at any offset. By default Triton compiles a kernel anew for another alignment of
a pointer or another kind of number, which would be in the middle of serving."""


@jit(do_not_specialize_on_alignment=STEP_INPUTS, do_not_specialize=["tokens"])
def _angles_kernel(
    positions,  # [T]
    frequencies,  # [COUNT]
    out,  # [T, 2 COUNT]
    tokens,
    scaling,
    COUNT: tl.constexpr,
    PAD: tl.constexpr,
    TOKENS: tl.constexpr,
):
    follow()
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)[:, None]
    place = tl.arange(0, PAD)[None, :]
    mask = (token < tokens) & (place < COUNT)
    position = tl.load(positions + token, mask=token < tokens, other=0).to(tl.float32)
    angle = position * tl.load(frequencies + place, mask=place < COUNT, other=0.0)
    target = out + token.to(tl.int64) * (2 * COUNT) + place
    tl.store(target, tl.cos(angle) * scaling, mask=mask)
    tl.store(target + COUNT, tl.sin(angle) * scaling, mask=mask)


@jit
def _rotate_kernel(
    states,  # [T, heads, D]
    angles,  # [T, 2 ROTATED]
    query_weight,  # [D]
    key_weight,  # [D]
    token_stride,
    epsilon,
    offset,
    NORM: tl.constexpr,
    QUERY_HEADS: tl.constexpr,
    ALL_HEADS: tl.constexpr,
    D: tl.constexpr,
    ROTATED: tl.constexpr,  # pairs of dimensions that have an angle
    PAIRS: tl.constexpr,  # the same, padded; and the dimensions that have none
    REST: tl.constexpr,
    HEADS: tl.constexpr,
):
    follow()
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    pair = tl.arange(0, PAIRS)[None, :]
    valid = head < ALL_HEADS
    both = valid & (pair < ROTATED)
    pointer = states + token * token_stride + head * D
    first = tl.load(pointer + pair, mask=both, other=0.0)
    dtype = first.dtype
    first = first.to(tl.float32)
    second = tl.load(pointer + ROTATED + pair, mask=both, other=0.0).to(tl.float32)
    if NORM:
        is_query = head < QUERY_HEADS
        square = tl.sum(first * first, 1) + tl.sum(second * second, 1)
        if REST > 0:
            dim = 2 * ROTATED + tl.arange(0, REST)[None, :]
            left = valid & (dim < D)
            rest = tl.load(pointer + dim, mask=left, other=0.0).to(tl.float32)
            square += tl.sum(rest * rest, 1)
            weight = tl.where(
                is_query,
                tl.load(query_weight + dim, mask=dim < D, other=0.0).to(tl.float32),
                tl.load(key_weight + dim, mask=dim < D, other=0.0).to(tl.float32),
            )
            rest *= tl.rsqrt(square / D + epsilon)[:, None] * (weight + offset)
            tl.store(pointer + dim, rest.to(dtype), mask=left)
        factor = tl.rsqrt(square / D + epsilon)[:, None]
        known = pair < ROTATED
        weight = tl.where(
            is_query,
            tl.load(query_weight + pair, mask=known, other=0.0).to(tl.float32),
            tl.load(key_weight + pair, mask=known, other=0.0).to(tl.float32),
        )
        first *= factor * (weight + offset)
        weight = tl.where(
            is_query,
            tl.load(query_weight + ROTATED + pair, mask=known, other=0.0).to(tl.float32),
            tl.load(key_weight + ROTATED + pair, mask=known, other=0.0).to(tl.float32),
        )
        second *= factor * (weight + offset)
    cosine = tl.load(angles + token * (2 * ROTATED) + pair, mask=pair < ROTATED, other=0.0)
    sine = tl.load(angles + token * (2 * ROTATED) + ROTATED + pair, mask=pair < ROTATED, other=0.0)
    tl.store(pointer + pair, (first * cosine - second * sine).to(dtype), mask=both)
    tl.store(pointer + ROTATED + pair, (second * cosine + first * sine).to(dtype), mask=both)


@jit
def _gate_kernel(states, out, N: tl.constexpr, ACTIVATION: tl.constexpr, TILE: tl.constexpr):
    follow()
    token = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * TILE + tl.arange(0, TILE)
    mask = place < N
    gate = tl.load(states + token * (2 * N) + place, mask=mask, other=0.0)
    up = tl.load(states + token * (2 * N) + N + place, mask=mask, other=0.0).to(tl.float32)
    x = gate.to(tl.float32)
    if ACTIVATION == "silu":
        active = x * tl.sigmoid(x)
    elif ACTIVATION == "gelu":
        active = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    else:
        # tanh(z) = 2 sigmoid(2 z) - 1
        active = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    tl.store(out + token * N + place, (active * up).to(gate.dtype), mask=mask)


class TritonOperations:
    """``Operations`` on a GPU."""

    def angles(self, positions: Tensor, frequencies: Tensor, scaling: float) -> Tensor:
        tokens, count = len(positions), len(frequencies)
        out = torch.empty(tokens, 2 * count, dtype=torch.float32, device=positions.device)
        _angles_kernel[(triton.cdiv(tokens, ANGLE_TOKENS),)](
            positions,
            frequencies,
            out,
            tokens,
            scaling,
            COUNT=count,
            PAD=triton.next_power_of_2(count),
            TOKENS=ANGLE_TOKENS,
            **FOLLOWING,
        )
        return out

    def add_norm(
        self,
        residual: Tensor,
        update: Tensor | Unsummed | None,
        after: Norm | None,
        scale: float,
        before: Norm | None,
    ) -> Tensor:
        if update is None and before is None:
            return residual
        tokens, width = residual.shape
        out = residual if before is None else torch.empty_like(residual)
        pad = triton.next_power_of_2(width)
        norms = (
            residual if after is None else after.weight,
            residual if before is None else before.weight,
            *((0.0, 0.0) if after is None else (after.epsilon, after.offset)),
            scale,
            *((0.0, 0.0) if before is None else (before.epsilon, before.offset)),
        )
        named = dict(AFTER=after is not None, BEFORE=before is not None, N=width, PAD=pad)
        named |= dict(num_warps=warps(pad), **FOLLOWING)
        if isinstance(update, Unsummed):
            exchange = update.group.exchange_for(update.partial)
            if exchange is not None and sums_rows(update.partial, pad):
                part, programs = update.partial.contiguous(), min(tokens, exchange.programs)
                named["num_warps"] = min(MAX_WARPS, warps(pad))
                sum_add_norm_kernel[(programs,)](
                    residual,
                    part,
                    out,
                    *norms,
                    rows=tokens,
                    PER_WORD=WORD // part.itemsize,
                    **exchange.arguments,
                    **named,
                )
                return out
            update = update.summed()
        states = residual if update is None else update.contiguous()
        add_norm_kernel[(tokens,)](residual, states, out, *norms, UPDATE=update is not None, **named)
        return out

    def norm(self, states: Tensor, norm: Norm) -> None:
        tokens, width = states.shape
        pad = triton.next_power_of_2(width)
        norm_kernel[(tokens,)](
            states,
            norm.weight,
            states.stride(0),
            norm.epsilon,
            norm.offset,
            N=width,
            PAD=pad,
            num_warps=warps(pad),
            **FOLLOWING,
        )

    def rotate(
        self,
        states: Tensor,
        query_heads: int,
        key_heads: int,
        query_norm: Norm | None,
        key_norm: Norm | None,
        angles: Tensor,
    ) -> None:
        tokens, _, dims = states.shape
        heads = query_heads + key_heads
        rotated = angles.shape[1] // 2
        rest = dims - 2 * rotated
        weights = (
            (angles, angles)
            if query_norm is None or key_norm is None
            else (query_norm.weight, key_norm.weight)
        )
        _rotate_kernel[(tokens, triton.cdiv(heads, HEADS))](
            states,
            angles,
            *weights,
            states.stride(0),
            *((0.0, 0.0) if query_norm is None else (query_norm.epsilon, query_norm.offset)),
            NORM=query_norm is not None,
            QUERY_HEADS=query_heads,
            ALL_HEADS=heads,
            D=dims,
            ROTATED=rotated,
            PAIRS=triton.next_power_of_2(rotated),
            REST=triton.next_power_of_2(rest) if rest else 0,
            HEADS=HEADS,
            **FOLLOWING,
        )

    def gate(self, states: Tensor, activation: str) -> Tensor:
        tokens, width = states.shape[0], states.shape[1] // 2
        out = states.new_empty(tokens, width)
        _gate_kernel[(tokens, triton.cdiv(width, GATE_TILE))](
            states,
            out,
            N=width,
            ACTIVATION=activation,
            TILE=GATE_TILE,
            **FOLLOWING,
        )
        return out


def sums_rows(part: Tensor, pad: int) -> bool:
    """Whether a program can sum rows of the ranks: whole words, and not fewer than threads, which have each its own."""
    row = part.shape[1] * part.itemsize
    return row % WORD == 0 and pad * part.itemsize >= 32 * warps(pad) * WORD


def warps(width: int) -> int:
    """The warps of a program that holds a whole row: 8 numbers a thread, which is one load, as long as there are
    threads."""
    return max(1, min(16, width // 256))
