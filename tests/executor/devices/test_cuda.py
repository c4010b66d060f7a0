"""The CUDA device's own threads and events, before a stand-in of ``torch.cuda`` whose work ends when a test says so."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Iterator

import pytest
import torch
from slipstream.actors.executor.devices.cuda import CudaDevice, CudaGraphs


class Work:
    """How much has been queued on any stream, and how much of it is done."""

    def __init__(self) -> None:
        self.queued = 0
        self.done = 0
        self.changed = threading.Condition()

    def finish(self, upto: int) -> None:
        with self.changed:
            self.done = upto
            self.changed.notify_all()


class Stream:
    def __init__(self, device: object, work: Work) -> None:
        self.work = work
        self.cuda_stream = id(self)

    def synchronize(self) -> None:
        """Nothing that a test has to wait for."""


class Event:
    """An event as CUDA has it: to wait for it is to wait for its latest record."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False) -> None:
        self.place = 0
        self.work: Work | None = None

    def record(self, stream: Stream) -> None:
        self.work = stream.work
        self.work.queued += 1
        self.place = self.work.queued

    def query(self) -> bool:
        return self.work is None or self.work.done >= self.place

    def synchronize(self) -> None:
        if self.work is not None:
            with self.work.changed:
                self.work.changed.wait_for(self.query)

    def elapsed_time(self, other: Event) -> float:
        return 0.0


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    made, idle = Work(), Work()
    idle.done = 1 << 30  # the stream that only tells the time passes everything at once
    streams = iter([made, made, made, idle])
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(device, next(streams)))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    return made


class Graph:
    """A graph that cannot be ended once its capture was broken off."""

    def capture_begin(self, pool: object, capture_error_mode: str) -> None: ...

    def capture_end(self) -> None:
        raise RuntimeError("operation failed due to a previous error during capture")


@pytest.fixture
def device(work: Work) -> Iterator[CudaDevice]:
    made = CudaDevice()
    yield made
    work.finish(1 << 30)
    made.close()


def wake_ups(device: CudaDevice, wanted: int) -> int:
    """How often the host is woken, up to ``wanted``."""
    fd, count = device.completions_fd, 0
    assert fd is not None
    while count < wanted and select.select([fd], [], [], 5.0)[0]:
        count += os.eventfd_read(fd)
    return count


def test_every_step_wakes_the_host_though_its_slot_is_used_again_meanwhile(
    device: CudaDevice, work: Work
) -> None:
    """The thread that wakes it may be late: then the host has seen the second step and launched the fourth."""
    slots = [device.event(), device.event()]
    for step in range(4):
        device.d2h.record(slots[step % 2])
        device.notify(device.d2h)
    work.finish(work.queued - 2)  # all but the fourth
    assert wake_ups(device, 3) == 3
    work.finish(work.queued)
    assert wake_ups(device, 1) == 1


def test_no_event_is_made_for_a_step_once_as_many_are_there_as_are_under_way(
    device: CudaDevice, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Event] = []

    def make(**options: bool) -> Event:
        made.append(Event(**options))
        return made[-1]

    monkeypatch.setattr(torch.cuda, "Event", make)
    monkeypatch.setattr(device.clock, "is_due", lambda now_ns: False)  # its events are another matter
    for _ in range(20):
        device.notify(device.d2h)
        device.notify(device.d2h)
        work.finish(work.queued)
        assert wake_ups(device, 2) == 2
    assert len(made) == 2


def test_a_capture_without_memory_says_that_and_gives_back_what_it_took(
    device: CudaDevice, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back: list[bool] = []
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 30, 1 << 31))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given_back.append(True))
    runs: list[bool] = []

    def work_of_a_step() -> None:
        runs.append(True)
        if len(runs) == 2:  # the first run is not captured
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        CudaGraphs(device).capture(lambda: None, work_of_a_step)
    assert given_back == [True]
