"""The CUDA device: three non-default streams, events that take the time, pinned staging memory."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from ....runtime.process.priority import raise_priority
from .clock import DeviceClock
from .device import Buffer


class CudaEvent:
    """A CUDA event that the host waits for asleep, not spinning."""

    def __init__(self, device: CudaDevice) -> None:
        self.device = device
        self.event = torch.cuda.Event(enable_timing=True, blocking=True)

    def query(self) -> bool:
        return self.event.query()

    def wait(self) -> None:
        self.event.synchronize()

    def time_ns(self) -> int:
        return self.device.clock.time_ns(self.event)


class CudaStream:
    """A stream of torch's pool, never the default one."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = name
        self.stream = torch.cuda.Stream(device)

    def copy(self, target: Buffer, source: Buffer, count: int) -> None:
        with torch.cuda.stream(self.stream):
            target[:count].copy_(source[:count], non_blocking=True)

    def launch(self, work: Callable[[], None], reads: Sequence[Buffer], writes: Sequence[Buffer]) -> None:
        with torch.cuda.stream(self.stream), torch.inference_mode():
            work()

    def record(self, event: CudaEvent) -> None:
        event.event.record(self.stream)

    def wait(self, event: CudaEvent) -> None:
        self.stream.wait_event(event.event)


class CudaDevice:
    """One GPU."""

    name = "cuda"

    def __init__(self, index: int = 0) -> None:
        self.device = torch.device("cuda", index)
        torch.cuda.set_device(self.device)
        streams = distinct_streams(self.device)
        self.h2d, self.compute, self.d2h = streams
        self.idle_stream = torch.cuda.Stream(self.device)
        origin, _, now_ns = self.read_clock()
        self.clock = DeviceClock(origin, now_ns)
        self.completions_fd: int | None = os.eventfd(0, os.EFD_NONBLOCK)
        self.failure: RuntimeError | None = None
        self.watched: queue.SimpleQueue[torch.cuda.Event | None] = queue.SimpleQueue()
        self.unwatched: queue.SimpleQueue[torch.cuda.Event] = queue.SimpleQueue()
        """Events of ``notify`` that have passed and can be recorded again."""
        threading.Thread(target=self.watch, name="completions", daemon=True).start()

    def read_clock(self) -> tuple[torch.cuda.Event, int, int]:
        """An event that the device passes at once, and the host's time before and after."""
        event = torch.cuda.Event(enable_timing=True)
        before_ns = time.monotonic_ns()
        event.record(self.idle_stream)
        event.synchronize()
        return event, before_ns, time.monotonic_ns()

    def watch(self) -> None:
        """Sleep until each event of ``notify`` has passed, so that the host waits for plans and results at once."""
        torch.cuda.set_device(self.device)
        raise_priority()
        assert self.completions_fd is not None
        try:
            while (event := self.watched.get()) is not None:
                event.synchronize()
                self.unwatched.put(event)
                if self.clock.is_due(time.monotonic_ns()):
                    self.clock.move(*self.read_clock())
                os.eventfd_write(self.completions_fd, 1)
        except RuntimeError as error:  # of work queued earlier: CUDA reports it where someone waits
            self.failure = error
            os.eventfd_write(self.completions_fd, 1)

    def event(self) -> CudaEvent:
        return CudaEvent(self)

    def staging(self, count: int) -> torch.Tensor:
        return torch.zeros(count, dtype=torch.int32, pin_memory=True)

    def buffer(self, count: int) -> torch.Tensor:
        buffer = torch.zeros(count, dtype=torch.int32, device=self.device)
        # The zeros come on the default stream, which nothing orders with ours.
        torch.cuda.synchronize(self.device)
        return buffer

    def array(self, staging: Buffer) -> np.ndarray:
        return staging.numpy()

    def notify(self, stream: CudaStream) -> None:
        try:
            event = self.unwatched.get_nowait()
        except queue.Empty:  # an event of its own for each that is watched: those of slots are recorded again
            event = torch.cuda.Event(blocking=True)
        event.record(stream.stream)
        self.watched.put(event)

    def synchronize(self) -> None:
        """Wait for all that is queued on any stream."""
        torch.cuda.synchronize(self.device)

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """A context in which launches go to the compute stream."""
        with torch.cuda.stream(self.compute.stream), torch.inference_mode():
            yield

    def memory(self) -> tuple[int, int]:
        """Bytes that nobody has taken, and all that there are."""
        return torch.cuda.mem_get_info(self.device)

    def taken(self) -> int:
        """Bytes that torch has taken for this process, used or not."""
        return torch.cuda.memory_reserved(self.device)

    def peak_memory(self, work: Callable[[], None]) -> int:
        """Run ``work`` on the compute stream; the bytes that it took at once. They stay with this process.

        What ``work`` reads was written on that stream, or on another that was waited for.
        """
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        with self.computing():
            work()
        self.synchronize()
        return torch.cuda.max_memory_allocated(self.device) - before

    def has_room(self, size: int) -> bool:
        """Whether work on the compute stream can take ``size`` bytes; what it can, stays with this process."""
        try:
            with self.computing():
                torch.empty(size, dtype=torch.uint8, device=self.device)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return False
        return True

    def check(self) -> None:
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        self.watched.put(None)
        torch.cuda.synchronize(self.device)


class CudaGraphs:
    """Captures work on a device's compute stream. All its graphs share one pool of memory.

    Captured largest first, the smaller ones fit into what the largest took: graphs run one after the other,
    and nothing that one leaves in the pool is read after the next has begun.
    """

    def __init__(self, device: CudaDevice) -> None:
        self.device = device
        self.pool = torch.cuda.graph_pool_handle()
        self.bytes = 0
        """Device memory that the graphs take."""
        self.seconds = 0.0
        """Time that capturing took."""

    def capture(self, prepare: Callable[[], None] | None, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """The graph of ``work``, which runs once before: that compiles its kernels and loads libraries.

        ``prepare`` runs before, on the same stream, and is not captured; None: ``work`` has run here before, and does
        not again. Waits for all that is queued there.
        """
        begun = time.monotonic()
        try:
            with self.device.computing():
                if prepare is not None:
                    prepare()
                    work()
                self.device.compute.stream.synchronize()
                free, _ = self.device.memory()
                graph = self.recorded(work)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()  # what the graph would have had goes to steps without one
            raise
        self.bytes += max(0, free - self.device.memory()[0])
        self.seconds += time.monotonic() - begun
        return graph

    def recorded(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """A graph of the launches of ``work``, which are captured and not run."""
        graph = torch.cuda.CUDAGraph()
        # thread_local: the thread that waits for completions may go on waiting meanwhile
        graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
        try:
            work()
        except BaseException:
            with contextlib.suppress(RuntimeError):  # it says no more than that the capture was broken off
                graph.capture_end()
            raise
        graph.capture_end()
        return graph


def distinct_streams(device: torch.device) -> tuple[CudaStream, CudaStream, CudaStream]:
    """Torch hands streams out of a pool, round robin; two of ours on one handle would not overlap."""
    made: list[CudaStream] = []
    names = ("h2d", "compute", "d2h")
    while len(made) < 3:
        stream = CudaStream(names[len(made)], device)
        if all(stream.stream.cuda_stream != other.stream.cuda_stream for other in made):
            made.append(stream)
    return made[0], made[1], made[2]
