"""Sums of small tensors over memory that the ranks reach on each other's GPUs, where they do.

A step of few rows has two sums a layer of a few kilobytes each, for which NCCL takes several times as long as the bytes
are on their way. ``kernels.py`` says how they are summed instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from ....protocol.errors import SlipstreamError
from ....runtime.log import logger
from .group import RankGroup
from .words import EMPTY, WORD

MOST_BYTES = 512 << 10
"""Of the largest sum, what a rank is sent by all others together. NCCL sends less of larger ones; from which size on
it is faster is to be measured, by ``examples/ranks.py --sums``."""

PROGRAMS = 128
"""Of a kernel that sums, at most: few enough to run at the same time on any GPU."""

TILE = 512
"""Words that a program sends at once."""

DTYPES = (torch.bfloat16, torch.float16, torch.float32)

T = TypeVar("T")


class PeerSum:
    """The sums of one rank, in the order in which all ranks have them, on streams that follow one another."""

    def __init__(self, rank: int, rooms: Tensor, addresses: list[int]) -> None:
        """``rooms`` int64 [2, size, words], all empty; ``addresses`` of every rank's, as this one reaches them."""
        self.rank, self.rooms = rank, rooms
        self.peers = torch.tensor(addresses, dtype=torch.int64, device=rooms.device)
        self.turns = torch.zeros(PROGRAMS, dtype=torch.int32, device=rooms.device)
        self.most_bytes, self.tile = rooms[0, 0].nbytes, TILE

    @property
    def programs(self) -> int:
        """The most of a kernel that sums."""
        return len(self.turns)

    @property
    def arguments(self) -> dict[str, Any]:
        """Of every kernel that sums."""
        _, size, room = self.rooms.shape
        tensors = {"rooms": self.rooms, "peers": self.peers, "turns": self.turns}
        return tensors | {"RANK": self.rank, "SIZE": size, "ROOM": room, "PROGRAMS": self.programs}

    def takes(self, tensor: Tensor) -> bool:
        """Whether it sums tensors of this kind and size, which are those of all ranks."""
        nbytes = tensor.nbytes
        return tensor.dtype in DTYPES and 0 < nbytes <= self.most_bytes and nbytes % WORD == 0

    def __call__(self, tensor: Tensor) -> None:
        """Put the sum of all ranks' tensors into ``tensor``."""
        from .kernels import sum_in_place

        in_place = tensor.is_contiguous() and tensor.data_ptr() % 16 == 0
        summed = tensor if in_place else tensor.clone(memory_format=torch.contiguous_format)
        sum_in_place(summed, self.programs, self.tile, self.arguments)
        if not in_place:
            tensor.copy_(summed)


def shape_of_rooms(size: int, most_bytes: int) -> tuple[int, int, int]:
    """For ``size`` ranks, each of which is sent ``most_bytes`` by all others together."""
    return 2, size, most_bytes // ((size - 1) * WORD * TILE) * TILE


# --- how the ranks come to it -------------------------------------------------------------------------


class Memory(Protocol):
    """As `PeerMemory`."""

    def words(self) -> Tensor: ...
    def handle(self) -> bytes: ...
    def open(self, handle: bytes) -> int: ...
    def write(self, address: int, word: int) -> None: ...


class OutOfReach(SlipstreamError):
    """A rank does not reach the memory of another."""


def peer_sum_of(
    group: RankGroup, device: torch.device, memory_of: Callable[[int], Memory], most_bytes: int = MOST_BYTES
) -> PeerSum | None:
    """What sums small tensors of ``group``; None where not every rank reaches all others, as a line in the log says.

    ``memory_of`` gives so many bytes of ``device``. Every rank has to have tried all of it: the driver may say that a
    way is there on which nothing arrives.
    """
    shape, rank = shape_of_rooms(group.size, most_bytes), group.rank
    memory: Memory
    rooms: Tensor

    def begin() -> tuple[Memory, Tensor, bytes]:
        memory = memory_of(WORD * torch.Size(shape).numel())
        rooms = memory.words().view(shape)
        rooms.fill_(EMPTY)
        return memory, rooms, memory.handle()

    def write(addresses: list[int]) -> None:
        for other, address in enumerate(addresses):
            if other != rank:
                memory.write(address + rooms[0, :rank].nbytes, 1 + rank)

    def look() -> None:
        first = rooms[0, :, 0]
        missing = [other for other, word in enumerate(first.tolist()) if word != 1 + other and other != rank]
        if missing:
            raise OutOfReach(f"what rank {missing[0]} writes does not arrive")
        first.fill_(EMPTY)

    def addresses_of(handles: list[bytes]) -> list[int]:
        own = rooms.data_ptr()
        return [own if other == rank else memory.open(handle) for other, handle in enumerate(handles)]

    try:
        memory, rooms, handle = together(group, device, begin)
        handles = gathered(group, device, handle)
        addresses = together(group, device, lambda: addresses_of(handles))
        together(group, device, lambda: write(addresses))
        together(group, device, look)
    except OutOfReach:
        return None
    return PeerSum(rank, rooms, addresses)


def together(group: RankGroup, device: torch.device, step: Callable[[], T]) -> T:
    """What ``step`` gives, when all ranks have done it; OutOfReach on all of them where one could not, and says why."""
    failure, given = "", None
    try:
        given = step()
    except (SlipstreamError, OSError) as error:
        failure = str(error)
    first = group.least(group.rank if failure else group.size, device)
    if first == group.rank:
        logger.warning(
            "small sums go through NCCL, which takes longer: rank %d does not reach the memory of all GPUs: %s",
            group.rank,
            failure,
        )
    if first < group.size:
        raise OutOfReach(f"rank {first}")
    return given  # type: ignore[return-value]


def gathered(group: RankGroup, device: torch.device, own: bytes) -> list[bytes]:
    """As many bytes of each rank, in their order."""
    sent = torch.frombuffer(bytearray(own), dtype=torch.uint8).to(device)
    found = bytes(group.gather(sent[None])[0].tolist())
    return [found[start : start + len(own)] for start in range(0, len(found), len(own))]
