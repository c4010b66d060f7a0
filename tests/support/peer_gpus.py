"""One of several ranks on as many GPUs: what they do together over peer memory, as `test_peer_gpus.py` has them do it.

python peer_gpus.py RANK SIZE MEETING_FILE RESULTS_FILE sums | last_words
"""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from slipstream.actors.executor.model.fused.operations import Norm
from slipstream.actors.executor.model.fused.triton_operations import TritonOperations
from slipstream.actors.executor.ranks.exchange import PeerExchange, exchange_of, most_bytes_for
from slipstream.actors.executor.ranks.group import RankGroup
from slipstream.actors.executor.ranks.layers import Unsummed
from slipstream.actors.executor.ranks.peer_memory import PeerMemory
from slipstream.actors.executor.ranks.rendezvous import meet
from torch import Tensor

WIDTH = 4096
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
COUNTS = (4, 12, 4096, 4100, 8 * 4096, 32 * 4096, 32 * 4096 + 4, 64 * 4096, 300 * 4096 + 4, 512 * 4096)
REPLAYS, SUMS_OF_GRAPH = 1000, 64
MAX_ROWS = 600
"""More than twice as many as a kernel has programs."""
SLEEPS, LONGEST_SLEEP = 2000, 200_000
"""Rounds at unequal speeds, and the most cycles of one."""


def given(count: int, dtype: torch.dtype, rank: int, device: torch.device) -> Tensor:
    """What a rank has of a sum; zeros of either sign among it."""
    numbers = torch.Generator(device).manual_seed(count + rank)
    tensor = torch.randn(count, device=device, generator=numbers)
    tensor[torch.rand(count, device=device, generator=numbers) < 0.2] = -0.0
    return tensor.to(dtype)


def bytes_of_all(group: RankGroup, tensor: Tensor) -> Tensor:
    """Of each rank's tensor, [size, bytes]; through NCCL."""
    own = tensor.view(torch.uint8).view(1, -1)
    return group.gather(own, group.size * own.shape[1]).view(group.size, -1)


def compare(group: RankGroup, device: torch.device) -> dict[str, int]:
    """Sums of all kinds and sizes: those with other bits than the sum in float32, those that differ between the ranks,
    and those that NCCL gives other numbers of."""
    found = {"sums": 0, "wrong": 0, "unlike": 0, "nccl_differs": 0}
    by_nccl = RankGroup(group.rank, group.size, group.backend)
    assert group.exchange is not None
    for dtype in DTYPES:
        for count in COUNTS:
            mine = given(count, dtype, group.rank, device)
            if not group.exchange.can_sum(mine):
                continue
            parts = [given(count, dtype, rank, device).float() for rank in range(group.size)]
            total = functools.reduce(torch.add, parts)
            nccl = by_nccl.sum(mine.clone())
            summed = group.sum(mine)
            every = bytes_of_all(group, summed)
            found["sums"] += 1
            found["wrong"] += not torch.equal(summed, total.to(dtype))
            found["unlike"] += bool((every != every[0]).any())
            found["nccl_differs"] += not torch.equal(summed, nccl)
    return found


def gathered(group: RankGroup, device: torch.device) -> dict[str, int]:
    """Rows of any size side by side and tokens of rank 0, beside NCCL's, with sums between them."""
    found = {"gathers": 0, "broadcasts": 0, "wrong": 0}
    by_nccl = RankGroup(group.rank, group.size, group.backend)
    assert group.exchange is not None
    for number in range(100):
        for dtype in DTYPES:
            for rows, columns, less in ((1, 64128, 0), (3, 16032, 0), (2, 25128, 1), (7, 12, 5), (1, 4, 3)):
                part = given(rows * columns, dtype, group.size * number + group.rank, device).view(
                    rows, columns
                )
                if not group.exchange.can_gather(part):
                    continue
                width = group.size * columns - less
                expected = by_nccl.gather(part, width)
                found["gathers"] += 1
                found["wrong"] += not torch.equal(group.gather(part, width), expected)
                group.sum(part)
        for rows in (1, 2, 33, 256, 5000):
            tokens = (torch.arange(rows, device=device) * (7 + number) % 128256).int() * (1 + group.rank) - 1
            expected = by_nccl.broadcast(tokens.clone())
            found["broadcasts"] += group.exchange.can_broadcast(tokens)
            found["wrong"] += not torch.equal(group.broadcast(tokens), expected)
    return found


