"""What goes over memory that all ranks reach: the kernels between processes, and how ranks come to it."""

from __future__ import annotations

import ctypes
import logging
import mmap
import multiprocessing
import random
import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from interpreter import INTERPRETED, needs_interpreter, run_interpreted
from rank_threads import at_once, groups
from slipstream.actors.executor.model.fused.operations import Norm, TorchOperations
from slipstream.actors.executor.ranks.exchange import (
    MAX_BYTES,
    MAX_BYTES_ALONE,
    TILE,
    ExchangeMemory,
    PeerExchange,
    exchange_of,
    most_bytes_for,
    programs_on,
    shape_of_halves,
)
from slipstream.actors.executor.ranks.group import RankGroup
from slipstream.actors.executor.ranks.layers import Unsummed
from slipstream.actors.executor.ranks.words import EMPTY, WORD
from slipstream.protocol.errors import SlipstreamError
from torch import Tensor, nn

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
CPU = torch.device("cpu")
TIMEOUT_S = 20.0


# --- the kernel, in the interpreter, whose ranks are processes that share memory ------------------------


@needs_interpreter
def test_under_the_interpreter() -> None:
    run_interpreted(__file__)


needs_processes = pytest.mark.skipif(not INTERPRETED, reason="on a GPU these are tests of test_peer_gpus.py")

SUMS = 40
TILE_HERE, PROGRAMS_HERE, MAX_WORDS = 8, 2, 30
"""The larger sums go round twice, so that a program sends ahead."""
MOST = MAX_WORDS * WORD
"""Bytes of the largest sum."""


def shared(nbytes: int) -> Tensor:
    """Memory that this process and its forks have at the same address, int64."""
    return torch.frombuffer(mmap.mmap(-1, nbytes), dtype=torch.int64)


