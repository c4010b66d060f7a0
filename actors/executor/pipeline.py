"""The pipeline: a ring of slots, three streams, and the step loop.

    H2D       ▐ inputs N ▌▐ inputs N+1 ▌
    compute              ▐     step N     ▌▐    step N+1    ▌
    D2H                                    ▐ tokens N ▌      ▐ tokens N+1 ▌
    host      ▐ stage N ▌▐ stage N+1 ▌ ...             ▐ hand over N ▌▐ stage N+2 ▌

The host gets control back after ``launch`` because everything in it only queues. Each operation finds
its data ready because an event orders it after the operation that made them. And step N+1 can be
staged before the tokens of step N are known because a step gathers its inputs from the token table on
the device, where the step before put them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .batch import StepShape
from .device import Buffer, Device, Event


class Program(Protocol):
    """What one step computes, on the compute stream."""

    def run(self, inputs: Buffer, outputs: Buffer, shape: StepShape) -> None:
        """Read the packed step in ``inputs``; write its results to ``outputs``, as ``shape.results`` says."""
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
    h2d: tuple[int, int]
    compute: tuple[int, int]
    d2h: tuple[int, int]


class Pipeline:
    """Runs steps on a device, up to ``depth`` at a time."""

    def __init__(
        self, device: Device, program: Program, depth: int, input_size: int, output_size: int
    ) -> None:
        self.device = device
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
                compute_done=device.event(),
                d2h_done=device.event(),
            )
            for _ in range(depth)
        ]
        self.free = deque(self.ring)
        self.under_way: deque[Slot] = deque()
        self.copied_ns = 0
        """When the results of the last step that was handed over had been copied."""

    def acquire(self) -> Slot:
        """The slot of the next step: its last step has been handed over, so no stream touches it."""
        if not self.free:
            raise RuntimeError(f"all {len(self.ring)} pipeline slots are under way; a plan came too early")
        return self.free.popleft()

    def launch(self, slot: Slot, step: int, shape: StepShape) -> None:
        """Queue one staged step. Nothing here waits on the host."""
        h2d, compute, d2h = self.device.h2d, self.device.compute, self.device.d2h
        slot.step, slot.shape = step, shape

        h2d.record(slot.h2d_started)
        h2d.copy(slot.inputs, slot.staging, shape.size)
        h2d.record(slot.h2d_done)

        compute.wait(slot.h2d_done)
        compute.record(slot.compute_started)
        compute.launch(
            lambda: self.program.run(slot.inputs, slot.outputs, shape),
            reads=(slot.inputs,),
            writes=(slot.outputs,),
        )
        compute.record(slot.compute_done)

        d2h.wait(slot.compute_done)
        d2h.copy(slot.results, slot.outputs, shape.output_size)
        d2h.record(slot.d2h_done)

        self.device.notify(slot.d2h_done)
        self.under_way.append(slot)

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
            handed.append(
                Handed(
                    slot.step,
                    *slot.shape.unpack(outputs),
                    h2d=(slot.h2d_started.time_ns(), slot.h2d_done.time_ns()),
                    compute=(slot.compute_started.time_ns(), done),
                    d2h=(copying, self.copied_ns),
                )
            )
            self.free.append(slot)
        return handed
