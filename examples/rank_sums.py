"""What ranks send each other, and how long it takes over memory that they reach on each other's GPUs and through NCCL.

``python examples/ranks.py --sums --ranks 2`` prints two tables. Each time is that of one of 64 in a CUDA graph. Sums
stand there by themselves and with what follows each in a decoder, where it is added to the residual and that is
normalised: a kernel after NCCL's, and over peer memory the same kernel. What follows takes by itself what the last
column says. The logits are those of a vocabulary of 128,256, the tokens an int32 for each row.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as processes
from slipstream.actors.executor.model.fused.operations import Norm
from slipstream.actors.executor.ranks.exchange import exchange_of, most_bytes_for
from slipstream.actors.executor.ranks.group import RankGroup
from slipstream.actors.executor.ranks.layers import Unsummed
from slipstream.actors.executor.ranks.peer_memory import PeerMemory
from slipstream.actors.executor.ranks.rendezvous import meet
from torch import Tensor

ROWS = (1, 8, 32, 64, 128, 256, 512, 1024, 2048)
ROWS_OF_LOGITS = (1, 8, 16, 32, 64, 256)
WIDTH, VOCABULARY = 4096, 128256
TIMES = 64
REPLAYS = 50

Row = dict[str, float]


def measure(ranks: int) -> dict[str, list[Row]]:
    """Microseconds, for each number of rows."""
    with tempfile.TemporaryDirectory() as folder:
        processes.spawn(run_rank, args=(ranks, folder), nprocs=ranks)  # type: ignore[attr-defined]
        return json.loads((Path(folder) / "found").read_text())


def table(ranks: int) -> str:
    found = measure(ranks)
    lines = [
        f"{ranks} ranks, microseconds of one sum of rows of {WIDTH} bfloat16; by default over peer memory up to"
        f" {most_bytes_for(ranks) // (ranks - 1) >> 10} KiB",
        "rows     KiB     NCCL  peer memory   with what follows: NCCL  peer memory  no sum",
    ]
    for row in found["sums"]:
        lines.append(
            f"{row['rows']:4.0f} {row['rows'] * WIDTH / 512:7.0f} {row['nccl']:8.2f} {row['peer']:12.2f}"
            f" {row['nccl_followed']:25.2f} {row['peer_followed']:12.2f} {row['none_followed']:7.2f}"
        )
    lines += [
        f"the logits of {ranks} ranks side by side, {VOCABULARY} bfloat16 a row, and the tokens of rank 0 on all",
        "rows  KiB of a rank  logits: NCCL  peer memory  tokens: NCCL  peer memory",
    ]
    for row in found["logits"]:
        kib = row["rows"] * VOCABULARY / ranks / 512
        lines.append(
            f"{row['rows']:4.0f} {kib:14.0f} {row['nccl_logits']:13.2f} {row['peer_logits']:12.2f}"
            f" {row['nccl_tokens']:13.2f} {row['peer_tokens']:12.2f}"
        )
    return "\n".join(lines)


def run_rank(rank: int, ranks: int, folder: str) -> None:
    device = torch.device("cuda", rank)
    with torch.inference_mode():
        group = meet(rank, ranks, f"{folder}/met", device)
        ways = {"nccl": RankGroup(rank, ranks, group.backend), "peer": group}
        most_rows = max(max(ROWS) * WIDTH, max(ROWS_OF_LOGITS) * VOCABULARY // ranks)
        group.exchange = exchange_of(
            group, device, lambda nbytes: PeerMemory(device, nbytes), (most_rows * 2 + 4096) * (ranks - 1)
        )
        if group.exchange is None:
            raise SystemExit("these GPUs do not reach each other's memory")
        found = {"sums": time_sums(ways, device), "logits": time_logits(ways, ranks, device)}
    if rank == 0:
        (Path(folder) / "found").write_text(json.dumps(found))


def time_sums(ways: dict[str, RankGroup], device: torch.device) -> list[Row]:
    from slipstream.actors.executor.model.fused.triton_operations import TritonOperations

    weight = torch.nn.Parameter(torch.ones(WIDTH, device=device, dtype=torch.bfloat16))
    norm, operations = Norm(weight, 1e-5, 0.0), TritonOperations()
    found: list[Row] = []
    for rows in ROWS:
        states, residual = torch.zeros(2, rows, WIDTH, device=device, dtype=torch.bfloat16)

        def follow(update: Tensor | Unsummed, residual: Tensor = residual) -> None:
            operations.add_norm(residual, update, None, 1.0, norm)

        found.append({"rows": rows})
        for name, way in ways.items():
            part = Unsummed(states, way)
            # Over peer memory also where a sum by itself would be left to NCCL.
            alone = part.summed if way.exchange is None else partial(way.exchange.sum, states)
            found[-1][name] = microseconds(alone, device)
            found[-1][f"{name}_followed"] = microseconds(lambda f=follow, part=part: f(part), device)
        found[-1]["none_followed"] = microseconds(lambda f=follow, part=states: f(part), device)
    return found


def time_logits(ways: dict[str, RankGroup], ranks: int, device: torch.device) -> list[Row]:
    found: list[Row] = []
    for rows in ROWS_OF_LOGITS:
        part = torch.zeros(rows, VOCABULARY // ranks, device=device, dtype=torch.bfloat16)
        tokens = torch.zeros(rows, device=device, dtype=torch.int32)
        found.append({"rows": rows})
        for name, way in ways.items():

            def gather(way: RankGroup = way, part: Tensor = part) -> Any:
                return way.gather(part, VOCABULARY)

            def broadcast(way: RankGroup = way, tokens: Tensor = tokens) -> Any:
                return way.broadcast(tokens)

            found[-1][f"{name}_logits"] = microseconds(gather, device)
            found[-1][f"{name}_tokens"] = microseconds(broadcast, device)
    return found


def microseconds(work: Callable[[], object], device: torch.device) -> float:
    """Of ``work``, many times in a graph that is replayed many times."""
    stream, graph = torch.cuda.Stream(device), torch.cuda.CUDAGraph()
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)  # what it reads was made on another stream
    with torch.cuda.stream(stream):
        work()
        stream.synchronize()
        graph.capture_begin(capture_error_mode="thread_local")
        for _ in range(TIMES):
            work()
        graph.capture_end()
        for _ in range(REPLAYS):
            graph.replay()
        begun.record()
        for _ in range(REPLAYS):
            graph.replay()
        ended.record()
        stream.synchronize()
    return begun.elapsed_time(ended) * 1000 / (REPLAYS * TIMES)
