"""Triton kernels by which ranks exchange tensors over peer memory.

Every rank writes its numbers to all others and waits for theirs in its own memory. Then it has those of all, and adds
them up in the order of ranks, so that all have the same bits; or puts them side by side. Numbers cross the links once,
which is what takes the time of a small tensor; and of two ranks neither sends more than it would by any other method.

**What arrives says so itself**: a place where nothing has come yet holds ``EMPTY``, which no rank ever sends. So no
flag has to be sent after the numbers, and no fence is needed between numbers and flag. A place is a *word*, 8 bytes
that are written and read as one.

The memory has two *halves*, which kernels take alternately; each has a place for every word of every other rank. **One
wait a kernel is enough.** A number of kernel N + 2 would be lost if it came into a half before that of kernel N was
read there and its place emptied. The reader does that in kernel N, at once. It sends its numbers of kernel N + 1 when
kernel N has ended, and with it all that this has written. Whoever sends for N + 2 has ended its kernel N + 1, for
which it needed these: so every rank sends to every other one in each kernel, also where only rank 0 has something to
say. With one half that would not hold: a rank has ended kernel N when it has the others' numbers, and they need not
have read its own.

Nobody waits for ever while all ranks live. A program sends its own numbers of a tile before it waits for those of the
other ranks, which the same program of each rank sends before it waits itself. And all programs of a kernel run at the
same time. Which half comes next is kept on the device, and nothing in a launch changes from kernel to kernel, so that
CUDA graphs can hold them.

With ``TRITON_INTERPRET=1`` in the environment before the first import of ``triton`` they run on a CPU, for tests.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ..triton_tools.kernel import FOLLOWING, PTX, follow, jit
from . import words as of_words
from .words import WORD

EMPTY = tl.constexpr(of_words.EMPTY)

MAX_WARPS = 4
"""Warps of a program, so that all programs run at the same time. Sums of 32 rows of 8,192 numbers with what follows
take 5.5 µs so, and 5.2 with 16 warps."""


@jit
def _send(pointer, words, mask):
    """Write to memory of another GPU, each word as a whole."""
    if PTX:
        tl.inline_asm_elementwise(
            """{
            .reg .pred sent;
            setp.ne.b32 sent, $3, 0;
            @sent st.relaxed.sys.global.b64 [$1], $2;
            mov.b32 $0, 0;
            }""",
            "=r,l,l,r",
            [pointer.to(tl.int64), words, mask.to(tl.int32)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
    else:
        tl.store(pointer, words, mask=mask)


@jit
def _receive(pointer, mask):
    """Wait until another rank's words are there, take them, and leave their places empty.

    The wait looks past the caches. It ends for all threads together, so that each has read when the first one empties.
    """
    words = tl.load(pointer, mask=mask, other=0, volatile=True)
    while tl.max((words == EMPTY).to(tl.int32), 0) != 0:
        words = tl.load(pointer, mask=mask, other=0, volatile=True)
    tl.store(pointer, tl.full(words.shape, EMPTY, tl.int64), mask=mask)
    return words


@jit
def _numbers(words, PER_WORD: tl.constexpr, DTYPE: tl.constexpr):
    """The numbers of words [words, PER_WORD]."""
    bits = words[:, None] >> (tl.arange(0, PER_WORD) * (64 // PER_WORD)).to(tl.int64)[None, :]
    if PER_WORD == 4:
        return bits.to(tl.int16).to(DTYPE, bitcast=True)
    else:
        return bits.to(tl.int32).to(DTYPE, bitcast=True)


@jit
def half_of(current):
    """The half of peer memory that this kernel uses: 0 or 1."""
    return tl.load(current + tl.program_id(0), volatile=True)


@jit
def take_other_half(current, half, PROGRAMS: tl.constexpr):
    """The next kernel takes the other half, with however many programs; for those that this one lacks the first one
    says so."""
    program = tl.program_id(0)
    tl.store(current + program, 1 - half)
    if program == 0:
        other = tl.arange(0, PROGRAMS)
        lacking = other >= tl.num_programs(0)
        tl.store(current + other, tl.zeros((PROGRAMS,), tl.int32) + (1 - half), mask=lacking)


@jit
def _from(
    halves,  # of ``RECEIVER``
    half,
    SENDER: tl.constexpr,
    RECEIVER: tl.constexpr,
    SIZE: tl.constexpr,
    MAX_WORDS: tl.constexpr,
):
    """Where the words of ``SENDER`` begin in a half; the receiver itself has no place there."""
    sender: tl.constexpr = SENDER - 1 if SENDER > RECEIVER else SENDER
    return halves + (half * (SIZE - 1) + sender) * MAX_WORDS


@jit
def words_of(tensor, place, mask):
    """The words of a tensor at ``place``, as they can be sent."""
    words = tl.load(tensor.to(tl.pointer_type(tl.int64), bitcast=True) + place, mask=mask, other=0)
    return tl.where(words == EMPTY, 0, words)


@jit
def send_to_all(
    words, peers, half, place, mask, RANK: tl.constexpr, SIZE: tl.constexpr, MAX_WORDS: tl.constexpr
):
    """To every other rank, beginning with the next one."""
    for offset in tl.static_range(1, SIZE):  # type: ignore[attr-defined]
        halves = tl.load(peers + (RANK + offset) % SIZE).to(tl.pointer_type(tl.int64))
        _send(_from(halves, half, RANK, (RANK + offset) % SIZE, SIZE, MAX_WORDS) + place, words, mask)


@jit
def _send_rounds(
    tensor,  # of ``words`` words
    peers,
    half,
    words,
    first,  # this program's words of a round, and how far those of the next are from them
    stride,
    rounds,
    RANK: tl.constexpr,
    SIZE: tl.constexpr,
    MAX_WORDS: tl.constexpr,
):
    """Send what this program has of a tensor to every other rank, before it waits for anything of theirs."""
    for number in range(rounds):
        place = number * stride + first
        mask = place < words
        send_to_all(words_of(tensor, place, mask), peers, half, place, mask, RANK, SIZE, MAX_WORDS)


@jit
def total_of_all(
    own,
    halves,
    half,
    place,
    mask,
    RANK: tl.constexpr,
    SIZE: tl.constexpr,
    MAX_WORDS: tl.constexpr,
    PER_WORD: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """The sum of all ranks' numbers at ``place``, float32 [words, PER_WORD]; ``own`` are this rank's words."""
    total = tl.zeros((own.shape[0], PER_WORD), tl.float32)
    for rank in tl.static_range(SIZE):  # type: ignore[attr-defined]
        if rank == RANK:
            total += _numbers(own, PER_WORD, DTYPE).to(tl.float32)
        else:
            arrived = _receive(_from(halves, half, rank, RANK, SIZE, MAX_WORDS) + place, mask)
            total += _numbers(arrived, PER_WORD, DTYPE).to(tl.float32)
    return total


@jit(do_not_specialize=["words"])
def _sum_kernel(
    tensor,  # [PER_WORD * words]
    halves,  # int64 [2, SIZE - 1, MAX_WORDS]: this rank's
    peers,  # int64 [SIZE]: the addresses of all ranks' halves
    current,  # int32 [PROGRAMS], all alike: which half the next kernel takes
    words,
    RANK: tl.constexpr,
    SIZE: tl.constexpr,
    MAX_WORDS: tl.constexpr,
    PROGRAMS: tl.constexpr,
    PER_WORD: tl.constexpr,
    TILE: tl.constexpr,
):
    """Put the sum of all ranks' tensors into each of them."""
    follow()
    dtype: tl.constexpr = tensor.dtype.element_ty
    half = half_of(current)
    stride = TILE * tl.num_programs(0)
    rounds = tl.cdiv(words, stride)
    first = tl.program_id(0) * TILE + tl.arange(0, TILE)
    _send_rounds(tensor, peers, half, words, first, stride, rounds, RANK, SIZE, MAX_WORDS)
    for number in range(rounds):
        place = number * stride + first
        mask = place < words
        own = words_of(tensor, place, mask)
        total = total_of_all(own, halves, half, place, mask, RANK, SIZE, MAX_WORDS, PER_WORD, dtype)
        within = tl.arange(0, PER_WORD)[None, :]
        tl.store(
            tensor + place[:, None] * PER_WORD + within,
            total.to(dtype),
            mask=mask[:, None] & (within < PER_WORD),
        )
    take_other_half(current, half, PROGRAMS)


