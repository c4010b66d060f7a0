"""The pipeline: a few sets of buffers, three device streams, and the step loop.

    H2D       ▐ inputs N ▌▐ inputs N+1 ▌
    compute              ▐     step N     ▌▐    step N+1    ▌
    D2H                                    ▐ tokens N ▌      ▐ tokens N+1 ▌
    host      ▐ stage N ▌▐ stage N+1 ▌ ...             ▐  poll N  ▌▐ stage N+2 ▌

The host gets control back after ``launch`` because everything in it only queues work. The data of each operation are
ready because an event orders it after the operation that made them. And step N+1 can be staged before the tokens of
step N are known because a step gathers its inputs from the token table on the device, where step N has put them.

A step with rows that a grammar constrains is launched in two parts: its forward pass at once, and its sampling
(``sample``) when the host has the masks, for which it needs the tokens of the step before. Steps that come meanwhile
are staged and wait, since the compute stream runs in order.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .devices.device import Buffer, Device, Event
from .step.description import Step


class StepRunner(Protocol):
    """The computation of one step, on the compute stream."""

    def run(self, inputs: Buffer, outputs: Buffer, step: Step) -> None:
        """Read the packed step in ``inputs``; write its results to ``outputs``, as ``step.results`` says."""
        ...

    def begin(self, inputs: Buffer, step: Step) -> None:
        """The first part of ``run``, for a step with masks; the runner keeps the logits."""
        ...

    def finish(self, inputs: Buffer, masks: Buffer, outputs: Buffer, step: Step) -> None:
        """The rest of ``run``, for the step that has begun; ``masks`` are as ``Masks.fill`` writes them."""
        ...


@dataclass(slots=True)
class PipelineSlot:
    """The buffers and events of a step under way; all are allocated once, at the start."""

    staging: Buffer
    inputs: Buffer
    outputs: Buffer
    results: Buffer
    h2d_started: Event
    h2d_done: Event
    compute_started: Event
    forward_done: Event
    """The end of the forward pass of a step with masks; until ``sampling_started`` it waits for these."""
    sampling_started: Event
    compute_done: Event
    d2h_done: Event
    number: int = -1
    step: Step | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """A finished step: its outputs, without padding rows; times in ns of the host's monotonic clock."""

    number: int
    tokens: np.ndarray
    """int32 [rows]."""
    logprob_tokens: np.ndarray
    """int32 [rows * logprobs]."""
    logprobs: np.ndarray
    """float32 [rows * logprobs], as int32."""
    prompt_logprob_tokens: np.ndarray
    """int32 [prompt_logprobs * prompt_columns]."""
    prompt_logprobs: np.ndarray
    """float32 [prompt_logprobs * prompt_columns], as int32."""
    h2d: tuple[int, int]
    compute: tuple[int, int]
    stalled: tuple[int, int]
    """Begin and end of the time within ``compute`` in which the device waited for masks; empty without masks."""
    d2h: tuple[int, int]


