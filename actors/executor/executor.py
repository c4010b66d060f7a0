"""The executor: takes plans, keeps the pipeline full, sends back tokens.

What else it has to do is done in pieces, each at a wake of its own, so that no plan waits long: it reads adapters
(``adapter_loader.py``) and does background work (``background_work.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...protocol.events import Completed, PeerUp
from ...protocol.internal import (
    AdapterSlotFilled,
    AdapterSlotFreed,
    Capacity,
    FillAdapterSlot,
    FreeAdapterSlot,
    GrammarEnd,
    Plan,
    Sampled,
)
from .adapter_loader import AdapterLoader
from .background_work import IDLE_S, BackgroundWork
from .model.adapters.loaded import LoadedAdapters
from .pipeline import Pipeline, StepResult
from .sampling.masks import Masks
from .step.batch import RunningBatch
from .step_actor import StepActor
from .step_limit import StepLimit


class Executor(StepActor):
    """Launches every plan of the scheduler, and sends back the tokens of every completed step."""

    name = "executor"

    def __init__(
        self,
        pipeline: Pipeline,
        batch: RunningBatch,
        capacity: Capacity,
        facts: dict[str, Any],
        background_work: Callable[[], float | None] | None = None,
        masks: Masks | None = None,
        step_limit: StepLimit | None = None,
        *,
        catching_up: bool = False,
        missed_twice: Callable[[], bool] | None = None,
        adapters: LoadedAdapters | None = None,
    ) -> None:
        """``background_work`` does one piece of it; this, ``catching_up`` and ``missed_twice`` are as in
        `BackgroundWork`. ``missed_twice`` is asked only after a crash: suspects then run one by one, in steps that are
        small and all alike, so that what was slow twice would be slow for all that still wait.

        ``masks`` are left out where no sequence has a grammar; ``step_limit`` as in `StepActor`. ``adapters``
        are left out where there is no room for any.
        """
        super().__init__(pipeline, batch, facts, step_limit)
        self.background_work: BackgroundWork | None = None
        if background_work is not None:
            if not capacity.crashed:
                missed_twice = None
            self.background_work = BackgroundWork(
                background_work, pipeline, catching_up=catching_up, missed_twice=missed_twice
            )
            self.wake_at = 0.0
            if catching_up:
                self.full_speed_at = None
        self.masks = masks or Masks(None, 0)
        self.capacity = capacity
        self.scheduler_is_new = False
        """Whether there is a new scheduler while steps of the old one are still under way."""
        self.adapter_loader = None if adapters is None else AdapterLoader(adapters)
        if self.adapter_loader is not None:
            self.adapter_loader.describe(capacity)
        self.handlers |= {
            Plan: self.on_plan,
            Completed: self.on_completed,
            FillAdapterSlot: self.on_fill_adapter_slot,
            FreeAdapterSlot: self.on_free_adapter_slot,
        }

    # --- steps ------------------------------------------------------------------------------------

    def on_plan(self, plan: Plan, now: float) -> None:
        if self.background_work is not None:
            self.background_work.on_plan(now)
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
            self.wake_at = now  # send the tokens before computing masks
        self.welcome_scheduler()
        if self.background_work is not None:
            self.background_work.busy_at = now
            if self.background_work.may_catch_up(now):
                self.wake_at = now
            else:
                self.look_again()
        if self.adapter_loader is not None and self.adapter_loader.waiting:
            self.wake_at = now

    def on_wake(self, now: float) -> None:
        """Compute masks; read a piece of an adapter; or do a piece of background work, when nothing has come for a
        while or steps are not yet at full speed."""
        self.fill_masks()
        if self.adapter_loader is not None and self.adapter_loader.waiting:
            self.read_adapter(self.adapter_loader, now)
        elif self.has_time(now):
            self.do_background_work(now)
        else:
            self.look_again()

    # --- background work --------------------------------------------------------------------------

    def has_time(self, now: float) -> bool:
        """Whether a piece of background work may be done now."""
        return self.background_work is not None and self.background_work.has_time(now)

    def do_background_work(self, now: float) -> None:
        """Do one piece of it, if there is any."""
        if self.background_work is None:
            return
        if self.background_work.do(now):
            if self.pipeline.idle:
                self.wake_at = now
        elif self.full_speed_at is None:
            self.full_speed_at = now

    def look_again(self) -> None:
        """Set the timer to when the executor will count as idle, if nothing comes."""
        if self.background_work is not None and self.pipeline.idle:
            self.wake_at = self.background_work.busy_at + IDLE_S

    # --- adapters ---------------------------------------------------------------------------------

    def on_fill_adapter_slot(self, message: FillAdapterSlot, now: float) -> None:
        assert self.adapter_loader is not None
        self.adapter_loader.load(message.adapter)
        self.wake_at = now

    def on_free_adapter_slot(self, message: FreeAdapterSlot, now: float) -> None:
        assert self.adapter_loader is not None
        self.report_slot(self.adapter_loader, self.adapter_loader.unload(message.id))

    def read_adapter(self, adapters: AdapterLoader, now: float) -> None:
        """Read a piece of an adapter; at its end the scheduler hears of it."""
        self.wake_at = now
        answer = adapters.read_piece()
        if answer is not None:
            self.report_slot(adapters, answer)

    def report_slot(self, adapters: AdapterLoader, answer: AdapterSlotFilled | AdapterSlotFreed) -> None:
        adapters.describe(self.capacity)
        self.send("scheduler", answer)

    # --- peers ------------------------------------------------------------------------------------

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
            if self.adapter_loader is not None:
                self.adapter_loader.forget_waiting()
            self.send("scheduler", self.capacity)
            if self.background_work is not None:
                self.background_work.expect_first_tokens(self.now)  # the scheduler will send plans at once


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
