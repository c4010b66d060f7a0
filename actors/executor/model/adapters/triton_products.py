"""The products of adapters in two Triton kernels: the states times A of each token's adapter, and the result times B.

A program is for a block of tokens, one adapter, and a part of the numbers that come out; where no token of the block
has the adapter it ends at once. So a step's kernels are the same whichever adapters its tokens have, which are read
from device memory: a graph holds them all. A token without an adapter has no program, and nothing is added to it.

With few tokens the first product is divided along K among programs, so that there are enough of them; each writes its
sum to a place of its own, and the second kernel adds them up in order. So the same step always gives the same bits.

With ``TRITON_INTERPRET=1`` in the environment before the first import of ``triton`` they run on a CPU, for tests.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...triton_tools.kernel import FOLLOWING, follow, jit
from .extend import LAUNCH_CONFIGS as CONFIGS_TO_EXTEND
from .extend import extend, of_size
from .products import Stack, Tail

SIZES = ["tokens"]
"""Numbers that differ from step to step. By default Triton compiles a kernel anew for another kind of number, in the
middle of serving."""


class LaunchConfig(NamedTuple):
    """The sizes of one program's work."""

    tokens: int
    columns: int
    """Columns of K that are multiplied at once."""
    splits: int
    """Most splits of K, in the first product."""
    outputs: int
    """Outputs of N that a program of the second product has."""
    warps: int

    def splits_of(self, width: int) -> int:
        """The number of splits of ``width`` columns, each of which has some."""
        iterations = triton.cdiv(width, self.columns)
        return triton.cdiv(iterations, triton.cdiv(iterations, self.splits))


LAUNCH_CONFIGS = (
    LaunchConfig(16, 512, 16, 128, 2),
    LaunchConfig(32, 512, 16, 128, 2),
    LaunchConfig(64, 64, 4, 128, 4),
)
"""For steps of the sizes of `of_size`."""


MAX_RANKS = 64
"""Most rows of A in one tile."""