def sum_in_place(tensor: Tensor, programs: int, tile: int, arguments: dict[str, Any]) -> None:
    """Put the sum of all ranks' tensors into ``tensor``, which is contiguous and begins at a multiple of 16 bytes.

    ``programs`` is the most of them, each of which sends ``tile`` words at once; ``arguments`` as in `PeerExchange`.
    """
    words = tensor.nbytes // WORD
    _sum_kernel[(min(programs, triton.cdiv(words, tile)),)](
        tensor,
        words=words,
        PER_WORD=WORD // tensor.itemsize,
        TILE=tile,
        num_warps=MAX_WARPS,
        **arguments,
        **FOLLOWING,
    )


@jit(do_not_specialize=["words"])
def _gather_kernel(
    part,  # [rows, PER_WORD * row_words]
    out,  # [rows, width]
    halves,  # and the next ones as in `_sum_kernel`
    peers,
    current,
    words,  # of all rows
    row_words,
    width,
    RANK: tl.constexpr,
    SIZE: tl.constexpr,
    MAX_WORDS: tl.constexpr,
    PROGRAMS: tl.constexpr,
    PER_WORD: tl.constexpr,
    TILE: tl.constexpr,
):
    """Put all ranks' rows side by side, as far as ``out`` is wide."""
    follow()
    dtype: tl.constexpr = part.dtype.element_ty
    half = half_of(current)
    stride = TILE * tl.num_programs(0)
    rounds = tl.cdiv(words, stride)
    first = tl.program_id(0) * TILE + tl.arange(0, TILE)
    _send_rounds(part, peers, half, words, first, stride, rounds, RANK, SIZE, MAX_WORDS)
    for number in range(rounds):
        place = number * stride + first
        mask = place < words
        row = place // row_words
        column = (place - row * row_words)[:, None] * PER_WORD + tl.arange(0, PER_WORD)[None, :]
        for rank in tl.static_range(SIZE):  # type: ignore[attr-defined]
            if rank == RANK:
                found = words_of(part, place, mask)
            else:
                found = _receive(_from(halves, half, rank, RANK, SIZE, MAX_WORDS) + place, mask)
            wide = column + rank * row_words * PER_WORD
            tl.store(
                out + row[:, None] * width + wide,
                _numbers(found, PER_WORD, dtype),
                mask=mask[:, None] & (wide < width),
            )
    take_other_half(current, half, PROGRAMS)


