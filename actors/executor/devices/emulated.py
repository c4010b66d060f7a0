"""The emulated device: takes a stated time per step.

It lets the whole service run at the speed of a GPU on a machine without one. Work is done at once,
when it is queued; *when it would be done* is kept as a time per stream, which is exact however late
the host wakes up. Only the host's wait for a result follows the clock.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from ....runtime.process.priority import raise_priority
from .device import Buffer

COPY_NS = 5_000
"""Time of a transfer of a few kilobytes over PCIe."""


class EmulatedEvent:
    def __init__(self, device: EmulatedDevice) -> None:
        self.device = device
        self.passed_ns = 0

    def query(self) -> bool:
        return self.device.clock_ns() >= self.passed_ns

    def wait(self) -> None:
        sleep_until(self.passed_ns)

    def time_ns(self) -> int:
        return self.passed_ns


class EmulatedStream:
    """A stream whose work takes ``duration_ns`` per operation."""

    def __init__(self, device: EmulatedDevice, name: str, duration_ns: int) -> None:
        self.device = device
        self.name = name
        self.duration_ns = duration_ns
        self.busy_until_ns = 0
        self.unfinished = False
        """The last launch had no output: it was the first part of a step, which has taken the step's time."""

    def run(self, work: Callable[[], None], duration_ns: int) -> None:
        """Do the work now; on the timeline it starts when the stream is free, and takes its duration."""
        self.busy_until_ns = max(self.busy_until_ns, self.device.clock_ns()) + duration_ns
        work()

    def copy(self, target: Buffer, source: Buffer, count: int) -> None:
        def work() -> None:
            target[:count] = source[:count]

        self.run(work, self.duration_ns)

    def launch(self, work: Callable[[], None], reads: Sequence[Buffer], writes: Sequence[Buffer]) -> None:
        self.run(work, 0 if self.unfinished else self.duration_ns)
        self.unfinished = not writes

    def record(self, event: EmulatedEvent) -> None:
        event.passed_ns = max(self.busy_until_ns, self.device.clock_ns())

    def wait(self, event: EmulatedEvent) -> None:
        self.busy_until_ns = max(self.busy_until_ns, event.passed_ns)


class EmulatedDevice:
    """Three streams on a virtual timeline.

    ``clock_ns`` is the host's monotonic clock, or a simulator's. With ``realtime`` a thread wakes
    the host when an event has passed; without it, a simulator reads from the events when they pass.
    """

    name = "emulated"

    def __init__(
        self,
        step_ms: float,
        *,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        realtime: bool = True,
    ) -> None:
        self.clock_ns = clock_ns
        self.h2d = EmulatedStream(self, "h2d", COPY_NS)
        self.compute = EmulatedStream(self, "compute", int(step_ms * 1e6))
        self.d2h = EmulatedStream(self, "d2h", COPY_NS)
        self.completions_fd: int | None = None
        if realtime:
            self.completions_fd = os.eventfd(0, os.EFD_NONBLOCK)
            self.watched: queue.SimpleQueue[int | None] = queue.SimpleQueue()
            threading.Thread(target=self.watch, name="completions", daemon=True).start()

    def watch(self) -> None:
        raise_priority()
        assert self.completions_fd is not None
        while (passed_ns := self.watched.get()) is not None:
            sleep_until(passed_ns)
            os.eventfd_write(self.completions_fd, 1)

    def event(self) -> EmulatedEvent:
        return EmulatedEvent(self)

    def staging(self, count: int) -> np.ndarray:
        return np.zeros(count, np.int32)

    def buffer(self, count: int) -> np.ndarray:
        return np.zeros(count, np.int32)

    def array(self, staging: Buffer) -> np.ndarray:
        return staging

    def notify(self, stream: EmulatedStream) -> None:
        if self.completions_fd is not None:
            self.watched.put(stream.busy_until_ns)

    def check(self) -> None:
        """Work runs when it is queued, and raises there."""

    def close(self) -> None:
        if self.completions_fd is not None:
            self.watched.put(None)


def sleep_until(time_ns: int) -> None:
    while (left := time_ns - time.monotonic_ns()) > 0:
        time.sleep(left * 1e-9)
