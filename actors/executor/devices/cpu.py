"""The CPU device: its streams are a worker thread, so the overlap of host and device is real here too.

Torch releases the interpreter lock inside its operations, and that is where the host prepares the
next step. A CPU has no engines that copy while it computes, so one worker is all three streams. With a
thread for each, decoding in small steps was 3 to 30 % slower: a step goes from thread to thread, and each
has to get the interpreter lock first.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from .device import Buffer


class Recording:
    """One recording of an event."""

    __slots__ = ("done", "time_ns")

    def __init__(self) -> None:
        self.done = threading.Event()
        self.time_ns = 0

    def set(self) -> None:
        self.time_ns = time.monotonic_ns()
        self.done.set()


class CpuEvent:
    def __init__(self) -> None:
        self.latest = Recording()

    def query(self) -> bool:
        return self.latest.done.is_set()

    def wait(self) -> None:
        self.latest.done.wait()

    def time_ns(self) -> int:
        return self.latest.time_ns


class CpuStream:
    """A thread that runs what is queued, in order. Work that raises ends the stream, and the host learns of it."""

    def __init__(self, name: str, completions_fd: int) -> None:
        self.name = name
        self.completions_fd = completions_fd
        self.queue: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self.failure: Exception | None = None
        threading.Thread(target=self.work, name=name, daemon=True).start()

    def work(self) -> None:
        try:
            with torch.inference_mode():
                while (item := self.queue.get()) is not None:
                    item()
        except Exception as error:
            self.failure = error
            os.eventfd_write(self.completions_fd, 1)

    def copy(self, target: Buffer, source: Buffer, count: int) -> None:
        self.queue.put(lambda: target[:count].copy_(source[:count]))

    def launch(self, work: Callable[[], None], reads: Sequence[Buffer], writes: Sequence[Buffer]) -> None:
        self.queue.put(work)

    def record(self, event: CpuEvent) -> None:
        event.latest = Recording()
        self.queue.put(event.latest.set)

    def wait(self, event: CpuEvent) -> None:
        self.queue.put(event.latest.done.wait)


class CpuDevice:
    """One worker and plain memory."""

    name = "cpu"

    def __init__(self) -> None:
        fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.completions_fd: int | None = fd
        self.h2d = self.compute = self.d2h = CpuStream("cpu", fd)

    def event(self) -> CpuEvent:
        return CpuEvent()

    def staging(self, count: int) -> torch.Tensor:
        return torch.zeros(count, dtype=torch.int32)

    def buffer(self, count: int) -> torch.Tensor:
        return torch.zeros(count, dtype=torch.int32)

    def array(self, staging: Buffer) -> np.ndarray:
        return staging.numpy()

    def notify(self, stream: CpuStream) -> None:
        fd = self.completions_fd
        assert fd is not None
        stream.queue.put(lambda: os.eventfd_write(fd, 1))

    def check(self) -> None:
        if self.compute.failure is not None:
            raise self.compute.failure

    def close(self) -> None:
        self.compute.queue.put(None)