def gather(part: Tensor, out: Tensor, programs: int, tile: int, arguments: dict[str, Any]) -> None:
    """Put the rows of all ranks, [rows, columns], side by side into ``out`` [rows, width], which may end before the
    last. Both are contiguous, ``part`` begins at a multiple of 16 bytes, and its rows are whole words; the rest as of
    `sum_in_place`."""
    words = part.nbytes // WORD
    _gather_kernel[(min(programs, triton.cdiv(words, tile)),)](
        part,
        out,
        words=words,
        row_words=words // len(part),
        width=out.shape[1],
        PER_WORD=WORD // part.itemsize,
        TILE=tile,
        num_warps=MAX_WARPS,
        **arguments,
        **FOLLOWING,
    )


@jit
def _of_rank_0(numbers, place, mask, RANK: tl.constexpr):
    """The numbers as words, and zeros on the other ranks."""
    if RANK == 0:
        return tl.load(numbers + place, mask=mask, other=0).to(tl.int64)
    else:
        return tl.zeros(place.shape, tl.int64)


@jit(do_not_specialize=["count"])
def _broadcast_kernel(
    numbers,  # int32 [count]
    halves,  # and the next ones as in `_sum_kernel`
    peers,
    current,
    count,
    RANK: tl.constexpr,
    SIZE: tl.constexpr,
    MAX_WORDS: tl.constexpr,
    PROGRAMS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Put what rank 0 has into the numbers of all: the sum, to which the others add zeros. Each is a word by itself,
    which is never empty."""
    follow()
    half = half_of(current)
    stride = TILE * tl.num_programs(0)
    rounds = tl.cdiv(count, stride)
    first = tl.program_id(0) * TILE + tl.arange(0, TILE)
    for number in range(rounds):
        place = number * stride + first
        mask = place < count
        send_to_all(_of_rank_0(numbers, place, mask, RANK), peers, half, place, mask, RANK, SIZE, MAX_WORDS)
    for number in range(rounds):
        place = number * stride + first
        mask = place < count
        total = _of_rank_0(numbers, place, mask, RANK)
        for rank in tl.static_range(SIZE):  # type: ignore[attr-defined]
            if rank != RANK:
                total += _receive(_from(halves, half, rank, RANK, SIZE, MAX_WORDS) + place, mask)
        tl.store(numbers + place, total.to(tl.int32), mask=mask)
    take_other_half(current, half, PROGRAMS)


def broadcast(numbers: Tensor, programs: int, tile: int, arguments: dict[str, Any]) -> None:
    """Put rank 0's ``numbers``, int32 and contiguous, into those of all; the rest as in `sum_in_place`."""
    count = numbers.numel()
    _broadcast_kernel[(min(programs, triton.cdiv(count, tile)),)](
        numbers, count=count, TILE=tile, num_warps=MAX_WARPS, **arguments, **FOLLOWING
    )


@jit(do_not_specialize=["address", "word"])
def _write_kernel(address, word):
    place = tl.arange(0, 32)
    pointer = address.to(tl.int64).to(tl.pointer_type(tl.int64)) + place
    _send(pointer, tl.zeros((32,), tl.int64) + word, place == 0)


def write_word(address: int, word: int) -> None:
    """Send one word to ``address``, on the current device's stream."""
    _write_kernel[(1,)](address, word, num_warps=1)
