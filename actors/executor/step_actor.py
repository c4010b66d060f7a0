"""The base of all ranks of an executor: launches steps and collects their results."""

from __future__ import annotations

from typing import Any

from ...protocol.internal import Plan
from ...runtime.actor import Actor
from .pipeline import Pipeline, StepResult
from .step.batch import RunningBatch
from .step.description import Step
from .step_limit import StepLimit


class StepActor(Actor):
    """A pure state machine around a device: launches steps, and collects those that the device has completed."""

    blocking = True

    def __init__(
        self,
        pipeline: Pipeline,
        batch: RunningBatch,
        facts: dict[str, Any],
        step_limit: StepLimit | None = None,
        rank: int = 0,
    ) -> None:
        """``step_limit`` learns how long a step may take; it is left out where that is stated."""
        super().__init__()
        self.pipeline, self.batch, self.facts = pipeline, batch, facts
        self.step_limit = step_limit
        self.tokens_of: dict[int, int] = {}
        """The number of tokens of each step under way."""
        self.completions_fd = pipeline.device.completions_fd
        self.tracks = tuple(f"{name}.{rank}" if rank else name for name in ("h2d", "compute", "d2h"))
        """The tracks of the trace, one for each device stream."""

    @property
    def idle(self) -> bool:
        return self.pipeline.idle

    @property
    def working(self) -> bool:
        return not self.idle

    @property
    def hang_limit_s(self) -> float | None:
        step_limit = self.step_limit
        return None if step_limit is None or not step_limit.largest_step else step_limit.limit_s

    def next_completion(self) -> float | None:
        under_way = self.pipeline.under_way
        return under_way[0].d2h_done.time_ns() * 1e-9 if under_way else None

    def launch(self, plan: Plan) -> Step:
        """Stage the step of a plan and queue it on the device, as far as that is possible without masks."""
        slot = self.pipeline.acquire()
        step = self.batch.stage(plan, self.pipeline.device.array(slot.staging))
        self.tokens_of[plan.step] = step.layout.tokens
        self.pipeline.launch(slot, plan.step, step)
        return step

    def collect(self) -> list[StepResult]:
        """The results of the steps that are done, oldest first. They are counted as progress and put into the trace."""
        completed = self.pipeline.poll_completed()
        for result in completed:
            self.progress += 1
            self.trace(result)
            tokens = self.tokens_of.pop(result.number)
            if self.step_limit is not None:
                begun, ended = result.compute
                self.step_limit.learn(tokens, (ended - begun) * 1e-9)
        return completed

    def trace(self, result: StepResult) -> None:
        """Put the times of a step into the trace."""
        h2d, compute, d2h = self.tracks
        (begun, ended), (forward_done, sampling_started) = result.compute, result.stalled
        self.ring.add(h2d, "step", result.number, *result.h2d)
        self.ring.add(compute, "step", result.number, begun, forward_done)
        if sampling_started < ended:
            self.ring.add(compute, "step", result.number, sampling_started, ended)
        self.ring.add(d2h, "step", result.number, *result.d2h)
