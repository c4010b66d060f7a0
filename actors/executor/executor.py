"""The executor: takes plans, keeps the pipeline full, sends back tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...protocol.messages import Capacity, Completed, GrammarEnd, PeerUp, Plan, Sampled
from .patience import Patience
from .pipeline import Pipeline, StepResult
from .sampling.masks import Masks
from .step.batch import RunningBatch
from .step_actor import StepActor

IDLE_S = 0.1
"""Pause after which the executor counts as idle: between the requests of one client there is less."""

CATCHING_UP_SHARE = 1 / 3
"""Of the time, while there are steps to run, what is spent on being at full speed soon: graphs in 3 s take 9 s then."""


class Executor(StepActor):
    """Launches every plan of the scheduler, and sends it back the tokens of every step that is done."""

    name = "executor"

    def __init__(
        self,
        pipeline: Pipeline,
        batch: RunningBatch,
        capacity: Capacity,
        facts: dict[str, Any],
        spare_work: Callable[[], float | None] | None = None,
        masks: Masks | None = None,
        patience: Patience | None = None,
        *,
        catching_up: bool = False,
    ) -> None:
        """``spare_work`` does a piece of what can wait while there are steps to run, and returns the seconds that it
        took; None: nothing was left. ``catching_up``: until then steps are slower than they will be, so that pieces
        are done between steps too.

        ``masks`` are left out where no sequence has a grammar; ``patience`` as of `StepActor`.
        """
        super().__init__(pipeline, batch, facts, patience)
        self.spare_work = spare_work
        if spare_work is not None:
            self.wake_at = 0.0
        if catching_up:
            self.full_speed_at = None
        self.rest_until = 0.0
        """When the next piece may be done between steps."""
        self.masks = masks or Masks(None, 0)
        self.capacity = capacity
        self.scheduler_is_new = False
        """There is a new scheduler, and what the old one started is not over yet."""
        self.handlers |= {Plan: self.on_plan, Completed: self.on_completed}

    def on_plan(self, plan: Plan, now: float) -> None:
        step = self.launch(plan)
        self.masks.begin(np.frombuffer(plan.leaves, np.int32).tolist(), plan.joins, step.masked)
        self.fill_masks()

    def fill_masks(self) -> None:
        """Compute the masks that are due, while the device runs the forward pass of their step."""
        step = self.pipeline.masks_due
        if step is not None:
            self.masks.fill(self.pipeline.device.array(self.pipeline.mask_staging)[: step.mask_size])
            self.pipeline.sample()

    def on_completed(self, message: Completed, now: float) -> None:
        for result in self.collect():
            ends = self.masks.sampled(result.tokens)
            if not self.scheduler_is_new:
                self.send("scheduler", sampled(result, ends))
        if self.pipeline.masks_due is not None:
            self.wake_at = now  # first let the tokens go
        self.welcome_scheduler()
        if self.may_catch_up(now):
            self.wake_at = now
        elif self.spare_work is not None and self.pipeline.idle:
            self.wake_at = now + IDLE_S

    def on_wake(self, now: float) -> None:
        """Compute masks; or do a piece of what can wait, when nothing has come for a while or full speed is to come."""
        self.fill_masks()
        if self.pipeline.idle or self.may_catch_up(now):
            self.do_spare_work(now)

    def do_spare_work(self, now: float) -> None:
        """A piece of it, if there is any."""
        if self.spare_work is None:
            return
        took_s = self.spare_work()
        if took_s is None:
            if self.full_speed_at is None:
                self.full_speed_at = now
            return
        self.rest_until = now + took_s / CATCHING_UP_SHARE
        if self.pipeline.idle:
            self.wake_at = now

    def may_catch_up(self, now: float) -> bool:
        """A piece of spare work may be done between steps.

        Not while a step waits for its masks: its forward pass is over, and its logits are where a graph's would be.
        """
        return self.full_speed_at is None and now >= self.rest_until and self.pipeline.unmasked is None

    def on_peer_up(self, peer: PeerUp, now: float) -> None:
        if peer.name == "scheduler":
            self.scheduler_is_new = True
            self.welcome_scheduler()

    def welcome_scheduler(self) -> None:
        """Send a new scheduler the capacity, once nothing of an old one is under way."""
        if self.scheduler_is_new and self.pipeline.idle:
            self.scheduler_is_new = False
            self.batch.clear()
            self.masks.clear()
            self.send("scheduler", self.capacity)


def sampled(result: StepResult, ends: list[GrammarEnd]) -> Sampled:
    """The message for a finished step; ``ends`` are the sequences that end with it by their grammars."""
    (begun, ended), (forward_done, sampling_started) = result.compute, result.stalled
    return Sampled(
        result.number,
        result.tokens.tobytes(),
        begun,
        ended,
        result.logprob_tokens.tobytes(),
        result.logprobs.tobytes(),
        ends,
        result.prompt_logprob_tokens.tobytes(),
        result.prompt_logprobs.tobytes(),
        sampling_started - forward_done,
    )
