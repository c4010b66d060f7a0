"""The kernels that normalise rows: one after something was added to them, or after the ranks' parts of it were summed.

That sum and what follows it are one kernel, since with few rows each takes little longer than its launch.
"""

from __future__ import annotations

import triton.language as tl

from ...ranks.exchange_kernels import half_of, send_to_all, take_other_half, total_of_all, words_of
from ...triton_tools.kernel import jit, let_kernel_after_begin, wait_for_kernel_before


@jit
def _normalised(states, weight, epsilon, offset, N: tl.constexpr):
    """``states`` float32, of which ``N`` count and the rest are zero."""
    factor = tl.rsqrt(tl.sum(states * states, 0) / N + epsilon)
    return states * factor * (weight.to(tl.float32) + offset)


@jit
def _load_row(pointer, WANTED: tl.constexpr, N: tl.constexpr, PAD: tl.constexpr):
    """A row, if the kernel has one."""
    place = tl.arange(0, PAD)
    if WANTED:
        return tl.load(pointer + place, mask=place < N, other=0.0)
    else:
        return tl.zeros((PAD,), tl.float32)


@jit
def _add_norm_row(
    states,  # [PAD], as what follows: of the residual, what is added to it, and the weights of the norms
    more,
    after,
    before,
    residual,  # where the row begins
    out,
    after_epsilon,
    after_offset,
    scale,
    before_epsilon,
    before_offset,
    UPDATE: tl.constexpr,
    AFTER: tl.constexpr,
    BEFORE: tl.constexpr,
    N: tl.constexpr,
    PAD: tl.constexpr,
):
    place = tl.arange(0, PAD)
    mask = place < N
    dtype = states.dtype
    states = states.to(tl.float32)
    if UPDATE:
        more = more.to(tl.float32)
        if AFTER:
            more = _normalised(more, after, after_epsilon, after_offset, N)
        rounded = (states + more * scale).to(dtype)
        tl.store(residual + place, rounded, mask=mask)
        states = rounded.to(tl.float32)
    if BEFORE:
        states = _normalised(states, before, before_epsilon, before_offset, N)
        tl.store(out + place, states.to(dtype), mask=mask)


@jit
def add_norm_kernel(
    residual,  # [T, N]
    update,  # [T, N]
    out,  # [T, N]
    after,  # [N]
    before,  # [N]
    after_epsilon,
    after_offset,
    scale,
    before_epsilon,
    before_offset,
    UPDATE: tl.constexpr,
    AFTER: tl.constexpr,
    BEFORE: tl.constexpr,
    N: tl.constexpr,
    PAD: tl.constexpr,
):
    let_kernel_after_begin()
    after_weight = _load_row(after, AFTER, N, PAD)
    before_weight = _load_row(before, BEFORE, N, PAD)
    wait_for_kernel_before()
    row = tl.program_id(0).to(tl.int64) * N
    _add_norm_row(
        _load_row(residual + row, True, N, PAD),
        _load_row(update + row, UPDATE, N, PAD),
        after_weight,
        before_weight,
        residual + row,
        out + row,
        after_epsilon,
        after_offset,
        scale,
        before_epsilon,
        before_offset,
        UPDATE,
        AFTER,
        BEFORE,
        N,
        PAD,
    )


@jit(do_not_specialize=["rows"])
def sum_add_norm_kernel(
    residual,  # [T, N]
    update,  # [T, N]: this rank's part
    out,  # [T, N]
    after,  # [N]
    before,  # [N]
    after_epsilon,
    after_offset,
    scale,
    before_epsilon,
    before_offset,
    rows,
    halves,
    peers,
    current,
    RANK: tl.constexpr,
    SIZE: tl.constexpr,
    MAX_WORDS: tl.constexpr,
    PROGRAMS: tl.constexpr,
    AFTER: tl.constexpr,
    BEFORE: tl.constexpr,
    N: tl.constexpr,
    PAD: tl.constexpr,
    PER_WORD: tl.constexpr,
):
    """As `add_norm_kernel`, with the sum of all ranks' parts, which ``ranks/exchange_kernels.py`` explains.

    A program sends its next row before it waits for this one: so the links are busy while rows are added up, and what
    has arrived is still in the cache when it is read. Of 64 MiB that takes two thirds of the time.
    """
    let_kernel_after_begin()
    after_weight = _load_row(after, AFTER, N, PAD)
    before_weight = _load_row(before, BEFORE, N, PAD)
    wait_for_kernel_before()
    dtype: tl.constexpr = update.dtype.element_ty
    half = half_of(current)
    word = tl.arange(0, PAD // PER_WORD)
    valid = word < N // PER_WORD
    programs = tl.num_programs(0)
    for row in range(tl.program_id(0) - programs, rows, programs):
        sent = (row + programs) * (N // PER_WORD) + word
        mask = valid & (sent < rows * (N // PER_WORD))
        send_to_all(words_of(update, sent, mask), peers, half, sent, mask, RANK, SIZE, MAX_WORDS)
        if row >= 0:
            at = row * (N // PER_WORD) + word
            states = _load_row(residual + row * N, True, N, PAD)
            own = words_of(update, at, valid)
            total = total_of_all(own, halves, half, at, valid, RANK, SIZE, MAX_WORDS, PER_WORD, dtype)
            _add_norm_row(
                states,
                tl.reshape(total.to(dtype), (PAD,)),
                after_weight,
                before_weight,
                residual + row * N,
                out + row * N,
                after_epsilon,
                after_offset,
                scale,
                before_epsilon,
                before_offset,
                True,
                AFTER,
                BEFORE,
                N,
                PAD,
            )
    take_other_half(current, half, PROGRAMS)


@jit
def norm_kernel(states, weight, stride, epsilon, offset, N: tl.constexpr, PAD: tl.constexpr):
    let_kernel_after_begin()
    weight = _load_row(weight, True, N, PAD)
    wait_for_kernel_before()
    place = tl.arange(0, PAD)
    pointer = states + tl.program_id(0).to(tl.int64) * stride
    row = _load_row(pointer, True, N, PAD)
    found = _normalised(row.to(tl.float32), weight, epsilon, offset, N)
    tl.store(pointer + place, found.to(row.dtype), mask=place < N)
