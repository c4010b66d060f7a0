"""Products with weights of 8 bits, as Triton kernels.

With few rows a product takes as long as its weights take to be read, if they are multiplied as they are stored. One row
is multiplied number by number. For several, tensor cores multiply 8 bits with 8 bits, so each row of states becomes
the sum of *two terms* of 8 bits, the second of which is what the first leaves out. That is as precise as bfloat16, and
twice the rows cost nothing as long as the product waits for its weight.

With ``TRITON_INTERPRET=1`` in the environment before the first import of ``triton`` they run on a CPU, for tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...triton_tools.arrivals import arrivals
from ...triton_tools.kernel import FOLLOWING, follow, jit
from .conversion import FLOAT8_REST, INT8_REST, numbers_of, shift_of, two_terms

EXACT_COLUMNS = tl.constexpr(128)
"""Columns that tensor cores add up with the 14 bits that they have for FP8, before the sum goes to float32."""


@jit
def _one_row_kernel(
    states,  # [K]
    weight,  # int8 [N, K]
    scales,  # float32 [ceil(N / ROWS_PER_SCALE), ceil(K / COLUMNS_PER_SCALE)]
    bias,  # [N] or None
    out,  # [N]
    FLOAT8: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    ROWS_PER_SCALE: tl.constexpr,
    COLUMNS_PER_SCALE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Each program has ``BLOCK_N`` outputs."""
    output = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    valid = output < N
    column = tl.arange(0, BLOCK_K)
    tile = weight + output[:, None] * K + column[None, :]
    # Nothing writes weights: the first are on their way while the kernel before this one ends.
    stored = tl.load(tile, mask=valid[:, None] & (column < K)[None, :], other=0)
    follow()
    sums = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for start in range(0, K, BLOCK_K):
        after = start + BLOCK_K + column < K
        following = tl.load(tile + start + BLOCK_K, mask=valid[:, None] & after[None, :], other=0)
        state = tl.load(states + start + column, mask=start + column < K, other=0.0).to(tl.float32)
        if COLUMNS_PER_SCALE < K:
            place = output // ROWS_PER_SCALE * tl.cdiv(K, COLUMNS_PER_SCALE)
            group = (start + column) // COLUMNS_PER_SCALE
            known = valid[:, None] & (start + column < K)[None, :]
            state = tl.load(scales + place[:, None] + group[None, :], mask=known, other=0.0) * state[None, :]
        else:
            state = state[None, :]
        sums += numbers_of(stored, FLOAT8) * state
        stored = following
    total = tl.sum(sums, 1)
    total *= shift_of(FLOAT8)
    if COLUMNS_PER_SCALE >= K:
        total *= tl.load(scales + output // ROWS_PER_SCALE, mask=valid, other=0.0)
    if bias is not None:
        total += tl.load(bias + output, mask=valid, other=0.0).to(tl.float32)
    tl.store(out + output, total.to(out.dtype.element_ty), mask=valid)


@jit(do_not_specialize=["rows"])
def _few_rows_kernel(
    terms,  # as the weight [2, rows, K]: `two_terms` of the states
    row_scales,  # float32 [rows]
    weight,  # float8_e4m3 or int8 [N, K]
    scales,  # float32 [ceil(N / ROWS_PER_SCALE), ceil(K / COLUMNS_PER_SCALE)]
    bias,  # [N] or None
    out,  # [rows, N]
    results,  # float32 [SPLITS, tiles, BLOCK_N, ROWS]
    arrived,  # int32 [tiles], zero before and after
    rows,
    N: tl.constexpr,
    K: tl.constexpr,
    ROWS_PER_SCALE: tl.constexpr,
    COLUMNS_PER_SCALE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Each program has ``BLOCK_N`` outputs of all rows, and one of ``SPLITS`` splits of the columns.

    The program that ends last of those with the same outputs adds their results, always in the same order.
    """
    FLOAT8: tl.constexpr = weight.dtype.element_ty == tl.float8e4nv
    SUM = tl.float32 if FLOAT8 else tl.int32
    EXACT: tl.constexpr = min(EXACT_COLUMNS, BLOCK_K)
    follow()
    tile, split = tl.program_id(0), tl.program_id(1)
    output = tile.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    valid = output < N
    both = tl.arange(0, 2 * ROWS)
    known_row = both % ROWS < rows
    state_row = terms + (both // ROWS * rows + both % ROWS)[None, :] * K
    # Columns that share a scale may be fewer than a product has to have.
    WIDTH: tl.constexpr = min(BLOCK_K, COLUMNS_PER_SCALE)
    iterations: tl.constexpr = (K + WIDTH - 1) // WIDTH
    per_split: tl.constexpr = (iterations + SPLITS - 1) // SPLITS
    sums = tl.zeros([BLOCK_N, 2 * ROWS], tl.float32 if COLUMNS_PER_SCALE < K else SUM)
    for iteration in range(split * per_split, min(iterations, (split + 1) * per_split)):
        column = iteration * WIDTH + tl.arange(0, BLOCK_K)
        known = column < min(K, (iteration + 1) * WIDTH)
        stored = tl.load(
            weight + output[:, None] * K + column[None, :], mask=valid[:, None] & known[None, :], other=0.0
        )
        state = tl.load(state_row + column[:, None], mask=known_row[None, :] & known[:, None], other=0.0)
        if COLUMNS_PER_SCALE < K:
            place = (
                output // ROWS_PER_SCALE * tl.cdiv(K, COLUMNS_PER_SCALE)
                + iteration * WIDTH // COLUMNS_PER_SCALE
            )
            scale = tl.load(scales + place, mask=valid, other=0.0)
            sums += tl.dot(stored, state, out_dtype=SUM).to(tl.float32) * scale[:, None]
        else:
            sums = tl.dot(stored, state, sums, max_num_imprecise_acc=EXACT, out_dtype=SUM)
    factors = tl.where(tl.arange(0, 2) == 0, 1.0, FLOAT8_REST if FLOAT8 else INT8_REST)
    by_term = tl.reshape(sums.to(tl.float32), [BLOCK_N, 2, ROWS])
    total = tl.sum(by_term * factors[None, :, None], 1)
    row = tl.arange(0, ROWS)
    if SPLITS > 1:
        within = tl.arange(0, BLOCK_N)[:, None] * ROWS + row[None, :]
        size: tl.constexpr = BLOCK_N * ROWS
        tiles: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
        tl.store(results + (split * tiles + tile) * size + within, total)
        # What all threads of this program have stored is there before it says so, by one of them.
        tl.debug_barrier()
        last = tl.atomic_add(arrived + tile, 1, sem="acq_rel") == SPLITS - 1
        if last:
            total = tl.load(results + tile * size + within)
            for other in tl.static_range(1, SPLITS):  # type: ignore[attr-defined]
                total += tl.load(results + (other * tiles + tile) * size + within)
            tl.store(arrived + tile, 0)
    else:
        last = True
    if last:
        total *= tl.load(row_scales + row, mask=row < rows, other=0.0)[None, :]
        if COLUMNS_PER_SCALE >= K:
            total *= tl.load(scales + output // ROWS_PER_SCALE, mask=valid, other=0.0)[:, None]
        if bias is not None:
            total += tl.load(bias + output, mask=valid, other=0.0).to(tl.float32)[:, None]
        target = out + row[None, :].to(tl.int64) * N + output[:, None]
        tl.store(target, total.to(out.dtype.element_ty), mask=valid[:, None] & (row < rows)[None, :])


@dataclass(frozen=True, slots=True)
class LaunchConfig:
    """The launch configuration of a product."""

    block_n: int
    block_k: int
    warps: int
    stages: int = 1
    splits: int = 1


def config_of_one_row(outputs: int, columns: int) -> LaunchConfig:
    """Measured on an H200, for the shapes of an 8B model: the fewer outputs, the more of each at once."""
    block_k = 1024 if outputs <= 4096 else 512 if outputs <= 8192 else 256
    return LaunchConfig(8, min(block_k, triton.next_power_of_2(columns)), 2)


def config_of_few_rows(outputs: int, columns: int, rows: int, columns_per_scale: int) -> LaunchConfig:
    """Measured on an H200, for the shapes of an 8B model.

    Where outputs make too few programs, each has a split of the columns and more of them under way.
    """
    whole = columns_per_scale >= min(128, columns)
    block_k = max(32, min(128, triton.next_power_of_2(columns)) if whole else columns_per_scale)
    splits = max(1, min(4, PROGRAMS // triton.cdiv(outputs, 64), columns // (4 * block_k)))
    stage = (64 + 2 * padded_rows(rows)) * block_k
    return LaunchConfig(64, block_k, 4, 3 if splits == 1 else min(5, SHARED_BYTES // stage), splits)


def padded_rows(rows: int) -> int:
    """The number of rows that a tile has."""
    return max(8, triton.next_power_of_2(rows))


PROGRAMS = 264
"""How many programs are wanted at least: two for each multiprocessor of an H200."""

SHARED_BYTES = 96 << 10
"""Shared memory for each of them."""

MAX_RESULTS = 2 * PROGRAMS * 64 * 64
"""Numbers of all splits of a product together. Fewer programs than are wanted have outputs in common, so that what
``config_of_few_rows`` chooses has room twice."""


@cache
def results_of(device: torch.device) -> Tensor:
    """The memory in which the splits of a product are added. Products of a device run one after the other, and share
    it."""
    return torch.empty(MAX_RESULTS, dtype=torch.float32, device=device)


def one_row(
    states: Tensor,
    weight: Tensor,
    scales: Tensor,
    block: tuple[int, int],
    bias: Tensor | None,
    config: LaunchConfig | None = None,
) -> Tensor:
    """The product of ``states`` [1, K] with the transposed weight [N, K]: [1, N]."""
    outputs, columns = weight.shape
    config = config or config_of_one_row(outputs, columns)
    out = states.new_empty(1, outputs)
    _one_row_kernel[(triton.cdiv(outputs, config.block_n),)](
        states,
        weight.view(torch.int8),
        scales,
        bias,
        out,
        FLOAT8=weight.dtype == torch.float8_e4m3fn,
        N=outputs,
        K=columns,
        ROWS_PER_SCALE=block[0],
        COLUMNS_PER_SCALE=block[1],
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        num_warps=config.warps,
        num_stages=config.stages,
        **FOLLOWING,
    )
    return out


def few_rows(
    states: Tensor,
    weight: Tensor,
    scales: Tensor,
    block: tuple[int, int],
    bias: Tensor | None,
    config: LaunchConfig | None = None,
) -> Tensor:
    """The product of ``states`` of 16 bits [rows, K], of at most 64 rows, with the transposed weight: [rows, N]."""
    outputs, columns = weight.shape
    rows = len(states)
    config = config or config_of_few_rows(outputs, columns, rows, block[1])
    out = states.new_empty(rows, outputs)
    padded, programs = padded_rows(rows), triton.cdiv(outputs, config.block_n)
    if config.splits > 1 and config.splits * programs * config.block_n * padded > MAX_RESULTS:
        raise ValueError(f"the results of {config.splits} splits of {outputs} x {padded} have no room")
    terms, row_scales = two_terms(states, weight.dtype)
    _few_rows_kernel[(programs, config.splits)](
        terms,
        row_scales,
        weight,
        scales,
        bias,
        out,
        results_of(states.device),
        arrivals("few rows", programs, states.device),
        rows,
        N=outputs,
        K=columns,
        ROWS_PER_SCALE=block[0],
        COLUMNS_PER_SCALE=block[1],
        ROWS=padded,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        SPLITS=config.splits,
        num_warps=config.warps,
        num_stages=config.stages,
        **FOLLOWING,
    )
    return out
