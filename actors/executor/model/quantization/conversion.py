"""Numbers of 8 bits made of others and back, as Triton kernels: rows of states, and the weights of a layer."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...devices.float8 import FP8_MAX
from ...triton_tools.kernel import FOLLOWING, follow, jit

FLOAT8_MOST = tl.constexpr(FP8_MAX)
INT8_MOST = tl.constexpr(127.0)

FLOAT8_REST = tl.constexpr(1 / 16)
"""A number of float8_e4m3 is off by a sixteenth at most: what it leaves out is stored divided by this."""

INT8_REST = tl.constexpr(1 / 254)
"""What rounding leaves out is a half at most, which is stored as 127."""

DEQUANTIZED_TILE = 1024
"""Columns that one program dequantizes: eight for each of its 128 threads, which so store 16 bytes each at once."""


@jit
def numbers_of(stored, FLOAT8: tl.constexpr):
    """The values of int8 ``stored`` in float32; those of float8 are divided by ``shift_of``."""
    if FLOAT8:
        numbers = ((stored.to(tl.int32) << 20) & -2014314496).to(tl.float32, bitcast=True)
    else:
        numbers = stored.to(tl.float32)
    return numbers


@jit
def shift_of(FLOAT8: tl.constexpr):
    """The factor between the value of a float8_e4m3 and its sign, exponent and fraction in the bits of a float32."""
    return 2.0**120 if FLOAT8 else 1.0


@jit
def _nearest(number, dtype: tl.constexpr):
    """The float8_e4m3 or int8 nearest to ``number``, which is within its range, as float32.

    Computed with bits and not by conversion to FP8 and back: of four numbers that share a register, ptxas 12.8 read two
    back from another one. Below the least normal number of FP8 there are fewer than this says.
    """
    if dtype == tl.int8:
        nearest = tl.floor(number + 0.5)
    else:
        bits = number.to(tl.int32, bitcast=True)
        nearest = ((bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000).to(tl.float32, bitcast=True)
    return nearest


@jit(do_not_specialize=["rows"])
def _two_terms_kernel(states, terms, scales, rows, K: tl.constexpr, PAD: tl.constexpr):
    """One row of ``states`` [rows, K] as two rows of ``terms`` [2, rows, K] with one scale."""
    follow()
    stored: tl.constexpr = terms.dtype.element_ty
    MOST: tl.constexpr = INT8_MOST if stored == tl.int8 else FLOAT8_MOST
    REST: tl.constexpr = INT8_REST if stored == tl.int8 else FLOAT8_REST
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, PAD)
    state = tl.load(states + row * K + column, mask=column < K, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(state), 0), 1e-30) / MOST
    number = tl.clamp(state / scale, -MOST, MOST)
    first = _nearest(number, stored)
    rest = _nearest((number - first) / REST, stored)
    tl.store(terms + row * K + column, first.to(stored), mask=column < K)
    tl.store(terms + (rows + row) * K + column, rest.to(stored), mask=column < K)
    tl.store(scales + row, scale)


@jit
def _quantize_kernel(states, out, scales, K: tl.constexpr, PAD: tl.constexpr):
    """One row of ``states`` [rows, K] as float8_e4m3 with a scale of its own."""
    follow()
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, PAD)
    state = tl.load(states + row * K + column, mask=column < K, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(state), 0), 1e-30) / FLOAT8_MOST
    number = tl.clamp(state / scale, -FLOAT8_MOST, FLOAT8_MOST)
    tl.store(out + row * K + column, number.to(tl.float8e4nv), mask=column < K)
    tl.store(scales + row, scale)


@jit
def _dequantize_kernel(
    weight,  # int8 [N, K]
    scales,  # float32 [ceil(N / ROWS_PER_SCALE), ceil(K / COLUMNS_PER_SCALE)]
    out,  # [N, K]
    FLOAT8: tl.constexpr,
    K: tl.constexpr,
    ROWS_PER_SCALE: tl.constexpr,
    COLUMNS_PER_SCALE: tl.constexpr,
    TILE: tl.constexpr,
):
    follow()
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    number = numbers_of(tl.load(weight + row * K + column, mask=column < K, other=0), FLOAT8)
    number *= shift_of(FLOAT8)
    place = row // ROWS_PER_SCALE * tl.cdiv(K, COLUMNS_PER_SCALE) + column // COLUMNS_PER_SCALE
    number *= tl.load(scales + place, mask=column < K, other=0.0)
    tl.store(out + row * K + column, number.to(out.dtype.element_ty), mask=column < K)


def two_terms(states: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """``states`` [rows, K] as twice the rows of ``dtype``, [2, rows, K], and the scale of each row, float32 [rows].

    A row is its scale times the sum of the first and ``FLOAT8_REST`` or ``INT8_REST`` times the second.
    """
    rows, columns = states.shape
    terms = torch.empty(2, rows, columns, dtype=dtype, device=states.device)
    scales = torch.empty(rows, dtype=torch.float32, device=states.device)
    pad = triton.next_power_of_2(columns)
    warps = max(1, min(16, pad // 512))
    _two_terms_kernel[(rows,)](states, terms, scales, rows, K=columns, PAD=pad, num_warps=warps, **FOLLOWING)
    return terms, scales


def quantized(states: Tensor) -> tuple[Tensor, Tensor]:
    """``states`` [rows, K] as float8_e4m3, and the scale of each row, float32 [rows, 1]."""
    rows, columns = states.shape
    out = torch.empty_like(states, dtype=torch.float8_e4m3fn)
    scales = torch.empty(rows, 1, dtype=torch.float32, device=states.device)
    pad = triton.next_power_of_2(columns)
    warps = max(1, min(16, pad // 512))
    _quantize_kernel[(rows,)](states, out, scales, K=columns, PAD=pad, num_warps=warps, **FOLLOWING)
    return out, scales


def dequantized(weight: Tensor, scales: Tensor, block: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The values of a weight [N, K]."""
    outputs, columns = weight.shape
    out = torch.empty_like(weight, dtype=dtype)
    _dequantize_kernel[(outputs, triton.cdiv(columns, DEQUANTIZED_TILE))](
        weight.view(torch.int8),
        scales,
        out,
        FLOAT8=weight.dtype == torch.float8_e4m3fn,
        K=columns,
        ROWS_PER_SCALE=block[0],
        COLUMNS_PER_SCALE=block[1],
        TILE=DEQUANTIZED_TILE,
        **FOLLOWING,
    )
    return out
