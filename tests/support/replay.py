"""A stand-in for CUDA graphs on a CPU: what was captured is run again, over the same static buffers.

Python's numbers are then what they were at the capture, as in a graph, and what a step really has must be read
from the static inputs: a graph that reads what it should not gives other tokens here too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from slipstream.actors.executor.devices.cuda import CudaDevice, CudaGraphs
from slipstream.actors.executor.step.description import Step
from slipstream.actors.executor.step.graphs import GraphRunner
from torch import Tensor


class Replay:
    """One graph."""

    def __init__(self, work: Callable[[], None], replays: list[int]) -> None:
        self.work = work
        self.replays = replays

    @torch.inference_mode()
    def replay(self) -> None:
        self.replays[0] += 1
        self.work()


class Replays:
    """In place of `CudaGraphs`."""

    def __init__(self) -> None:
        self.count = 0
        self.replays = [0]

    @torch.inference_mode()
    def capture(self, prepare: Callable[[], None] | None, work: Callable[[], None]) -> Replay:
        if prepare is not None:
            prepare()
            work()
        self.count += 1
        return Replay(work, self.replays)


class CountedGraphs:
    """Graphs of a GPU, whose replays are counted as those of the stand-in are."""

    def __init__(self, device: CudaDevice) -> None:
        self.graphs = CudaGraphs(device)
        self.count = 0
        self.replays = [0]

    def capture(self, prepare: Callable[[], None] | None, work: Callable[[], None]) -> Replay:
        graph = self.graphs.capture(prepare, work)
        self.count += 1
        return Replay(graph.replay, self.replays)


class SpoilingRunner(GraphRunner):
    """Between steps everything static holds what must not be read: NaN and numbers out of bounds.

    A later graph of the same pool writes where an earlier one had its results; so does this.
    """

    def begin(self, inputs: Tensor, step: Step) -> None:
        self.inputs.fill_(1 << 30)
        self.logits.fill_(float("nan"))
        self.outputs.fill_(1 << 30)
        super().begin(inputs, step)
