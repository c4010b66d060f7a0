"""The sum of all ranks' tensors, as a Triton kernel over memory that they reach on each other's GPUs.

Every rank writes its numbers to all others, waits for theirs in its own memory, and adds up what it has of all, in the
order of ranks: so all have the same bits. For small tensors, where it is the way there and back that takes the time,
that is one way. **What arrives says so itself**: a place where nothing has come yet holds ``EMPTY``, which no rank ever
sends, so that there is neither a flag to be sent behind the numbers nor a fence between the two. A place is a *word*,
8 bytes that are written and read as one.

A program is a *channel*: it meets only the same program of the other ranks, in memory of its own. Which numbers are
its own in a sum, and how many programs there are, depends on the size of the tensor alone. Nothing in a launch changes
from sum to sum, so that CUDA graphs can hold them.

A channel has two *rooms*, which it takes in turns, with a place in each for what every rank sends. **One wait a sum is
enough.** To be lost, a number of sum N + 2 has to come into a room before that of sum N was read there and its place
emptied. The reader does that in sum N, at once. It sends its numbers of sum N + 1 when its kernel of sum N has ended,
and with it all that it has written. A rank that sends for N + 2 has ended N + 1, for which it had these. With one room
that would not hold: a rank has ended sum N when it has the others' numbers, and they need not have read its own.

Nobody can wait for ever while all ranks live: a program waits only for numbers of the same sum, which every rank sends
before it waits for anything. There are few programs, all of which run at the same time.

With ``TRITON_INTERPRET=1`` in the environment before the first import of ``triton`` they run on a CPU, for tests.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..devices.kernel import FOLLOWING, PTX, follow, jit
from . import peer_memory

EMPTY = tl.constexpr(peer_memory.EMPTY)


@jit
def _send(place, words):
    """Write to memory of another GPU, each word as a whole."""
    if PTX:
        tl.inline_asm_elementwise(
            "st.relaxed.sys.global.b64 [$1], $2; mov.b32 $0, 0;",
            "=r,l,l",
            [place.to(tl.int64), words],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
    else:
        tl.store(place, words)


@jit
def _receive(place):
    """Wait until another rank's words are there; they are taken, and the place is empty again.

    The wait looks past the caches. It ends for all threads together, so that each has read when the first one empties.
    """
    words = tl.load(place, volatile=True)
    while tl.max((words == EMPTY).to(tl.int32), 0) != 0:
        words = tl.load(place, volatile=True)
    tl.store(place, tl.full(words.shape, EMPTY, tl.int64))
    return words


@jit
def _own_words(pointer, place, words):
    """This rank's words at ``place``, of which there are ``words``, as they can be sent."""
    own = tl.load(pointer + place, mask=place < words, other=0)
    return tl.where(own == EMPTY, 0, own)


@jit
def _numbers(words, LANES: tl.constexpr, DTYPE: tl.constexpr):
    """The numbers of words, float32 [words, LANES]."""
    bits = words[:, None] >> (tl.arange(0, LANES) * (64 // LANES)).to(tl.int64)[None, :]
    if LANES == 4:
        return bits.to(tl.int16).to(DTYPE, bitcast=True).to(tl.float32)
    else:
        return bits.to(tl.int32).to(DTYPE, bitcast=True).to(tl.float32)


@jit
def _send_to_all(words, peers, place, RANK: tl.constexpr, SIZE: tl.constexpr, STRIDE: tl.constexpr):
    """To every other rank, beginning with the next one, where it expects words of ``RANK``; ``place`` is that of
    rank 0's."""
    for step in tl.static_range(1, SIZE):  # type: ignore[attr-defined]
        rooms = tl.load(peers + (RANK + step) % SIZE).to(tl.pointer_type(tl.int64))
        _send(rooms + place + RANK * STRIDE, words)


@jit
def _total(
    own,
    rooms,
    place,
    RANK: tl.constexpr,
    SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    LANES: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """The sum of all ranks' numbers, float32 [words, LANES]; ``place`` is that of rank 0's."""
    total = tl.zeros((own.shape[0], LANES), tl.float32)
    for rank in tl.static_range(SIZE):  # type: ignore[attr-defined]
        if rank == RANK:
            total += _numbers(own, LANES, DTYPE)
        else:
            total += _numbers(_receive(rooms + place + rank * STRIDE), LANES, DTYPE)
    return total


@jit(do_not_specialize=["words"])
def _sum_kernel(
    tensor,  # [LANES * words]
    rooms,  # int64 [2, SIZE, channels, CHANNEL]: this rank's
    peers,  # int64 [SIZE]: the addresses of all ranks' rooms
    turns,  # int32 [channels]: which room comes next
    words,
    RANK: tl.constexpr,
    SIZE: tl.constexpr,
    STRIDE: tl.constexpr,  # channels * CHANNEL
    CHANNEL: tl.constexpr,
    LANES: tl.constexpr,
    TILE: tl.constexpr,
):
    """Put the sum of all ranks' tensors into each of them."""
    follow()
    channel = tl.program_id(0)
    turn = tl.load(turns + channel, volatile=True)
    place = tl.arange(0, TILE)
    lane = tl.arange(0, LANES)[None, :]
    first = turn * SIZE * STRIDE + channel * CHANNEL
    mine = tensor.to(tl.pointer_type(tl.int64), bitcast=True)
    rounds = tl.cdiv(words, TILE * tl.num_programs(0))
    for number in range(rounds):
        at = (number * tl.num_programs(0) + channel) * TILE + place
        _send_to_all(_own_words(mine, at, words), peers, first + number * TILE + place, RANK, SIZE, STRIDE)
    for number in range(rounds):
        at = (number * tl.num_programs(0) + channel) * TILE + place
        own = _own_words(mine, at, words)
        room = first + number * TILE + place
        total = _total(own, rooms, room, RANK, SIZE, STRIDE, LANES, tensor.dtype.element_ty)
        tl.store(
            tensor + at[:, None] * LANES + lane,
            total.to(tensor.dtype.element_ty),
            mask=(at < words)[:, None] & (lane < LANES),
        )
    tl.store(turns + channel, 1 - turn)


def sum_in_place(tensor: Tensor, rank: int, rooms: Tensor, peers: Tensor, turns: Tensor, tile: int) -> None:
    """Put the sum of all ranks' tensors into ``tensor``, which is contiguous and begins at a multiple of 16 bytes; the
    rest as of `PeerSum`."""
    _, size, channels, channel = rooms.shape
    words = tensor.nbytes // rooms.itemsize
    _sum_kernel[(min(channels, triton.cdiv(words, tile)),)](
        tensor,
        rooms,
        peers,
        turns,
        words,
        RANK=rank,
        SIZE=size,
        STRIDE=channels * channel,
        CHANNEL=channel,
        LANES=rooms.itemsize // tensor.itemsize,
        TILE=tile,
        **FOLLOWING,
    )
