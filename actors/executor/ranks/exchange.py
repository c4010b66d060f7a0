"""Exchanges tensors between ranks over peer memory: sums, and gathered logits.

A step of few rows exchanges little: two sums a layer, of a few kilobytes each, the logits of each rank, and a few
tokens. NCCL takes several times as long for these as the bytes are on their way.
``exchange_kernels.py`` says how they get there instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from ....protocol.errors import SlipstreamError
from ....runtime.log import logger
from ..triton_tools.compilation import compile_ahead
from .group import RankGroup
from .words import EMPTY, WORD

MAX_BYTES = 2 << 20
"""With more than two ranks, the most bytes that a rank receives in one exchange, from all others together. NCCL sends
less of larger sums; from which size on it is faster is to be measured, by ``examples/ranks.py --sums``."""

MAX_BYTES_OF_TWO = 64 << 20
"""With two ranks, for which NCCL sends as much of a sum: 4,096 rows of 8,192 numbers of 16 bits. With what follows it
such a sum took 208 µs on two H200s, and through NCCL 311. Twice as much memory is taken."""

MAX_BYTES_ALONE = 8 << 20
"""Of a sum that no kernel adds to something else, and of logits. Such a sum takes 36 µs on two H200s, and through NCCL
46; with 16 MiB both take 71 to 74, and larger ones are faster through NCCL."""

PROGRAMS_EACH = 2
"""Programs of at most four warps (``exchange_kernels.MAX_WARPS``) that run on one multiprocessor at the same time,
whatever registers each takes."""

TILE = 512
"""Words that a program sends at once."""

DTYPES = (torch.bfloat16, torch.float16, torch.float32)

T = TypeVar("T")


class PeerExchange:
    """One rank's side of the exchange; all ranks make the same calls in the same order, on streams that follow one
    another."""

    def __init__(self, rank: int, halves: Tensor, addresses: list[int], programs: int) -> None:
        """``halves`` int64 [2, size - 1, words], all empty; ``addresses`` of every rank's, as this one reaches them;
        ``programs``, a power of two and the same on all ranks, are the most of a kernel."""
        self.rank, self.halves = rank, halves
        self.peers = torch.tensor(addresses, dtype=torch.int64, device=halves.device)
        self.current = torch.zeros(programs, dtype=torch.int32, device=halves.device)
        self.most_bytes, self.tile = halves[0, 0].nbytes, TILE
        self.most_bytes_alone = min(self.most_bytes, MAX_BYTES_ALONE)

    @property
    def programs(self) -> int:
        """The most of a kernel."""
        return len(self.current)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments that every kernel has."""
        _, others, most_words = self.halves.shape
        tensors = {"halves": self.halves, "peers": self.peers, "current": self.current}
        return tensors | {
            "RANK": self.rank,
            "SIZE": others + 1,
            "MAX_WORDS": most_words,
            "PROGRAMS": self.programs,
        }

    def supports(self, tensor: Tensor) -> bool:
        """Whether tensors of this kind and size, which are those of all ranks, can be exchanged here."""
        nbytes = tensor.nbytes
        return tensor.dtype in DTYPES and 0 < nbytes <= self.most_bytes and nbytes % WORD == 0

    def can_sum(self, tensor: Tensor) -> bool:
        """Whether such tensors are summed here faster than by NCCL if the kernel does nothing else."""
        return self.supports(tensor) and tensor.nbytes <= self.most_bytes_alone

    def sum(self, tensor: Tensor) -> None:
        """Put the sum of all ranks' tensors into ``tensor``."""
        from .exchange_kernels import sum_in_place

        summed = aligned(tensor)
        sum_in_place(summed, self.programs, self.tile, self.arguments)
        if summed is not tensor:
            tensor.copy_(summed)

    def can_gather(self, tensor: Tensor) -> bool:
        """Whether such tensors [N, M] are gathered here: those that are summed here, if no word is of two rows."""
        return self.can_sum(tensor) and tensor.shape[1] * tensor.itemsize % WORD == 0

    def gather(self, tensor: Tensor, width: int) -> Tensor:
        """The columns of all ranks' tensors [N, M] in the order of ranks, cut to [N, width]."""
        from .exchange_kernels import gather

        out = tensor.new_empty(len(tensor), width)
        gather(aligned(tensor), out, self.programs, self.tile, self.arguments)
        return out

    def can_broadcast(self, tensor: Tensor) -> bool:
        """Whether rank 0's tensor of this kind and size is brought to all here."""
        return tensor.dtype == torch.int32 and 0 < tensor.numel() * WORD <= self.most_bytes

    def broadcast(self, tensor: Tensor) -> None:
        """Put what rank 0 has in ``tensor`` into that of every rank."""
        from .exchange_kernels import broadcast

        sent = aligned(tensor)
        broadcast(sent, self.programs, self.tile, self.arguments)
        if sent is not tensor:
            tensor.copy_(sent)

    def compile(self) -> None:
        """Its kernels, in the dtype that most models have; none runs."""
        part = torch.zeros(1, 16 * WORD, dtype=torch.bfloat16, device=self.halves.device)

        def work() -> None:
            self.sum(part)
            self.gather(part, 16 * WORD)
            self.broadcast(torch.zeros(1, dtype=torch.int32, device=part.device))

        compile_ahead(part.device, work)


