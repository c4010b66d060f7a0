"""The pipeline: a ring of slots, three streams, and the step loop.

    H2D       ▐ inputs N ▌▐ inputs N+1 ▌
    compute              ▐     step N     ▌▐    step N+1    ▌
    D2H                                    ▐ tokens N ▌      ▐ tokens N+1 ▌
    host      ▐ stage N ▌▐ stage N+1 ▌ ...             ▐ hand over N ▌▐ stage N+2 ▌

The host gets control back after ``launch`` because everything in it only queues. Each operation finds
its data ready because an event orders it after the operation that made them. And step N+1 can be
staged before the tokens of step N are known because a step gathers its inputs from the token table on
the device, where the step before put them.

A step with rows that a grammar constrains is launched in two parts: its forward pass at once, its
sampling (``sample``) when the host has the masks, for which it needs the tokens of the step before.
Steps that come meanwhile are staged and wait, since the compute stream runs in order.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .devices.device import Buffer, Device, Event
from .step.batch import StepShape


class Program(Protocol):
    """What one step computes, on the compute stream."""

    def run(self, inputs: Buffer, outputs: Buffer, shape: StepShape) -> None:
        """Read the packed step in ``inputs``; write its results to ``outputs``, as ``shape.results`` says."""
        ...

    def forward(self, inputs: Buffer, shape: StepShape) -> None:
        """The first part of ``run``, of a step with masks; its logits stay with the program."""
        ...

    def sample(self, inputs: Buffer, masks: Buffer, outputs: Buffer, shape: StepShape) -> None:
        """The rest of ``run``, for the step of the ``forward`` before; ``masks`` are as ``Masks.fill`` writes them."""
        ...


@dataclass(slots=True)
class Slot:
    """One of the ring's A, B, …: the buffers and events of a step under way. Allocated once."""

    staging: Buffer
    inputs: Buffer
    outputs: Buffer
    results: Buffer
    h2d_started: Event
    h2d_done: Event
    compute_started: Event
    forward_done: Event
    """With ``sampling_started``: what a step with masks waits in between."""
    sampling_started: Event
    compute_done: Event
    d2h_done: Event
    step: int = -1
    shape: StepShape | None = None


@dataclass(frozen=True, slots=True)
class Handed:
    """A finished step: its outputs, without padding rows; times in ns of the host's monotonic clock."""

    step: int
    tokens: np.ndarray
    """int32 [rows]."""
    logprob_tokens: np.ndarray
    """int32 [rows * logprobs]."""
    logprobs: np.ndarray
    """float32 [rows * logprobs], as int32."""
    prompt_logprob_tokens: np.ndarray
    """int32 [scored * scored_columns]."""
    prompt_logprobs: np.ndarray
    """float32 [scored * scored_columns], as int32."""
    h2d: tuple[int, int]
    compute: tuple[int, int]
    stalled: tuple[int, int]
    """The part of ``compute`` in which the device waited for masks; nothing of it for a step without."""
    d2h: tuple[int, int]


