"""The CPU device with a worker thread for each stream, so that what no event orders does run at once."""

from __future__ import annotations

import os
import threading
from functools import partial

from slipstream.actors.executor.devices.cpu import CpuDevice, CpuStream


class ThreeWorkers(CpuDevice):
    def __init__(self) -> None:
        super().__init__()
        fd = self.completions_fd
        assert fd is not None
        self.h2d, self.d2h = CpuStream("h2d", fd), CpuStream("d2h", fd)

    def check(self) -> None:
        super().check()
        for stream in (self.h2d, self.d2h):
            if stream.failure is not None:
                raise stream.failure

    def close(self) -> None:
        """What all write to is closed by the last of them: a process that runs many tests has no end of descriptors."""
        streams = (self.h2d, self.compute, self.d2h)
        lock, ended = threading.Lock(), list[str]()

        def end(name: str) -> None:
            with lock:
                ended.append(name)
                if len(ended) == len(streams) and self.completions_fd is not None:
                    os.close(self.completions_fd)

        for stream in streams:
            stream.queue.put(partial(end, stream.name))
            stream.queue.put(None)