def aligned(tensor: Tensor) -> Tensor:
    """The same numbers in one piece that begins where words can: ``tensor`` itself, if it is so."""
    if tensor.is_contiguous() and tensor.data_ptr() % 16 == 0:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def most_bytes_for(size: int) -> int:
    """The bytes that each of ``size`` ranks is sent at most by all others together."""
    return MAX_BYTES_OF_TWO if size == 2 else MAX_BYTES


def programs_on(device: torch.device) -> int:
    """The most programs of a kernel that surely run on ``device`` at the same time, a power of two."""
    if device.type != "cuda":
        return PROGRAMS_EACH
    each = torch.cuda.get_device_properties(device).multi_processor_count
    return 1 << (PROGRAMS_EACH * each).bit_length() - 1


def shape_of_halves(size: int, most_bytes: int) -> tuple[int, int, int]:
    """The shape of the halves where each of ``size`` ranks is sent ``most_bytes`` by all others together."""
    return 2, size - 1, most_bytes // ((size - 1) * WORD * TILE) * TILE


# --- how the ranks come to it -------------------------------------------------------------------------


class ExchangeMemory(Protocol):
    """As `PeerMemory`."""

    def words(self) -> Tensor: ...
    def handle(self) -> bytes: ...
    def open(self, handle: bytes) -> int: ...
    def write(self, address: int, word: int) -> None: ...


class NoPeerMemory(SlipstreamError):
    """A rank cannot write to the memory of another."""


def exchange_of(
    group: RankGroup, device: torch.device, memory_of: Callable[[int], ExchangeMemory], most_bytes: int
) -> PeerExchange | None:
    """The exchange of ``group``; None, with a line in the log, where not every rank can write to all
    others.

    ``memory_of`` gives so many bytes of ``device``. Every rank has to have tried all of it: the driver may say that a
    way is there on which nothing arrives. And all have compiled each of the kernels, in one dtype, so that no rank
    fails to compile what others wait in.
    """
    shape, rank = shape_of_halves(group.size, most_bytes), group.rank
    memory: ExchangeMemory
    halves: Tensor

    def begin() -> tuple[ExchangeMemory, Tensor, bytes]:
        memory = memory_of(WORD * torch.Size(shape).numel())
        halves = memory.words().view(shape)
        halves.fill_(EMPTY)
        return memory, halves, memory.handle()

    def write(addresses: list[int]) -> None:
        for other, address in enumerate(addresses):
            if other != rank:
                memory.write(address + halves[0, : rank - (rank > other)].nbytes, 1 + rank)

    def look() -> None:
        first = halves[0, :, 0]
        others = [other for other in range(group.size) if other != rank]
        missing = [other for other, word in zip(others, first.tolist(), strict=True) if word != 1 + other]
        if missing:
            raise NoPeerMemory(f"what rank {missing[0]} writes does not arrive")
        first.fill_(EMPTY)

    def compiled() -> PeerExchange:
        exchange = PeerExchange(rank, halves, addresses, programs)
        exchange.compile()
        return exchange

    def addresses_of(handles: list[bytes]) -> list[int]:
        own = halves.data_ptr()
        return [own if other == rank else memory.open(handle) for other, handle in enumerate(handles)]

    try:
        memory, halves, handle = together(group, device, begin)
        handles = gathered(group, device, handle)
        addresses = together(group, device, lambda: addresses_of(handles))
        programs = group.least(programs_on(device), device)
        together(group, device, lambda: write(addresses))
        together(group, device, look)
        return together(group, device, compiled)
    except NoPeerMemory:
        return None


def together(group: RankGroup, device: torch.device, attempt: Callable[[], T]) -> T:
    """The result of ``attempt`` when every rank has succeeded; else the one that failed logs why, and all of them raise
    NoPeerMemory."""
    failure: Exception | None = None
    given = None
    try:
        given = attempt()
    except Exception as error:  # whatever it is: the others wait to hear of it
        failure = error
    first = group.least(group.size if failure is None else group.rank, device)
    if first == group.rank:
        logger.warning(
            "what ranks send each other goes through NCCL, which takes longer:"
            " rank %d does not reach the memory of all GPUs: %s",
            group.rank,
            str(failure) or repr(failure),
        )
    if first < group.size:
        raise NoPeerMemory(f"rank {first}")
    return given  # type: ignore[return-value]


def gathered(group: RankGroup, device: torch.device, own: bytes) -> list[bytes]:
    """The bytes of each rank, as many as are ``own``, in the order of ranks."""
    sent = torch.frombuffer(bytearray(own), dtype=torch.uint8).to(device)
    found = bytes(group.gather(sent[None], group.size * len(own))[0].tolist())
    return [found[start : start + len(own)] for start in range(0, len(found), len(own))]
