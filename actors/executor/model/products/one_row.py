"""The product of a weight and a single row, which is as fast as the weight comes from memory.

No matrix unit: each number of the weight is used once. What the memory does between two products decides: a program
reads the first columns of its outputs before it waits for the kernel before, so that the weights of this product come
in while that one ends. With ``TRITON_INTERPRET=1`` in the environment before the first import of ``triton`` it runs on
a CPU, for tests.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...triton_tools.kernel import FOLLOWING, jit, let_kernel_after_begin, wait_for_kernel_before

MAX_COLUMNS = 2048
"""Columns that a program reads at once. Of 34 shapes of tiles, two outputs of this many columns were the fastest over
all weights of an 8B and a 70B model, whole and halved by two ranks: 1.5 % faster than twice as many outputs or columns.
For a single weight another shape is up to 13 % faster."""

NUMBERS = 16384
"""Numbers of a weight with fewer columns that a program reads at once at most."""

WARPS = 8
"""Of one program: 256 threads, each with 16 of its up to 4096 numbers of the weight."""

ENOUGH_PROGRAMS = 1056
"""Eight for each multiprocessor of an H100 or H200; with fewer a program has two outputs, which is the least."""


@jit
def _weights(weight, output, column, N, K, EVEN: tl.constexpr):
    inside = (output < N)[:, None]
    if not EVEN:
        inside = inside & (column < K)[None, :]
    return tl.load(weight + output[:, None] * K + column[None, :], mask=inside, other=0.0)


@jit
def _sums(numbers, row, column, K, EVEN: tl.constexpr):
    """The sums over some columns, for each output."""
    x = tl.load(row + column) if EVEN else tl.load(row + column, mask=column < K, other=0.0)
    return tl.sum(numbers.to(tl.float32) * x.to(tl.float32)[None, :], 1)


@jit
def one_row_kernel(
    row,  # [K]
    weight,  # [N, K]
    bias,  # [N] or None
    out,  # [N]
    N,
    K,
    OUTPUTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    EVEN: tl.constexpr,  # K is a multiple of COLUMNS
):
    """``OUTPUTS`` of the N. Grid: (tiles of outputs,)."""
    let_kernel_after_begin()
    output = tl.program_id(0).to(tl.int64) * OUTPUTS + tl.arange(0, OUTPUTS)
    column = tl.arange(0, COLUMNS)
    numbers = _weights(weight, output, column, N, K, EVEN)
    wait_for_kernel_before()
    total = _sums(numbers, row, column, K, EVEN)
    for start in range(COLUMNS, K, COLUMNS):
        numbers = _weights(weight, output, start + column, N, K, EVEN)
        total += _sums(numbers, row, start + column, K, EVEN)
    if bias is not None:
        total += tl.load(bias + output, mask=output < N, other=0.0).to(tl.float32)
    tl.store(out + output, total.to(out.dtype.element_ty), mask=output < N)


def tile_of(outputs: int, columns: int) -> tuple[int, int]:
    """Outputs and columns that a program reads at once."""
    if columns > MAX_COLUMNS:
        return 2, MAX_COLUMNS
    width = triton.next_power_of_2(columns)
    height = NUMBERS // width
    while height > 2 and triton.cdiv(outputs, height) < ENOUGH_PROGRAMS:
        height //= 2
    return height, width


def product_of_row(row: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``row`` [K] times the transposed ``weight`` [N, K], and ``bias`` [N]: [N]; sums in float32."""
    outputs, columns = weight.shape
    height, width = tile_of(outputs, columns)
    out = torch.empty(outputs, dtype=row.dtype, device=row.device)
    one_row_kernel[(triton.cdiv(outputs, height),)](
        row,
        weight,
        bias,
        out,
        outputs,
        columns,
        OUTPUTS=height,
        COLUMNS=width,
        EVEN=columns % width == 0,
        num_warps=WARPS,
        num_stages=1,
        **FOLLOWING,
    )
    return out
