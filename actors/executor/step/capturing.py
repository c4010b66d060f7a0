"""Captures CUDA graphs one after the other, before an executor is ready or while it serves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ....runtime.log import logger
from ..devices.cuda import CudaGraphs
from ..model.paged_model import PagedModel
from .graphs import GraphRunner


def agreed(model: PagedModel, own: bool) -> bool:
    """Whether ``own`` is true on every rank of ``model``: so all of them decide alike what they do together."""
    return own if model.group is None else bool(model.group.least(int(own), model.device))


class Capturing:
    """Captures one graph after another, and keeps ``facts`` up to date with how far that is.

    A capture of several ranks includes what they compute together, so that none begins unless all have the memory: each
    says first whether it can run the step, and then whether it could keep the graph. Which graphs are missing is the
    same on all ranks.
    """

    def __init__(
        self,
        graph_runner: GraphRunner,
        graphs: CudaGraphs,
        reserved: int,
        facts: dict[str, Any],
        has_room: Callable[[], bool],
    ) -> None:
        """``reserved`` bytes were set aside for all of them; ``has_room`` for a step that is captured."""
        self.graph_runner = graph_runner
        self.has_room = has_room
        self.graphs = graphs
        self.reserved = reserved
        self.facts = facts
        self.announces = False
        """The service runs already: it says when there are graphs of all common steps."""
        self.report()

    def capture_next(self) -> float | None:
        """Capture one graph; the seconds that it took, or None if there was none to capture, or no memory."""
        if not self.graph_runner.queue:
            return None
        before = self.graphs.seconds
        model = self.graph_runner.runner.model
        begins = model.group is None or agreed(model, self.has_room())
        done = begins and self.graph_runner.capture_next()
        if not begins or not agreed(model, done):
            self.graph_runner.queue.close()
            done = False
        if self.graph_runner.queue.closed:
            logger.warning(
                "no memory for more than %d CUDA graphs: steps without one run kernel by kernel;"
                " lower --gpu-memory-utilization or --kv-cache-memory",
                self.graph_runner.num_graphs,
            )
        self.report()
        if self.announces and not self.graph_runner.queue.common:
            self.announces = False
            logger.info("the executor is at full speed; CUDA graphs %s", self.facts["graphs"])
        return self.graphs.seconds - before if done else None

    def report(self) -> None:
        """Put into the facts how many graphs there are, what they took, and what is missing."""
        others = f", {len(self.graph_runner.queue.common)} follow" if self.graph_runner.queue.common else ""
        if self.graph_runner.queue.closed:
            others = ", no memory for more"
        took = f"{self.graphs.seconds:.1f} s, {self.graphs.bytes >> 20} MiB ({self.reserved >> 20} were kept back)"
        self.facts["graphs"] = f"{self.graph_runner.num_graphs} in {took}{others}"
