"""One Triton kernel that makes the input of a weight with a tail: the states, and behind them the products with A of
each token's adapter.

Some programs copy the states. The others multiply them by the rows of A of several adapters; for a token, the columns
of adapters that it does not have are zero. A program ends at once where no token of its block has any of its adapters.
Which ones they have is read from device memory, so that one graph is right for all steps.

With few tokens the product is divided along K among programs, so that there are enough of them. Each writes its sum to
a place of its own, and the one that comes to its end last adds them up in order: the same step always gives the same
bits.

With ``TRITON_INTERPRET=1`` in the environment before the first import of ``triton`` it runs on a CPU, for tests.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...triton_tools.arrivals import arrivals
from ...triton_tools.kernel import FOLLOWING, jit, let_kernel_after_begin, wait_for_kernel_before
from .products import Tail

T = TypeVar("T")


class LaunchConfig(NamedTuple):
    """The sizes of one program's work."""

    tokens: int
    outputs: int
    """Rows of A at once."""
    columns: int
    """Columns of K that are multiplied at once."""
    splits: int
    """Most splits of K."""
    copied: int
    """Columns of K that are copied at once."""
    warps: int
    stages: int


LAUNCH_CONFIGS = (
    LaunchConfig(16, 64, 256, 32, 256, 8, 2),
    LaunchConfig(32, 64, 256, 32, 256, 8, 2),
    LaunchConfig(64, 64, 64, 8, 256, 4, 3),
)
"""For steps of the sizes of `of_size`. ``examples/adapter_bench.py`` measures others."""


def of_size(tokens: int, each: tuple[T, T, T]) -> T:
    """The one of ``each`` that is for a step of so few, some or many tokens."""
    return each[0 if tokens <= 16 else 1 if tokens <= 64 else 2]


@jit(do_not_specialize=["tokens"])
def _extend_kernel(
    states,  # [T, K]
    down,  # [COUNT * RANKS, K]
    ids,  # int32 [T]
    out,  # [T, K + TAIL]
    sums,  # float32 [SPLITS, T, RANKS]
    arrived,  # int32 [programs of one split], zero before and after
    tokens,
    state_stride,
    K: tl.constexpr,
    COUNT: tl.constexpr,
    RANKS: tl.constexpr,
    TAIL: tl.constexpr,
    SPLITS: tl.constexpr,
    ITERATIONS: tl.constexpr,  # of COLUMNS each that a split has
    TOKENS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    COPIED: tl.constexpr,
):
    """Grid: (blocks of tokens, tiles of the tail and one more that copies, SPLITS)."""
    let_kernel_after_begin()
    block, tile, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    token = block * TOKENS + tl.arange(0, TOKENS)
    valid = token < tokens
    place = token.to(tl.int64)[:, None]
    row = states + place * state_stride
    target = out + place * (K + TAIL)
    first = split * (ITERATIONS * COLUMNS)
    if tile == tl.num_programs(1) - 1:
        wait_for_kernel_before()
        end = tl.minimum(first + ITERATIONS * COLUMNS, K)
        for start in range(first, end, COPIED):
            column = start + tl.arange(0, COPIED)[None, :]
            copied = valid[:, None] & (column < end)
            tl.store(target + column, tl.load(row + column, mask=copied, other=0.0), mask=copied)
    else:
        output = tile * OUTPUTS + tl.arange(0, OUTPUTS)
        known = (output < COUNT * RANKS)[:, None]
        column = first + tl.arange(0, COLUMNS)[None, :]
        weights = down + output.to(tl.int64)[:, None] * K
        # Weights may be read sooner: of an adapter that is being loaded, what it makes is for no token here.
        a = tl.load(weights + column, mask=known & (column < K), other=0.0)
        wait_for_kernel_before()
        adapter = tl.load(ids + token, mask=valid, other=0) - 1
        x = tl.load(row + column, mask=valid[:, None] & (column < K), other=0.0)
        mine = adapter[:, None] == (output // RANKS)[None, :]
        tail = target + K + output[None, :]
        inside = valid[:, None] & (output < TAIL)[None, :]
        of_tile = (adapter >= tile * OUTPUTS // RANKS) & (adapter <= (tile * OUTPUTS + OUTPUTS - 1) // RANKS)
        if tl.max(of_tile.to(tl.int32), 0) != 0:
            total = tl.dot(x, tl.trans(a), input_precision="ieee")
            for iteration in range(1, ITERATIONS):
                column = first + iteration * COLUMNS + tl.arange(0, COLUMNS)[None, :]
                x = tl.load(row + column, mask=valid[:, None] & (column < K), other=0.0)
                a = tl.load(weights + column, mask=known & (column < K), other=0.0)
                total = tl.dot(x, tl.trans(a), total, input_precision="ieee")
            if SPLITS > 1:
                sum_of = sums + place * RANKS + (output % RANKS)[None, :]
                split_stride = tokens.to(tl.int64) * RANKS
                tl.store(sum_of + split * split_stride, total, mask=mine)
                # What all threads of this program have stored is there before it says so, by one of them.
                tl.debug_barrier()
                counter = arrived + block * (tl.num_programs(1) - 1) + tile
                if tl.atomic_add(counter, 1, sem="acq_rel") == SPLITS - 1:
                    total = tl.load(sum_of, mask=mine, other=0.0, cache_modifier=".cg")
                    for other in tl.static_range(1, SPLITS):  # type: ignore[attr-defined]
                        total += tl.load(
                            sum_of + other * split_stride, mask=mine, other=0.0, cache_modifier=".cg"
                        )
                    tl.store(tail, total.to(out.dtype.element_ty), mask=inside)
                    tl.store(counter, 0)
            else:
                total = tl.where(mine, total, 0.0)
                tl.store(tail, total.to(out.dtype.element_ty), mask=inside)
        elif split == 0:
            tl.store(tail, tl.zeros((TOKENS, OUTPUTS), out.dtype.element_ty), mask=inside)


def extend(states: Tensor, tail: Tail, ids: Tensor, config: LaunchConfig) -> Tensor:
    """As in ``Products``, for the adapters ``ids`` int32 [T]."""
    tokens, width = states.shape
    count, ranks, _ = tail.down.shape
    iterations = triton.cdiv(triton.cdiv(width, config.columns), config.splits)
    splits = triton.cdiv(width, iterations * config.columns)
    grid = triton.cdiv(tokens, config.tokens), triton.cdiv(tail.columns, config.outputs) + 1, splits
    out = states.new_empty(tokens, width + tail.columns)
    sums = torch.empty(splits, tokens, ranks, dtype=torch.float32, device=states.device)
    _extend_kernel[grid](
        states,
        tail.down,
        ids,
        out,
        sums,
        arrivals("extend", grid[0] * grid[1], states.device),
        tokens,
        states.stride(0),
        K=width,
        COUNT=count,
        RANKS=ranks,
        TAIL=tail.columns,
        SPLITS=splits,
        ITERATIONS=iterations,
        TOKENS=config.tokens,
        OUTPUTS=config.outputs,
        COLUMNS=config.columns,
        COPIED=config.copied,
        num_warps=config.warps,
        num_stages=config.stages,
        **FOLLOWING,
    )
    return out