class Pipeline:
    """Runs steps on a device, up to ``depth`` at a time."""

    def __init__(
        self,
        device: Device,
        runner: StepRunner,
        depth: int,
        input_size: int,
        output_size: int,
        mask_size: int = 0,
    ) -> None:
        """Sizes in int32, of the largest step."""
        self.device = device
        self.h2d, self.compute, self.d2h = device.h2d, device.compute, device.d2h
        self.runner = runner
        self.slots = [
            PipelineSlot(
                staging=device.staging(input_size),
                inputs=device.buffer(input_size),
                outputs=device.buffer(output_size),
                results=device.staging(output_size),
                h2d_started=device.event(),
                h2d_done=device.event(),
                compute_started=device.event(),
                forward_done=device.event(),
                sampling_started=device.event(),
                compute_done=device.event(),
                d2h_done=device.event(),
            )
            for _ in range(depth)
        ]
        self.masks = device.buffer(mask_size)
        self.mask_staging = device.staging(mask_size)
        """One buffer for all slots is enough: masks are written when the results of every earlier step have come."""
        self.masks_done = device.event()
        self.free = deque(self.slots)
        self.staged: deque[PipelineSlot] = deque()
        """Staged steps, behind one that waits for its masks."""
        self.awaiting_masks: PipelineSlot | None = None
        """The slot of the step that waits for its masks: its forward pass is queued, its sampling is not."""
        self.under_way: deque[PipelineSlot] = deque()
        """The slots of steps that are queued to their end."""
        self.copied_ns = 0
        """The time at which the results of the last polled step had been copied to the host, in ns."""

    def acquire(self) -> PipelineSlot:
        """A slot for the next step. The results of the last step in it have come, so no device stream uses it."""
        if not self.free:
            raise RuntimeError(f"all {len(self.slots)} pipeline slots are under way; a plan came too early")
        return self.free.popleft()

    def launch(self, slot: PipelineSlot, number: int, step: Step) -> None:
        """Queue a staged step, as far as possible. Nothing here makes the host wait."""
        slot.number, slot.step = number, step
        self.staged.append(slot)
        self.queue_staged()

    def queue_staged(self) -> None:
        """Queue what is staged, up to a step that has to wait for its masks."""
        while self.staged and self.awaiting_masks is None:
            slot = self.staged.popleft()
            assert slot.step is not None
            self.begin(slot, slot.step)

    def begin(self, slot: PipelineSlot, step: Step) -> None:
        """Queue a staged step to its end, or up to its sampling if that needs masks."""
        self.h2d.record(slot.h2d_started)
        self.h2d.copy(slot.inputs, slot.staging, step.layout.input_size)
        self.h2d.record(slot.h2d_done)

        self.compute.wait(slot.h2d_done)
        self.compute.record(slot.compute_started)
        if step.masked:
            self.awaiting_masks = slot
            self.compute.launch(lambda: self.runner.begin(slot.inputs, step), reads=(slot.inputs,), writes=())
            self.compute.record(slot.forward_done)
            return
        self.compute.launch(
            lambda: self.runner.run(slot.inputs, slot.outputs, step),
            reads=(slot.inputs,),
            writes=(slot.outputs,),
        )
        self.end(slot, step)

    def sample(self) -> None:
        """Queue the rest of the step that waited for its masks, which are now in ``mask_staging``."""
        slot, self.awaiting_masks = self.awaiting_masks, None
        assert slot is not None
        step = slot.step
        assert step is not None

        self.h2d.copy(self.masks, self.mask_staging, step.mask_size)
        self.h2d.record(self.masks_done)

        self.compute.wait(self.masks_done)
        self.compute.record(slot.sampling_started)
        self.compute.launch(
            lambda: self.runner.finish(slot.inputs, self.masks, slot.outputs, step),
            reads=(slot.inputs, self.masks),
            writes=(slot.outputs,),
        )
        self.end(slot, step)
        self.queue_staged()

    def end(self, slot: PipelineSlot, step: Step) -> None:
        """Queue what follows the sampling: the copy of the results to the host, and the host's notification."""
        self.compute.record(slot.compute_done)

        self.d2h.wait(slot.compute_done)
        self.d2h.copy(slot.results, slot.outputs, step.results.size)
        self.d2h.record(slot.d2h_done)

        self.device.notify(self.d2h)
        self.under_way.append(slot)

    @property
    def masks_due(self) -> Step | None:
        """The step that waits only for its masks, as the results of all earlier steps have come; None if there is
        none."""
        return self.awaiting_masks.step if self.awaiting_masks is not None and not self.under_way else None

    @property
    def idle(self) -> bool:
        """Whether no step is staged or under way."""
        return len(self.free) == len(self.slots)

    def poll_completed(self) -> list[StepResult]:
        """The results of the steps that are done, oldest first. It never blocks, so it delays no launch."""
        self.device.check()
        completed: list[StepResult] = []
        while self.under_way and self.under_way[0].d2h_done.query():
            slot = self.under_way.popleft()
            step = slot.step
            assert step is not None
            outputs = self.device.array(slot.results)[: step.results.size].copy()
            done = slot.compute_done.time_ns()
            copying = max(done, self.copied_ns)  # the stream makes one copy after the other
            self.copied_ns = slot.d2h_done.time_ns()
            stalled = (done, done)
            if step.masked:
                stalled = (slot.forward_done.time_ns(), slot.sampling_started.time_ns())
            completed.append(
                StepResult(
                    slot.number,
                    *step.unpack(outputs),
                    h2d=(slot.h2d_started.time_ns(), slot.h2d_done.time_ns()),
                    compute=(slot.compute_started.time_ns(), done),
                    stalled=stalled,
                    d2h=(copying, self.copied_ns),
                )
            )
            self.free.append(slot)
        return completed
