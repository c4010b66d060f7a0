"""The other ranks: each runs the plans that rank 0 hands on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from ....protocol.messages import CaptureNext, Completed, Forget, Plan
from ....runtime.actor import Actor
from ..patience import Patience
from ..pipeline import Pipeline, StepResult
from ..step.batch import RunningBatch


class Follower(Actor):
    """Stages and launches what rank 0 does, and sends nothing.

    Rank 0 may hand on a plan when its own pipeline has a free slot and this one has not yet: what comes early waits.
    """

    blocking = True

    def __init__(
        self,
        name: str,
        rank: int,
        pipeline: Pipeline,
        batch: RunningBatch,
        facts: dict[str, Any],
        capture_next: Callable[[], object] | None = None,
        patience: Patience | None = None,
    ) -> None:
        """``capture_next`` captures the graph that is missing first, where there are any."""
        super().__init__()
        self.name, self.rank = name, rank
        self.pipeline, self.batch = pipeline, batch
        self.facts = facts
        self.capture_next = capture_next
        self.patience = patience
        self.completions_fd = pipeline.device.completions_fd
        self.early: deque[Plan | Forget | CaptureNext] = deque()
        self.sizes: dict[int, int] = {}
        """Tokens of each step that is under way."""
        self.handlers |= {
            Plan: self.on_order,
            Forget: self.on_order,
            CaptureNext: self.on_order,
            Completed: self.on_completed,
        }

    @property
    def idle(self) -> bool:
        return self.pipeline.idle and not self.early

    @property
    def working(self) -> bool:
        return not self.idle

    @property
    def patience_s(self) -> float | None:
        return None if self.patience is None else self.patience.limit_s

    def on_order(self, order: Plan | Forget | CaptureNext, now: float) -> None:
        self.early.append(order)
        self.go_on()

    def go_on(self) -> None:
        """Do what has come, in its order, as far as that is possible now."""
        while self.early and (self.pipeline.idle or (isinstance(self.early[0], Plan) and self.pipeline.free)):
            order = self.early.popleft()
            if isinstance(order, Plan):
                self.launch(order)
            elif isinstance(order, Forget):
                self.batch.clear()
            elif self.capture_next is not None:
                self.capture_next()

    def launch(self, plan: Plan) -> None:
        slot = self.pipeline.acquire()
        step = self.batch.stage(plan, self.pipeline.device.array(slot.staging))
        self.sizes[plan.step] = step.layout.tokens
        self.pipeline.launch(slot, plan.step, step)
        self.pass_masks()

    def pass_masks(self) -> None:
        """Let the step go on that waits for masks: only rank 0, which chooses, has any."""
        if self.pipeline.masks_due is not None:
            self.pipeline.sample()

    def on_completed(self, message: Completed, now: float) -> None:
        for result in self.pipeline.poll_completed():
            self.progress += 1
            self.trace(result)
            tokens = self.sizes.pop(result.number)
            if self.patience is not None:
                begun, ended = result.compute
                self.patience.learn(tokens, (ended - begun) * 1e-9)
        self.pass_masks()
        self.go_on()

    def trace(self, result: StepResult) -> None:
        """Put the times of a step on the timeline, in tracks that have the number of the rank."""
        for stream, (begun, ended) in (
            ("h2d", result.h2d),
            ("compute", result.compute),
            ("d2h", result.d2h),
        ):
            self.ring.add(f"{stream}.{self.rank}", "step", result.number, begun, ended)

    def next_completion(self) -> float | None:
        under_way = self.pipeline.under_way
        return under_way[0].d2h_done.time_ns() * 1e-9 if under_way else None