def given(number: int, rank: int) -> Tensor:
    """What a rank has of a sum: of any size and kind, with zeros that are negative and words that would be empty."""
    rng = random.Random(number)
    dtype = rng.choice(DTYPES)
    count = rng.randrange(1, 1 + MOST // WORD) * WORD // dtype.itemsize
    numbers = torch.Generator().manual_seed(100 * number + rank)
    tensor = torch.randn(count, generator=numbers)
    if dtype == torch.bfloat16:  # to which the interpreter does not round, but cuts off
        tensor = (4 * tensor).round()
    tensor = tensor.to(dtype)
    tensor[torch.rand(count, generator=numbers) < 0.3] = -0.0
    words = tensor.view(torch.int64)
    words[torch.rand(len(words), generator=numbers) < 0.3] = EMPTY
    return tensor


def expected(number: int, size: int) -> Tensor:
    """Summed in the order of ranks and rounded once."""
    parts = [given(number, rank) for rank in range(size)]
    total = torch.zeros(len(parts[0]))
    for part in parts:
        total += part.float()
    return total.to(parts[0].dtype)


class Processes:
    """A process for each rank, and what each has found, in words."""

    def __init__(
        self, size: int, work: Callable[[int, PeerExchange], Iterator[Tensor]], most_words: int
    ) -> None:
        """``work`` gives of each sum what a rank has then."""
        self.work, self.most_words = work, most_words
        self.halves = [shared(2 * (size - 1) * most_words * WORD) for _ in range(size)]
        for half in self.halves:
            half.fill_(EMPTY)
        self.results = shared(SUMS * size * 2 * most_words * WORD).view(SUMS, size, 2 * most_words)

    def run_rank(self, rank: int) -> None:
        """It is slower than the others now and then."""
        mine = self.halves[rank].view(2, len(self.halves) - 1, self.most_words)
        exchange = PeerExchange(rank, mine, [other.data_ptr() for other in self.halves], PROGRAMS_HERE)
        exchange.tile = TILE_HERE
        rng = random.Random(rank)
        busy = torch.zeros(2000)
        for number, found in enumerate(self.work(rank, exchange)):
            self.results[number, rank, : found.nbytes // WORD] = found.flatten().view(torch.int64)
            for _ in range(rng.choice((0, 0, 0, 100))):
                busy.sin_()

    def run(self) -> Tensor:
        """The results of rank 0, which all have to have to the last bit."""
        fork = multiprocessing.get_context("fork")
        ranks = [
            fork.Process(target=self.run_rank, args=(rank,), daemon=True) for rank in range(len(self.halves))
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(TIMEOUT_S)
        stuck = [process.is_alive() for process in ranks]
        for process in ranks:
            process.kill()
        assert not any(stuck), "a rank waits for ever"
        assert [process.exitcode for process in ranks] == [0] * len(ranks)
        assert all(bool((half == EMPTY).all()) for half in self.halves), "nothing is left for later sums"
        for number in range(SUMS):
            assert bool((self.results[number] == self.results[number, 0]).all()), f"sum {number}"
        return self.results[:, 0]


@needs_processes
@pytest.mark.parametrize("size", [2, 3])
def test_all_ranks_have_the_same_sums_however_fast_each_is(size: int) -> None:
    def work(rank: int, exchange: PeerExchange) -> Iterator[Tensor]:
        for number in range(SUMS):
            tensor = given(number, rank)
            exchange.sum(tensor)
            yield tensor

    results = Processes(size, work, MAX_WORDS).run()
    for number in range(SUMS):
        wanted = expected(number, size)
        found = results[number, : wanted.nbytes // WORD].view(wanted.dtype)
        assert torch.equal(found, wanted), number


def rows_given(number: int, rank: int, size: int) -> tuple[Tensor, int]:
    """What a rank has of rows, and how wide those of all are: the last may have more than is wanted."""
    rng = random.Random(number)
    rows, words = rng.randint(1, 3), rng.randint(1, 5)
    part = given(number, rank)
    columns = words * WORD // part.itemsize
    part = part.repeat(rows * columns // len(part) + 1)[: rows * columns].view(rows, columns)
    return part, size * columns - rng.choice((0, 1, columns - 1))


def tokens_given(number: int, rank: int) -> Tensor:
    rng = random.Random(100 * number + rank)
    count = random.Random(number).randint(1, MAX_WORDS)
    return torch.tensor([rng.choice((-1, -(2**31), 0, 128255)) for _ in range(count)], dtype=torch.int32)


@needs_processes
@pytest.mark.parametrize("size", [2, 3])
def test_rows_side_by_side_and_tokens_of_rank_0_between_sums(size: int) -> None:
    def in_words(found: Tensor) -> Tensor:
        found = found.flatten()
        return torch.cat((found, found.new_zeros(-found.nbytes % WORD // found.itemsize)))

    def work(rank: int, exchange: PeerExchange) -> Iterator[Tensor]:
        group = RankGroup(rank, size, None)
        group.exchange = exchange
        for number in range(SUMS):
            if number % 3 == 0:
                yield group.sum(given(number, rank))
            elif number % 3 == 1:
                yield in_words(group.gather(*rows_given(number, rank, size)))
            else:
                tokens = tokens_given(number, rank)
                strided = torch.stack((tokens, tokens), 1)[:, 0]  # of which only rank 0 knows
                yield in_words(group.broadcast(strided if rank == 0 and number % 2 else tokens))

    results = Processes(size, work, MAX_WORDS).run()
    for number in range(SUMS):
        if number % 3 == 0:
            wanted = expected(number, size)
        elif number % 3 == 1:
            parts, widths = zip(*(rows_given(number, rank, size) for rank in range(size)), strict=True)
            wanted = torch.cat(parts, 1)[:, : widths[0]]
        else:
            wanted = tokens_given(number, 0)
        found = results[number].view(wanted.dtype)[: wanted.numel()].view(wanted.shape)
        assert torch.equal(found, wanted), number


WIDTH, MAX_ROWS = 120, 5
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2.5e-2}


def rows_of(number: int, rank: int) -> tuple[Tensor, Tensor, Norm | None, Norm]:
    """Of a layer: the residual, a rank's part of what is added to it, and the norms of that and of both."""
    rng, numbers = random.Random(number), torch.Generator().manual_seed(number)
    dtype, rows = rng.choice(DTYPES), rng.randint(1, MAX_ROWS)
    residual = torch.randn(rows, WIDTH, generator=numbers).to(dtype)
    norms = [
        Norm(nn.Parameter(torch.rand(WIDTH, generator=numbers).to(dtype)), 1e-5, offset)
        for offset in (0.0, 1.0)
    ]
    numbers.manual_seed(1000 * number + rank)
    part = torch.randn(rows, WIDTH, generator=numbers).to(dtype)
    return residual, part, rng.choice((None, norms[0])), norms[1]


@needs_processes
@pytest.mark.parametrize("size", [2, 3])
def test_a_sum_that_is_added_and_normalised_at_once(size: int) -> None:
    """Sums by themselves come between, whose kernels cut the same memory otherwise."""

    def work(rank: int, exchange: PeerExchange) -> Iterator[Tensor]:
        from slipstream.actors.executor.model.fused.triton_operations import TritonOperations

        operations = TritonOperations()
        group = RankGroup(rank, size, None)
        group.exchange = exchange
        with torch.inference_mode():
            for number in range(SUMS):
                residual, part, after, before = rows_of(number, rank)
                if number % 3 == 0:
                    group.sum(torch.ones(WORD))
                out = operations.add_norm(residual, Unsummed(part, group), after, 0.5, before)
                yield torch.stack((residual, out))

    results = Processes(size, work, MAX_ROWS * WIDTH // 2).run()
    for number in range(SUMS):
        residual, part, after, before = rows_of(number, 0)
        dtype = part.dtype
        total = sum((rows_of(number, rank)[1].float() for rank in range(size)), torch.zeros(()))
        with torch.inference_mode():
            out = TorchOperations().add_norm(residual, total.to(dtype), after, 0.5, before)
        wanted = torch.stack((residual, out)).float()
        found = results[number, : wanted.numel() * dtype.itemsize // WORD].view(dtype).view(wanted.shape)
        difference = float((found.float() - wanted).abs().max() / wanted.abs().max())
        assert difference <= TOLERANCE[dtype], number


@needs_processes
def test_a_word_is_written_where_it_belongs_and_nothing_beside_it() -> None:
    from slipstream.actors.executor.ranks.exchange_kernels import write_word

    memory = torch.zeros(40, dtype=torch.int64)
    write_word(memory[3:].data_ptr(), 7)
    assert memory.nonzero().tolist() == [[3]]
    assert memory[3] == 7


@needs_processes
def test_a_row_has_a_word_for_every_thread_or_is_summed_by_itself() -> None:
    """A word that several threads have would be emptied by one before the other has read it."""
    from slipstream.actors.executor.model.fused.triton_operations import sums_rows, warps

    def summed(width: int, dtype: torch.dtype) -> bool:
        pad = 1 << (width - 1).bit_length()
        found = sums_rows(torch.empty(1, width, dtype=dtype), pad)
        assert not found or pad * dtype.itemsize // WORD >= 32 * warps(pad)
        return found

    for width in (896, 1536, 2880, 4096, 5120, 8192, 16384):
        assert all(summed(width, dtype) for dtype in DTYPES), width
    assert not summed(64, torch.bfloat16), "words of half a warp"
    assert not summed(4098, torch.bfloat16), "half a word is left"


# --- what is summed so ----------------------------------------------------------------------------------


def exchange(size: int = 2) -> PeerExchange:
    halves = torch.zeros(shape_of_halves(size, most_bytes_for(size)), dtype=torch.int64)
    return PeerExchange(0, halves, [0] * size, 2)


@pytest.mark.parametrize(("size", "most"), [(2, 64 << 20), (3, 2 << 20), (4, 2 << 20), (8, 2 << 20)])
def test_a_rank_is_sent_a_bounded_number_of_bytes_by_all_others(size: int, most: int) -> None:
    each = exchange(size).most_bytes
    assert most - size * WORD * TILE < each * (size - 1) <= most


@pytest.mark.parametrize(("multiprocessors", "programs"), [(132, 256), (108, 128), (128, 256), (20, 32)])
def test_two_programs_run_on_each_multiprocessor(
    multiprocessors: int, programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that waited for its turn to run would keep the same one of another rank waiting."""
    found = SimpleNamespace(multi_processor_count=multiprocessors)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    assert programs_on(torch.device("cuda", 0)) == programs <= 2 * multiprocessors
    from slipstream.actors.executor.ranks.exchange_kernels import MAX_WARPS

    assert MAX_WARPS * 32 * 255 * 2 <= 65_536, "registers of a multiprocessor"


class Backend:
    """What NCCL or gloo would have been asked for."""

    def __init__(self) -> None:
        self.asked: list[Tensor] = []

    def allreduce(self, tensors: list[Tensor], options: object) -> None:
        self.asked += tensors

    broadcast = allreduce

    def _allgather_base(self, gathered: Tensor, tensor: Tensor, options: object) -> None:
        self.asked.append(tensor)


class Noted:
    """What would go over peer memory."""

    programs = 1

    def __init__(self) -> None:
        found = exchange()
        self.most_bytes, self.most_bytes_alone = found.most_bytes, found.most_bytes_alone
        self.asked = list[Tensor]()
        self.supports, self.can_sum = found.supports, found.can_sum
        self.can_gather, self.can_broadcast = found.can_gather, found.can_broadcast

    def sum(self, tensor: Tensor) -> None:
        self.asked.append(tensor)

    broadcast = sum

    def gather(self, tensor: Tensor, width: int) -> Tensor:
        self.asked.append(tensor)
        return tensor.new_empty(len(tensor), width)


def test_small_tensors_go_over_peer_memory_and_others_as_before() -> None:
    large, small = Backend(), Noted()
    group = RankGroup(0, 2, large)
    group.exchange = small  # type: ignore[assignment]
    most, alone = small.most_bytes, small.most_bytes_alone

    def goes(to: Backend | Noted, tensor: Tensor, back: Tensor) -> None:
        assert to.asked.pop() is tensor
        assert back is tensor
        assert large.asked == small.asked == []

    for dtype in DTYPES:
        fits = torch.zeros(MAX_BYTES_ALONE // dtype.itemsize, dtype=dtype)
        goes(small, fits, group.sum(fits))
        for count, added in ((most // dtype.itemsize, small), (most // dtype.itemsize + WORD, None)):
            assert group.exchange_for(torch.zeros(count, dtype=dtype)) is added, (
                "by a kernel that goes on with it"
            )
        for other in (
            torch.zeros(MAX_BYTES_ALONE // dtype.itemsize + WORD, dtype=dtype),
            torch.zeros(1, dtype=dtype),
            torch.zeros(0, dtype=dtype),
        ):
            goes(large, other, group.sum(other))
        for rows, words, to in ((1, alone // WORD, small), (4, 3, small), (1, 1 + alone // WORD, large)):
            part = torch.zeros(rows, words * WORD // dtype.itemsize, dtype=dtype)
            assert group.gather(part, 5).shape == (rows, 5)
            goes(to, part, part)
        odd = torch.zeros(8, 3, dtype=dtype)
        group.gather(odd, 5)
        goes(large, odd, odd)
    for dtype in (torch.int64, torch.float64, torch.uint8):
        for other in (torch.zeros(64, dtype=dtype), torch.zeros(8, 8, dtype=dtype)):
            goes(large, other, group.sum(other))
            goes(large, other, group.broadcast(other))
        group.gather(other, 5)
        goes(large, other, other)
    for count, to in ((1, small), (most // WORD, small), (1 + most // WORD, large), (0, large)):
        tokens = torch.zeros(count, dtype=torch.int32)
        goes(to, tokens, group.broadcast(tokens))
    group.sum(torch.zeros(64, device="meta"))
    assert large.asked == small.asked == []
    assert (
        "up to 65536 KiB (logits, and sums by themselves, up to 8192), and through NCCL"
        in group.description()
    )
    group.exchange = None
    assert group.description() == "what the ranks send each other goes through NCCL"


# --- how the ranks come to it ---------------------------------------------------------------------------


class SharedMemory:
    """Of threads: a handle is its number."""

    all: ClassVar[list[SharedMemory]] = []

    def __init__(self, nbytes: int) -> None:
        self.tensor = torch.zeros(nbytes // WORD, dtype=torch.int64)
        self.all.append(self)
        self.number = len(self.all) - 1

    def words(self) -> Tensor:
        return self.tensor

    def handle(self) -> bytes:
        return self.number.to_bytes(64, "little")

    def open(self, handle: bytes) -> int:
        return self.all[int.from_bytes(handle, "little")].tensor.data_ptr()

    def write(self, address: int, word: int) -> None:
        ctypes.c_int64.from_address(address).value = word


def refuse(*given: object) -> int:
    raise SlipstreamError("cuIpcOpenMemHandle_v2: CUDA_ERROR_PEER_ACCESS_UNSUPPORTED")


def no_driver(nbytes: int) -> ExchangeMemory:
    raise OSError("libcuda.so.1: cannot open shared object file")


def no_words(nbytes: int) -> ExchangeMemory:
    raise torch.OutOfMemoryError


class Refused(SharedMemory):
    open = refuse  # type: ignore[assignment]


class Unreached(SharedMemory):
    def write(self, address: int, word: int) -> None:
        """It does not arrive, and nobody says so."""


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_that_reach_each_other_know_where(size: int) -> None:
    SharedMemory.all.clear()
    found = at_once(lambda group: exchange_of(group, CPU, SharedMemory, MAX_BYTES), groups(size))
    assert all(found)
    halves = [one.halves for one in found if one is not None]
    for rank, one in enumerate(found):
        assert one is not None
        assert one.rank == rank
        assert one.peers.tolist() == [half.data_ptr() for half in halves]
        assert bool((one.halves == EMPTY).all())
        assert one.halves.shape == shape_of_halves(size, MAX_BYTES)


def test_ranks_of_which_one_cannot_compile_the_kernels_stay_with_nccl(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The others would wait in theirs for ever."""

    def fails(exchange: PeerExchange) -> None:
        if exchange.rank == 1:
            raise RuntimeError("PassManager::run failed")

    monkeypatch.setattr(PeerExchange, "compile", fails)
    SharedMemory.all.clear()
    with caplog.at_level(logging.WARNING, "slipstream"):
        found = at_once(lambda group: exchange_of(group, CPU, SharedMemory, MAX_BYTES), groups(3))
    assert found == [None] * 3
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.endswith("rank 1 does not reach the memory of all GPUs: PassManager::run failed")


@pytest.mark.parametrize(
    ("memory_of", "reason"),
    [
        (no_driver, "rank 1 does not reach the memory of all GPUs: libcuda.so.1"),
        (no_words, "rank 1 does not reach the memory of all GPUs: OutOfMemoryError"),
        (Refused, "rank 1 does not .* CUDA_ERROR_PEER_ACCESS_UNSUPPORTED"),
        (Unreached, "what rank 1 writes does not arrive"),
    ],
)
def test_where_one_rank_does_not_reach_another_all_stay_with_nccl_and_say_so_once(
    memory_of: Callable[[int], ExchangeMemory], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    SharedMemory.all.clear()
    with caplog.at_level(logging.WARNING, "slipstream"):
        found = at_once(
            lambda group, memory: exchange_of(group, CPU, memory, MAX_BYTES),
            groups(3),
            [SharedMemory, memory_of, SharedMemory],
        )
    assert found == [None] * 3
    assert len(caplog.records) == 1
    said = caplog.records[0].getMessage()
    assert said.startswith("what ranks send each other goes through NCCL")
    assert re.search(reason, said)
