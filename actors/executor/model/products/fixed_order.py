"""Products on a GPU whose sums have one order, however many rows there are.

A product adds along the columns of its weight. They are cut into *splits*, by the shape of the weight alone: the
columns of a split are added one iteration of the matrix unit after another, and then the splits, the first to the last.
Who adds does not matter. With few rows each split has a program of its own, so that all multiprocessors read weights,
and the one that ends last adds the splits; with many, one program goes through all splits.

The weight is the first operand of the matrix unit and the states the second, whose width alone depends on how many
rows there are: the instruction that adds is the same. With ``TRITON_INTERPRET=1`` in the environment before the first
import of ``triton`` they run on a CPU, for tests.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...triton_tools.arrivals import arrivals
from ...triton_tools.kernel import (
    FOLLOWING,
    OVERLAP,
    PTX,
    jit,
    let_kernel_after_begin,
    wait_for_kernel_before,
)

UNIT = 128
"""Splits begin at multiples of this many columns, which are whole iterations in any configuration."""

FEW_OUTPUTS = 64
"""Outputs of a program where rows are few."""

MULTIPROCESSORS = 132
"""Multiprocessors of an H100 or H200. What is best for them is taken on any GPU, so that the order is the same on
all."""

MAX_SPLITS = 4
"""More splits cost more to add than they save."""


@jit
def _sum_of_split(
    states, weight, output, row, rows, begin, end, N, K, BLOCK_K: tl.constexpr, EVEN: tl.constexpr
):
    """The products [BLOCK_N, ROWS] of the columns from ``begin`` to ``end``, for ``output`` [BLOCK_N] and ``row``
    [ROWS]."""
    total = tl.zeros([output.shape[0], row.shape[0]], tl.float32)
    for start in range(begin, end, BLOCK_K):
        column = start + tl.arange(0, BLOCK_K)
        in_weight = output[:, None] < N
        in_states = row[None, :] < rows
        if not EVEN:
            in_weight = in_weight & (column < K)[None, :]
            in_states = in_states & (column < K)[:, None]
        numbers = tl.load(weight + output[:, None] * K + column[None, :], mask=in_weight, other=0.0)
        state = tl.load(states + row[None, :] * K + column[:, None], mask=in_states, other=0.0)
        total = tl.dot(numbers, state, total, input_precision="ieee")
    return total


@jit
def _prefetch(weight, output, begin, N, K, COLUMNS: tl.constexpr):
    """Have the device fetch the first columns of a split into its L2 cache, whose lines are 128 bytes."""
    if OVERLAP and PTX:
        line: tl.constexpr = 1024 // weight.dtype.element_ty.primitive_bitwidth
        column = begin + tl.arange(0, COLUMNS // line) * line
        place = (weight + tl.minimum(output, N - 1)[:, None] * K + tl.minimum(column, K - 1)[None, :]).to(
            tl.int64
        )
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [place], dtype=tl.int32, is_pure=False, pack=1
        )


@jit(do_not_specialize=["rows", "splits"])
def product_kernel(
    states,  # [rows, K]
    weight,  # [N, K]
    bias,  # [N] or None
    out,  # [rows, N]
    results,  # float32 [splits, tiles, BLOCK_N, ROWS]; None: no splits are added by another program
    arrived,  # int32 [tiles], zero before and after, or None
    rows,
    N,
    K,
    split_width,  # columns of a split
    splits,
    SPREAD: tl.constexpr,  # each split has a program of its own
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PREFETCHED: tl.constexpr,  # columns
    EVEN: tl.constexpr,  # K is a multiple of BLOCK_K
):
    """``BLOCK_N`` outputs of ``ROWS`` rows. Grid: (row tiles, tiles of outputs, splits if they are spread).

    Row tiles vary fastest: what is read of the weight then comes from memory once.
    """
    let_kernel_after_begin()
    output = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    begin = tl.program_id(2) * split_width
    if SPREAD:
        _prefetch(weight, output, begin, N, K, PREFETCHED)
    wait_for_kernel_before()
    end = min(begin + split_width, K)
    total = _sum_of_split(states, weight, output, row, rows, begin, end, N, K, BLOCK_K, EVEN)
    if not SPREAD:
        for split in range(1, splits):
            begin = split * split_width
            end = min(begin + split_width, K)
            total += _sum_of_split(states, weight, output, row, rows, begin, end, N, K, BLOCK_K, EVEN)
    last = True
    if results is not None:
        tiles = tl.num_programs(0) * tl.num_programs(1)
        tile = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        size: tl.constexpr = BLOCK_N * ROWS
        within = tl.arange(0, BLOCK_N)[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
        tl.store(results + (tl.program_id(2) * tiles + tile).to(tl.int64) * size + within, total)
        # What all threads of this program have stored is there before it says so, by one of them.
        tl.debug_barrier()
        last = tl.atomic_add(arrived + tile, 1, sem="acq_rel") == splits - 1
        if last:
            total = tl.load(results + tile.to(tl.int64) * size + within, cache_modifier=".cg")
            for other in range(1, splits):
                place = (other * tiles + tile).to(tl.int64) * size + within
                total += tl.load(results + place, cache_modifier=".cg")
            tl.store(arrived + tile, 0)
    if last:
        if bias is not None:
            total += tl.load(bias + output, mask=output < N, other=0.0).to(tl.float32)[:, None]
        target = out + row[None, :] * N + output[:, None]
        mask = (output < N)[:, None] & (row < rows)[None, :]
        tl.store(target, total.to(out.dtype.element_ty), mask=mask)


class LaunchConfig(NamedTuple):
    """The launch configuration of a product; none of it changes a bit of the result."""

    rows: int
    outputs: int
    columns: int
    warps: int
    stages: int
    spread: bool
    """Each split has a program of its own."""


MAX_SPREAD = 256
"""Rows up to which there are not enough programs for all multiprocessors unless splits are spread over several."""


STAGES, STAGES_OF_MANY = 6, 3
"""Iterations whose numbers are on their way at once, if a program has the memory for them."""

PREFETCHED = 256
"""Columns of a split that are asked for before the kernel before has ended."""


def launch_config(rows: int, itemsize: int, memory: int) -> LaunchConfig:
    """``memory`` are the bytes that a program of the device may have for what is on its way."""
    if rows <= MAX_SPREAD:
        padded = max(16, min(128, triton.next_power_of_2(rows)))
        columns = UNIT if itemsize == 2 and padded <= 64 else 64 if itemsize == 2 else 32
        stage = (FEW_OUTPUTS + padded) * columns * itemsize
        return LaunchConfig(padded, FEW_OUTPUTS, columns, 4, max(2, min(STAGES, memory // stage)), True)
    columns = 64 if itemsize == 2 else 32
    return LaunchConfig(
        128, 128, columns, 8, max(2, min(STAGES_OF_MANY, memory // (256 * columns * itemsize))), False
    )


@cache
def memory_of(device: torch.device) -> int:
    """As in `launch_config`."""
    if device.type != "cuda":
        return 1 << 20
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


@cache
def splits_of(outputs: int, columns: int) -> tuple[int, int]:
    """Into how many splits the columns of a weight are cut, and how many columns each has.

    As many as give each multiprocessor one program at most where rows are few: those that come too late, as they find
    none free, take as long again. More cost more to add than they save.
    """
    units = triton.cdiv(columns, UNIT)
    wanted = MULTIPROCESSORS // triton.cdiv(outputs, FEW_OUTPUTS)
    split = triton.cdiv(units, max(1, min(MAX_SPLITS, units, wanted))) * UNIT
    return triton.cdiv(columns, split), split


def product(
    states: Tensor, weight: Tensor, bias: Tensor | None, config: LaunchConfig | None = None
) -> Tensor:
    """``states`` [rows, K] times the transposed ``weight`` [N, K], and ``bias`` [N]: [rows, N]; sums in float32."""
    (rows, columns), outputs = states.shape, len(weight)
    config = config or launch_config(rows, states.element_size(), memory_of(states.device))
    splits, split = splits_of(outputs, columns)
    out = states.new_empty(rows, outputs)
    grid = (triton.cdiv(rows, config.rows), triton.cdiv(outputs, config.outputs))
    results = arrived = None
    if config.spread and splits > 1:
        results = states.new_empty(
            splits * grid[0] * grid[1] * config.outputs * config.rows, dtype=torch.float32
        )
        arrived = arrivals("fixed order", grid[0] * grid[1], states.device)
    product_kernel[(*grid, splits if config.spread else 1)](
        states.contiguous(),
        weight,
        bias,
        out,
        results,
        arrived,
        rows,
        outputs,
        columns,
        split,
        splits,
        SPREAD=config.spread,
        ROWS=config.rows,
        BLOCK_N=config.outputs,
        BLOCK_K=config.columns,
        PREFETCHED=PREFETCHED,
        EVEN=columns % config.columns == 0,
        num_warps=config.warps,
        num_stages=config.stages,
        **FOLLOWING,
    )
    return out


def fixed_order_linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As ``torch.nn.functional.linear``, by `product`."""
    found = product(input.reshape(-1, weight.shape[1]), weight, bias)
    return found.view(*input.shape[:-1], len(weight))
