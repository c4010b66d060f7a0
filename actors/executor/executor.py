"""The executor: takes plans, keeps the pipeline full, sends back tokens.

What else it has to do is done in pieces, each at a wake of its own, so that no plan waits long: it reads an adapter
that is being loaded, and does background work, such as the capture of graphs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ...protocol.errors import InvalidRequest
from ...protocol.events import Completed, PeerUp
from ...protocol.internal import Adapter, AdapterPlaced, Capacity, GrammarEnd, PlaceAdapter, Plan, Sampled
from .model.adapters.loaded import LoadedAdapters
from .pipeline import Pipeline, StepResult
from .sampling.masks import Masks
from .step.batch import RunningBatch
from .step_actor import StepActor
from .step_limit import StepLimit

IDLE_S = 0.1
"""Pause after which the executor counts as idle: between the requests of one client there is less."""

CATCHING_UP_SHARE = 0.6
"""Share of the time that captures of graphs get while steps run: captures of 3 s take 5 s then. Those that steps have
met come first, so that most of what follows is fast before."""


FIRST_TOKENS_S = 1.0
"""After a pause steps alone have the time, though they are slower than they will be: after a death all streams wait for
their next token, and after a start the first requests for their first."""


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
        repeats: Callable[[], bool] | None = None,
        adapters: LoadedAdapters | None = None,
    ) -> None:
        """``background_work`` does one piece of work that can wait for a pause, such as the capture of a graph, and
        returns the seconds that it took; None: nothing was left. ``catching_up``: steps are slower until all of it
        is done, so pieces are done between steps too. ``repeats``: whether steps were slow twice for lack of one piece.

        ``masks`` are left out where no sequence has a grammar; ``step_limit`` as of `StepActor`. ``adapters``
        are left out where there is no room for any.
        """
        super().__init__(pipeline, batch, facts, step_limit)
        self.background_work = background_work
        if background_work is not None:
            self.wake_at = 0.0
        if catching_up:
            self.full_speed_at = None
        self.repeats = repeats
        self.rest_until = 0.0
        """When the next piece of background work may be done between steps."""
        self.busy_at = -IDLE_S
        """When there was last something to run."""
        self.masks = masks or Masks(None, 0)
        self.capacity = capacity
        self.scheduler_is_new = False
        """There is a new scheduler, and steps of the old one are still under way."""
        self.adapters = adapters
        self.placing: deque[tuple[Adapter, Iterator[None]]] = deque()
        """Adapters that are being read, a piece at each wake; the first one is under way."""
        self.tell_adapters()
        self.handlers |= {
            Plan: self.on_plan,
            Completed: self.on_completed,
            PlaceAdapter: self.on_place_adapter,
        }

    def on_plan(self, plan: Plan, now: float) -> None:
        if self.full_speed_at is None and now - self.busy_at >= IDLE_S and self.pipeline.idle:
            self.expect_first_tokens(now)
        self.busy_at = now
        step = self.launch(plan)
        self.masks.begin(np.frombuffer(plan.leaves, np.int32).tolist(), plan.joins, step.masked)
        self.fill_masks()

    def expect_first_tokens(self, now: float) -> None:
        self.rest_until = max(self.rest_until, now + FIRST_TOKENS_S)

    def fill_masks(self) -> None:
        """Compute the masks that are due, while the device runs the forward pass of their step."""
        step = self.pipeline.masks_due
        if step is not None:
            self.masks.fill(self.pipeline.device.array(self.pipeline.mask_staging)[: step.mask_size])
            self.pipeline.sample()

    def on_completed(self, message: Completed, now: float) -> None:
        self.busy_at = now
        for result in self.collect():
            ends = self.masks.sampled(result.tokens)
            if not self.scheduler_is_new:
                self.send("scheduler", sampled(result, ends))
        if self.pipeline.masks_due is not None:
            self.wake_at = now  # first let the tokens go
        self.welcome_scheduler()
        if self.may_catch_up(now):
            self.wake_at = now
        elif self.background_work is not None and self.pipeline.idle:
            self.wake_at = now + IDLE_S
        if self.placing:
            self.wake_at = now

    def on_wake(self, now: float) -> None:
        """Compute masks; read a piece of an adapter; or do a piece of background work, when nothing has come for a
        while or steps are not yet at full speed."""
        self.fill_masks()
        if self.placing:
            self.place_next(now)
        elif self.has_time(now):
            self.do_background_work(now)
        else:
            self.look_again()

    def on_place_adapter(self, message: PlaceAdapter, now: float) -> None:
        assert self.adapters is not None
        adapter = message.adapter
        if adapter.path:
            self.placing.append((adapter, self.adapters.load(adapter)))
            self.wake_at = now
        else:
            self.adapters.unload(adapter.id)
            self.tell_adapters()
            self.send("scheduler", AdapterPlaced(adapter))

    def place_next(self, now: float) -> None:
        """Read a piece of an adapter; at its end the scheduler hears of it."""
        adapter, pieces = self.placing[0]
        self.wake_at = now
        error = ""
        try:
            next(pieces)
            return
        except StopIteration:
            self.tell_adapters()
        except InvalidRequest as reason:
            error = str(reason)
        self.placing.popleft()
        self.send("scheduler", AdapterPlaced(adapter, error))

    def tell_adapters(self) -> None:
        """A new scheduler will hear of those that are loaded now."""
        if self.adapters is not None:
            self.capacity.adapters = list(self.adapters.loaded.values())
            self.capacity.adapter_places = self.adapters.places.count

    def do_background_work(self, now: float) -> None:
        """Do one piece of it, if there is any."""
        if self.background_work is None:
            return
        took_s = self.background_work()
        if took_s is None:
            if self.full_speed_at is None:
                self.full_speed_at = now
            return
        self.rest_until = now + took_s / CATCHING_UP_SHARE
        if self.pipeline.idle:
            self.wake_at = now

    def has_time(self, now: float) -> bool:
        """Whether a piece of background work may be done now. It is not enough that no step is under way: between two
        steps that follow each other there may be such a moment too."""
        return (self.pipeline.idle and now >= self.busy_at + IDLE_S) or self.may_catch_up(now)

    def look_again(self) -> None:
        """Wake when there may be time for background work, if nothing comes."""
        if self.background_work is not None and self.pipeline.idle:
            self.wake_at = self.busy_at + IDLE_S

    def may_catch_up(self, now: float) -> bool:
        """A piece of background work may be done between steps.

        Not while a step waits for its masks: its forward pass is over, and its logits are where a graph's would be.
        """
        if self.full_speed_at is not None or self.pipeline.awaiting_masks is not None:
            return False
        return now >= self.rest_until or self.tries_suspects()

    def tries_suspects(self) -> bool:
        """After a crash suspects are tried one by one, in steps so small that the host is what takes long. They are all
        alike: what was slow twice would be so for all that still wait."""
        return self.capacity.crashed and self.repeats is not None and self.repeats()

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
            self.placing.clear()  # the new one asks for them again
            self.send("scheduler", self.capacity)
            self.busy_at = self.now  # it sends what waits for it
            self.expect_first_tokens(self.now)


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
