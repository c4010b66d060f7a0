"""The interface between pipeline and device: streams, events and buffers.

Work on one stream runs in order, and streams run concurrently; events order work on different streams. No call blocks
the host except ``Event.wait``. The pipeline is written only against this interface.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

Buffer = Any
"""Memory of the device, or staging memory of the host for copies; one-dimensional, of int32."""


class Event(Protocol):
    """A point on a stream. Recording it again moves it; a wait is for the point recorded last."""

    def query(self) -> bool:
        """Whether the stream has passed the point; never blocks."""
        ...

    def wait(self) -> None:
        """Block the host until the stream has passed the point."""
        ...

    def time_ns(self) -> int:
        """The time at which the stream passed the point, on the host's monotonic clock; it must have passed it."""
        ...


class Stream(Protocol):
    """An ordered queue of work on the device. Every call returns at once.

    It takes only events of its own device.
    """

    name: str

    def copy(self, target: Buffer, source: Buffer, count: int) -> None:
        """Copy the first ``count`` elements, from or to a staging buffer."""
        ...

    def launch(self, work: Callable[[], None], reads: Sequence[Buffer], writes: Sequence[Buffer]) -> None:
        """Queue ``work``, which uses these buffers and the state that belongs to this stream."""
        ...

    def record(self, event: Any) -> None:
        """Put the event at the end of what is queued now."""
        ...

    def wait(self, event: Any) -> None:
        """Work that is queued after this waits until the event has passed; the host does not wait."""
        ...


class Device(Protocol):
    """A place to compute."""

    name: str
    completions_fd: int | None
    """The file descriptor that ``notify`` makes readable; None where nobody polls it (simulation)."""

    @property
    def h2d(self) -> Stream: ...

    @property
    def compute(self) -> Stream: ...

    @property
    def d2h(self) -> Stream: ...

    def event(self) -> Event: ...

    def staging(self, count: int) -> Buffer:
        """Host memory of ``count`` int32 that the device copies from and to without blocking."""
        ...

    def buffer(self, count: int) -> Buffer:
        """Device memory of ``count`` int32."""
        ...

    def array(self, staging: Buffer) -> np.ndarray:
        """The host's view of a staging buffer."""
        ...

    def notify(self, stream: Any) -> None:
        """Make ``completions_fd`` readable when the stream has passed what is queued on it now."""
        ...

    def check(self) -> None:
        """Raise the error of queued work that has failed, if any has."""
        ...

    def close(self) -> None:
        """End threads and free memory."""
        ...
