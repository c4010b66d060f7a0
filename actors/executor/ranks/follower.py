"""The other ranks: each runs the plans that rank 0 hands on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from ....protocol.events import Completed
from ....protocol.internal import CaptureNext, ClearBatch, Plan
from ..pipeline import Pipeline
from ..step.batch import RunningBatch
from ..step_actor import StepActor
from ..step_limit import StepLimit


class Follower(StepActor):
    """Stages and launches what rank 0 does, and sends nothing.

    Rank 0 may hand on a plan when its own pipeline has a free slot and this one has not yet: what comes early waits.
    """

    def __init__(
        self,
        name: str,
        rank: int,
        pipeline: Pipeline,
        batch: RunningBatch,
        facts: dict[str, Any],
        capture_next: Callable[[], object] | None = None,
        step_limit: StepLimit | None = None,
    ) -> None:
        """``capture_next`` captures the graph that is missing first, where there are any; ``step_limit`` as of
        `StepActor`.
        """
        super().__init__(pipeline, batch, facts, step_limit, rank)
        self.name = name
        self.capture_next = capture_next
        self.early: deque[Plan | ClearBatch | CaptureNext] = deque()
        self.handlers |= {
            Plan: self.on_command,
            ClearBatch: self.on_command,
            CaptureNext: self.on_command,
            Completed: self.on_completed,
        }

    @property
    def idle(self) -> bool:
        return self.pipeline.idle and not self.early

    def on_command(self, command: Plan | ClearBatch | CaptureNext, now: float) -> None:
        self.early.append(command)
        self.go_on()

    def go_on(self) -> None:
        """Do what has come, in its order, as far as that is possible now."""
        while self.early and (self.pipeline.idle or (isinstance(self.early[0], Plan) and self.pipeline.free)):
            command = self.early.popleft()
            if isinstance(command, Plan):
                self.launch(command)
                self.pass_masks()
            elif isinstance(command, ClearBatch):
                self.batch.clear()
            elif self.capture_next is not None:
                self.capture_next()

    def pass_masks(self) -> None:
        """Let the step go on that waits for masks: only rank 0, which samples, has any."""
        if self.pipeline.masks_due is not None:
            self.pipeline.sample()

    def on_completed(self, message: Completed, now: float) -> None:
        self.collect()
        self.pass_masks()
        self.go_on()
