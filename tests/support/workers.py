"""The CPU device with a worker thread for each stream, so that what no event orders does run at once."""

from __future__ import annotations

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
        super().close()
        for stream in (self.h2d, self.d2h):
            stream.queue.put(None)