class Counted:
    """Sums, gathers and broadcasts whose numbers the device makes and checks by itself, each time others."""

    def __init__(self, group: RankGroup, device: torch.device) -> None:
        self.group, self.device = group, device
        self.count = torch.zeros((), device=device)
        self.wrong = torch.zeros((), device=device, dtype=torch.int64)
        self.places = torch.arange(MAX_ROWS * WIDTH, device=device, dtype=torch.float32) % 1000
        self.operations = TritonOperations()

    def run(self, numbers: int) -> None:
        self.count.add_(1).remainder_(4000)
        places = self.places[:numbers]
        summed = self.group.sum((places + self.count) * (1 + self.group.rank))
        every = self.group.size
        self.wrong.add_((summed != every * (every + 1) // 2 * (places + self.count)).sum())
        if numbers > 4 * WIDTH:
            return
        side_by_side = self.group.gather((places + self.count + self.group.rank)[None], every * numbers)
        expected = torch.cat([places + rank for rank in range(every)]) + self.count
        self.wrong.add_((side_by_side[0] != expected).sum())
        tokens = (places[: 1 + numbers // 16] + self.count + self.group.rank).int()
        self.group.broadcast(tokens)
        self.wrong.add_((tokens != (places[: len(tokens)] + self.count).int()).sum())

    def add(self, rows: int) -> None:
        """A sum that one kernel adds to something else; of many rows each program sends one ahead of the last."""
        self.count.add_(1).remainder_(4000)
        places, every = self.places[: rows * WIDTH].view(rows, WIDTH), self.group.size
        residual = torch.zeros_like(places)
        part = (places + self.count) * (1 + self.group.rank)
        self.operations.add_norm(residual, Unsummed(part, self.group), None, 1.0, None)
        self.wrong.add_((residual != every * (every + 1) // 2 * (places + self.count)).sum())


def replay(group: RankGroup, device: torch.device) -> dict[str, int]:
    """A graph of many sums of three sizes, over and over."""
    counted = Counted(group, device)
    torch.cuda.synchronize(device)  # it was made on another stream
    stream = torch.cuda.Stream(device)

    def work() -> None:
        for number in range(SUMS_OF_GRAPH):
            counted.run((WIDTH, 8 * WIDTH, 32 * WIDTH)[number % 3])
            counted.add((1, 32, MAX_ROWS)[number % 3])

    with torch.cuda.stream(stream):
        work()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(capture_error_mode="thread_local")
        work()
        graph.capture_end()
        for _ in range(REPLAYS):
            graph.replay()
        stream.synchronize()
    return {"replays": REPLAYS, "wrong": int(counted.wrong)}


def at_unequal_speeds(group: RankGroup, device: torch.device) -> dict[str, int]:
    """Each rank dawdles now and then, before a sum or after it; NCCL's sums and gathers come between."""
    own, alike = random.Random(group.rank), random.Random(7)
    counted = Counted(group, device)
    large = torch.ones(16 << 20, device=device)
    for _ in range(SLEEPS):
        if own.random() < 0.3:
            torch.cuda._sleep(own.randrange(LONGEST_SLEEP))
        counted.run(alike.choice((4, WIDTH, 3 * WIDTH, 16 * WIDTH, 32 * WIDTH)))
        counted.add(alike.choice((1, 2, 33, MAX_ROWS)))
        if alike.random() < 0.1:
            group.sum(large).mul_(1 / group.size)
            group.gather(large[None, :3], 3 * group.size)
    counted.wrong.add_((large != 1).sum())
    return {"rounds": SLEEPS, "wrong": int(counted.wrong)}


def of_any_size(group: RankGroup, device: torch.device) -> dict[str, int]:
    """With at least 4 MiB of memory, and up to the largest sum by itself."""
    larger = RankGroup(group.rank, group.size, group.backend)
    larger.exchange = exchange_of(
        group, device, lambda nbytes: PeerMemory(device, nbytes), max(4 << 20, most_bytes_for(group.size))
    )
    assert isinstance(larger.exchange, PeerExchange)
    counted = Counted(larger, device)
    for _ in range(200):
        for rows in (1, 64, 33, 2, 48, 512):
            counted.run(rows * WIDTH)
    return {"bytes": larger.exchange.most_bytes, "wrong": int(counted.wrong)}


def normalise(group: RankGroup, device: torch.device) -> dict[str, float]:
    """Sums that are added and normalised at once, each time on top of the last, beside NCCL and a kernel of its own:
    the most by which they differ, by the size of the numbers; and rows of which the ranks have other bits."""
    operations = TritonOperations()
    by_nccl = RankGroup(group.rank, group.size, group.backend)
    found = {"difference_16": 0.0, "difference_32": 0.0, "unlike": 0.0}
    for dtype in (torch.bfloat16, torch.float32):
        weight = torch.nn.Parameter(given(WIDTH, dtype, 9, device), requires_grad=False)
        norm = Norm(weight, 1e-5, 0.0)
        for rows in (1, 2, 31, 32, 300, 1024):
            first = given(rows * WIDTH, dtype, 8, device).view(rows, WIDTH)
            results: list[Tensor] = []
            for way in (group, by_nccl):
                residual, out = first.clone(), first
                for number in range(100):
                    part = given(rows * WIDTH, dtype, 10 + group.size * number + group.rank, device).view(
                        rows, WIDTH
                    )
                    out = operations.add_norm(residual, Unsummed(part, way), None, 0.1, norm)
                results.append(torch.cat((residual, out)))
            ours, nccl = (one.float() for one in results)
            name = f"difference_{8 * dtype.itemsize}"
            found[name] = max(found[name], float((ours - nccl).abs().max() / nccl.abs().max()))
            every = bytes_of_all(group, results[0])
            found["unlike"] += int((every != every[0]).sum())
    return found


def sums(group: RankGroup, device: torch.device, results: Path) -> None:
    parts: tuple[Callable[[RankGroup, torch.device], dict[str, Any]], ...] = (
        compare,
        gathered,
        normalise,
        replay,
        at_unequal_speeds,
        of_any_size,
    )
    found: dict[str, Any] = {}
    for part in parts:
        found[part.__name__] = part(group, device)
        torch.cuda.synchronize(device)
        results.write_text(json.dumps(found))


def last_words(group: RankGroup, device: torch.device, results: Path) -> None:
    """The last rank is killed; the others go on, into a sum that never ends or finds no memory, and says which."""
    small = torch.ones(WIDTH, device=device, dtype=torch.bfloat16)
    group.sum(small)
    torch.cuda.synchronize(device)
    if group.rank == group.size - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    group.sum(small)
    ended = torch.cuda.Event()
    ended.record()
    until, failure = time.monotonic() + 2.0, ""
    try:
        while not ended.query() and time.monotonic() < until:
            time.sleep(0.01)
        waits = not ended.query()
    except RuntimeError as error:
        waits, failure = False, str(error).splitlines()[0]
    results.write_text(json.dumps({"waits": waits, "failure": failure}))
    signal.pause()


def main() -> None:
    rank, size, met, results, work = (
        int(sys.argv[1]),
        int(sys.argv[2]),
        sys.argv[3],
        Path(sys.argv[4]),
        sys.argv[5],
    )
    device = torch.device("cuda", rank)
    with torch.inference_mode():
        group = meet(rank, size, met, device)
        if group.exchange is None:
            results.write_text(json.dumps({"reached": False}))
            return
        {"sums": sums, "last_words": last_words}[work](group, device, results)


if __name__ == "__main__":
    main()
