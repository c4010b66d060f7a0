"""What a sum of several ranks takes: over memory that they reach on each other's GPUs, and through NCCL.

``python examples/ranks.py --sums --ranks 2`` prints the table. Each time is that of one of 64 sums in a CUDA graph, by
themselves and with what follows each in a decoder, where it is added to the residual and that is normalised: a kernel
after NCCL's, and over peer memory the same kernel. What follows takes by itself what the last column says.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.multiprocessing as processes
from slipstream.actors.executor.model.fused.operations import Norm
from slipstream.actors.executor.ranks.group import RankGroup
from slipstream.actors.executor.ranks.layers import Unsummed
from slipstream.actors.executor.ranks.meeting import meet
from slipstream.actors.executor.ranks.peer_memory import PeerMemory
from slipstream.actors.executor.ranks.peer_sum import MOST_BYTES, peer_sum_of
from torch import Tensor

ROWS = (1, 8, 32, 64, 128, 256)
WIDTH = 4096
SUMS = 64
REPLAYS = 50


def measure(ranks: int) -> list[dict[str, float]]:
    """Microseconds, for each number of rows."""
    with tempfile.TemporaryDirectory() as folder:
        processes.spawn(run_rank, args=(ranks, folder), nprocs=ranks)  # type: ignore[attr-defined]
        return json.loads((Path(folder) / "found").read_text())


def table(ranks: int) -> str:
    lines = [
        f"{ranks} ranks, microseconds of one sum of rows of {WIDTH} bfloat16; by default over peer memory up to"
        f" {MOST_BYTES // (ranks - 1) >> 10} KiB",
        "rows     KiB     NCCL  peer memory   with what follows: NCCL  peer memory  no sum",
    ]
    for row in measure(ranks):
        lines.append(
            f"{row['rows']:4.0f} {row['rows'] * WIDTH / 512:7.0f} {row['nccl']:8.2f} {row['peer']:12.2f}"
            f" {row['nccl_followed']:25.2f} {row['peer_followed']:12.2f} {row['none_followed']:7.2f}"
        )
    return "\n".join(lines)


def run_rank(rank: int, ranks: int, folder: str) -> None:
    from slipstream.actors.executor.model.fused.kernels import TritonOperations

    device = torch.device("cuda", rank)
    with torch.inference_mode():
        group = meet(rank, ranks, f"{folder}/met", device)
        by_nccl = RankGroup(rank, ranks, group.backend)
        largest = max(ROWS) * WIDTH * 2 * (ranks - 1)
        group.small = peer_sum_of(group, device, lambda nbytes: PeerMemory(device, nbytes), largest)
        if group.small is None:
            raise SystemExit("these GPUs do not reach each other's memory")
        weight = torch.nn.Parameter(torch.ones(WIDTH, device=device, dtype=torch.bfloat16))
        norm = Norm(weight, 1e-5, 0.0)
        operations = TritonOperations()
        found: list[dict[str, float]] = []
        for rows in ROWS:
            states, residual = torch.zeros(2, rows, WIDTH, device=device, dtype=torch.bfloat16)

            def follow(update: Tensor | Unsummed, residual: Tensor = residual) -> None:
                operations.add_norm(residual, update, None, 1.0, norm)

            found.append({"rows": rows})
            for name, one in (("nccl", by_nccl), ("peer", group)):
                part = Unsummed(states, one)
                found[-1][name] = microseconds(part.summed, device)
                found[-1][f"{name}_followed"] = microseconds(lambda f=follow, part=part: f(part), device)
            found[-1]["none_followed"] = microseconds(lambda f=follow, part=states: f(part), device)
    if rank == 0:
        (Path(folder) / "found").write_text(json.dumps(found))


def microseconds(work: Callable[[], object], device: torch.device) -> float:
    """Of ``work``, many times in a graph that is replayed many times."""
    stream, graph = torch.cuda.Stream(device), torch.cuda.CUDAGraph()
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)  # what it reads was made on another stream
    with torch.cuda.stream(stream):
        work()
        stream.synchronize()
        graph.capture_begin(capture_error_mode="thread_local")
        for _ in range(SUMS):
            work()
        graph.capture_end()
        for _ in range(REPLAYS):
            graph.replay()
        begun.record()
        for _ in range(REPLAYS):
            graph.replay()
        ended.record()
        stream.synchronize()
    return begun.elapsed_time(ended) * 1000 / (REPLAYS * SUMS)