class Pipeline:
    """Runs steps on a device, up to ``depth`` at a time."""

    def __init__(
        self,
        device: Device,
        program: Program,
        depth: int,
        input_size: int,
        output_size: int,
        mask_size: int = 0,
    ) -> None:
        self.device = device
        self.h2d, self.compute, self.d2h = device.h2d, device.compute, device.d2h
        self.program = program
        self.ring = [
            Slot(
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
        """One for all slots: masks are written when every step before theirs has been handed over."""
        self.masks_done = device.event()
        self.free = deque(self.ring)
        self.staged: deque[Slot] = deque()
        """Wait behind the step that waits for its masks."""
        self.unmasked: Slot | None = None
        """Its forward pass is queued, its sampling is not."""
        self.under_way: deque[Slot] = deque()
        """Queued to the end."""
        self.copied_ns = 0
        """When the results of the last step that was handed over had been copied."""

    def acquire(self) -> Slot:
        """The slot of the next step: its last step has been handed over, so no stream touches it."""
        if not self.free:
            raise RuntimeError(f"all {len(self.ring)} pipeline slots are under way; a plan came too early")
        return self.free.popleft()

    def launch(self, slot: Slot, step: int, shape: StepShape) -> None:
        """Queue one staged step, as far as it can be. Nothing here waits on the host."""
        slot.step, slot.shape = step, shape
        self.staged.append(slot)
        self.go_on()

    def go_on(self) -> None:
        """Queue what is staged, up to a step that has to wait for its masks."""
        while self.staged and self.unmasked is None:
            slot = self.staged.popleft()
            assert slot.shape is not None
            self.begin(slot, slot.shape)

    def begin(self, slot: Slot, shape: StepShape) -> None:
        self.h2d.record(slot.h2d_started)
        self.h2d.copy(slot.inputs, slot.staging, shape.size)
        self.h2d.record(slot.h2d_done)

        self.compute.wait(slot.h2d_done)
        self.compute.record(slot.compute_started)
        if shape.masked:
            self.unmasked = slot
            self.compute.launch(
                lambda: self.program.forward(slot.inputs, shape), reads=(slot.inputs,), writes=()
            )
            self.compute.record(slot.forward_done)
            return
        self.compute.launch(
            lambda: self.program.run(slot.inputs, slot.outputs, shape),
            reads=(slot.inputs,),
            writes=(slot.outputs,),
        )
        self.end(slot, shape)

    def sample(self) -> None:
        """Queue the rest of the step that waited: its masks are in ``mask_staging``."""
        slot, self.unmasked = self.unmasked, None
        assert slot is not None
        shape = slot.shape
        assert shape is not None

        self.h2d.copy(self.masks, self.mask_staging, shape.mask_size)
        self.h2d.record(self.masks_done)

        self.compute.wait(self.masks_done)
        self.compute.record(slot.sampling_started)
        self.compute.launch(
            lambda: self.program.sample(slot.inputs, self.masks, slot.outputs, shape),
            reads=(slot.inputs, self.masks),
            writes=(slot.outputs,),
        )
        self.end(slot, shape)
        self.go_on()

    def end(self, slot: Slot, shape: StepShape) -> None:
        self.compute.record(slot.compute_done)

        self.d2h.wait(slot.compute_done)
        self.d2h.copy(slot.results, slot.outputs, shape.output_size)
        self.d2h.record(slot.d2h_done)

        self.device.notify(slot.d2h_done)
        self.under_way.append(slot)

    @property
    def masks_due(self) -> StepShape | None:
        """The step that waits for nothing but its masks: those before it have been handed over."""
        return self.unmasked.shape if self.unmasked is not None and not self.under_way else None

    @property
    def idle(self) -> bool:
        """No step is under way in any way."""
        return len(self.free) == len(self.ring)

    def hand_over(self) -> list[Handed]:
        """The steps that are done, oldest first; never blocks, so the next launch is never held up."""
        self.device.check()
        handed: list[Handed] = []
        while self.under_way and self.under_way[0].d2h_done.query():
            slot = self.under_way.popleft()
            assert slot.shape is not None
            outputs = self.device.array(slot.results)[: slot.shape.output_size].copy()
            done = slot.compute_done.time_ns()
            copying = max(done, self.copied_ns)  # the stream copies one after the other
            self.copied_ns = slot.d2h_done.time_ns()
            stalled = (done, done)
            if slot.shape.masked:
                stalled = (slot.forward_done.time_ns(), slot.sampling_started.time_ns())
            handed.append(
                Handed(
                    slot.step,
                    *slot.shape.unpack(outputs),
                    h2d=(slot.h2d_started.time_ns(), slot.h2d_done.time_ns()),
                    compute=(slot.compute_started.time_ns(), done),
                    stalled=stalled,
                    d2h=(copying, self.copied_ns),
                )
            )
            self.free.append(slot)
        return handed