@jit(do_not_specialize=SIZES)
def _shrink_kernel(
    states,  # [T, K]
    down,  # [count, RANKS, K]
    ids,  # int32 [T]
    sums,  # float32 [SPLITS, T, RANKS]
    tokens,
    state_stride,
    K,
    RANKS,
    TOKENS: tl.constexpr,
    SPLITS: tl.constexpr,
    TILE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    follow()
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    adapter = tl.program_id(1)
    mine = tl.load(ids + token, mask=token < tokens, other=0) == adapter + 1
    if tl.max(mine.to(tl.int32), 0) != 0:
        split = tl.program_id(2) % SPLITS
        rank = tl.program_id(2) // SPLITS * TILE + tl.arange(0, TILE)
        column = tl.arange(0, COLUMNS)
        iterations = tl.cdiv(tl.cdiv(K, COLUMNS), SPLITS)
        first = split * iterations * COLUMNS
        row = states + token.to(tl.int64)[:, None] * state_stride
        weights = down + (adapter.to(tl.int64) * RANKS + rank)[:, None] * K
        total = tl.zeros((TOKENS, TILE), tl.float32)
        for iteration in range(iterations):
            place = first + iteration * COLUMNS + column
            inside = place < K
            x = tl.load(row + place[None, :], mask=mine[:, None] & inside[None, :], other=0.0)
            a = tl.load(weights + place[None, :], mask=(rank < RANKS)[:, None] & inside[None, :], other=0.0)
            total = tl.dot(x, tl.trans(a), total, input_precision="ieee")
        target = sums + (split.to(tl.int64) * tokens + token)[:, None] * RANKS + rank[None, :]
        tl.store(target, total, mask=mine[:, None] & (rank < RANKS)[None, :])


@jit(do_not_specialize=SIZES)
def _expand_kernel(
    output,  # [T, N]
    up,  # [count, N, RANK]
    ids,  # int32 [T]
    sums,  # float32 [SPLITS, T, SUBLAYERS * RANK]
    tokens,
    N,
    first_end,  # of the first sublayer, and of the second
    second_end,
    RANK: tl.constexpr,
    SUBLAYERS: tl.constexpr,
    TOKENS: tl.constexpr,
    SPLITS: tl.constexpr,
    TILE: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    follow()
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    adapter = tl.program_id(1)
    mine = tl.load(ids + token, mask=token < tokens, other=0) == adapter + 1
    if tl.max(mine.to(tl.int32), 0) != 0:
        tile = tl.program_id(2)  # a tile is of one sublayer
        sublayer, start, end = 0, 0, first_end
        if SUBLAYERS > 1:
            tiles = tl.cdiv(first_end, OUTPUTS)
            if tile >= tiles:
                tile, sublayer, start, end = tile - tiles, 1, first_end, second_end
        if SUBLAYERS > 2:
            tiles = tl.cdiv(second_end - first_end, OUTPUTS)
            if (sublayer == 1) & (tile >= tiles):
                tile, sublayer, start, end = tile - tiles, 2, second_end, N
        place = start + tile * OUTPUTS + tl.arange(0, OUTPUTS)
        inside = place < end
        total = tl.zeros((TOKENS, OUTPUTS), tl.float32)
        for first in tl.static_range(0, RANK, TILE):  # type: ignore[misc]
            rank = first + tl.arange(0, TILE)
            known = mine[:, None] & (rank < RANK)[None, :]
            source = sums + token.to(tl.int64)[:, None] * (SUBLAYERS * RANK) + sublayer * RANK + rank[None, :]
            small = tl.zeros((TOKENS, TILE), tl.float32)
            for split in tl.static_range(SPLITS):  # type: ignore[misc]
                small += tl.load(
                    source + split * tokens.to(tl.int64) * (SUBLAYERS * RANK), mask=known, other=0.0
                )
            weights = up + (adapter.to(tl.int64) * N + place)[:, None] * RANK + rank[None, :]
            b = tl.load(weights, mask=inside[:, None] & (rank < RANK)[None, :], other=0.0)
            total = tl.dot(small.to(b.dtype), tl.trans(b), total, input_precision="ieee")
        target = output + token.to(tl.int64)[:, None] * N + place[None, :]
        known = mine[:, None] & inside[None, :]
        before = tl.load(target, mask=known, other=0.0)
        tl.store(target, (before.to(tl.float32) + total).to(before.dtype), mask=known)


class TritonProducts:
    """For tokens on a GPU; the host never looks at the ids."""

    def __init__(self) -> None:
        self.ids = torch.zeros(0, dtype=torch.int32)
        """The ids of the step under way."""

    def begin(self, ids: Tensor) -> None:
        self.ids = ids

    def add(self, output: Tensor, states: Tensor, stack: Stack) -> None:
        add(output, states, stack, self.ids, of_size(len(states), LAUNCH_CONFIGS))

    def extend(self, states: Tensor, tail: Tail) -> Tensor:
        return extend(states, tail, self.ids, of_size(len(states), CONFIGS_TO_EXTEND))


def add(output: Tensor, states: Tensor, stack: Stack, ids: Tensor, config: LaunchConfig) -> None:
    """Add to ``output`` [T, N] what the adapters ``ids`` int32 [T] make of ``states`` [T, K], in two kernels."""
    tokens, width = states.shape
    count, ranks, _ = stack.down.shape
    rank, ends = stack.rank, [outputs.stop for outputs, _ in stack.sublayers]
    sublayers = len(ends)
    splits = config.splits_of(width)
    sums = torch.empty(splits, tokens, ranks, dtype=torch.float32, device=states.device)
    tile = min(MAX_RANKS, max(16, triton.next_power_of_2(rank)))
    blocks = triton.cdiv(tokens, config.tokens)
    _shrink_kernel[(blocks, count, splits * triton.cdiv(ranks, tile))](
        states,
        stack.down,
        ids,
        sums,
        tokens,
        states.stride(0),
        width,
        ranks,
        TOKENS=config.tokens,
        SPLITS=splits,
        TILE=tile,
        COLUMNS=config.columns,
        num_warps=config.warps,
        num_stages=2,  # with more, few programs have room at once
        **FOLLOWING,
    )
    rows = sum(triton.cdiv(outputs.stop - outputs.start, config.outputs) for outputs, _ in stack.sublayers)
    _expand_kernel[(blocks, count, rows)](
        output,
        stack.up,
        ids,
        sums,
        tokens,
        stack.up.shape[1],
        ends[0],
        ends[1] if sublayers > 1 else ends[0],
        RANK=rank,
        SUBLAYERS=sublayers,
        TOKENS=config.tokens,
        SPLITS=splits,
        TILE=tile,
        OUTPUTS=config.outputs,
        num_warps=config.warps,
        **FOLLOWING,
    )
