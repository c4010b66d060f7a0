"""How long a captured CUDA graph takes to run."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

REPLAYS = 20
"""Of which one time is the mean; the result is the median of five."""


def captured(work: Callable[[], object], stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
    """The graph of what ``work`` launches on ``stream``, which is the current one, after it has run twice."""
    torch.cuda.synchronize()  # what it reads was made on another stream, with which nothing else puts it in order
    for _ in range(2):
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        work()
    graph.replay()
    return graph


def replay_ms(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream) -> float:
    """Milliseconds of one replay on ``stream``, the current one."""
    times: list[float] = []
    for _ in range(5):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record(stream)
        for _ in range(REPLAYS):
            graph.replay()
        end.record(stream)
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / REPLAYS)
    return statistics.median(times)
