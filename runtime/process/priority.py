"""Gives priority to the threads for which the device waits, where cores are few.

The kernel gives each thread its share, and a thread that wakes up may first have to let another end its slice, of
some milliseconds. That is a step or more. A thread that asks for short slices gets the same share and runs
sooner (EEVDF, with custom slices since Linux 6.12). No privilege is needed.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct

NICENESS = 5
"""The niceness of threads for which the device does not wait: a third of the processor's time of a thread at 0, where
they compete."""

SLICE_NS = 100_000
"""The shortest that the kernel gives."""

SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
"""The number of the system call, which the C library does not name."""

SCHED_ATTR = struct.Struct("=IIQiIQQQ")
"""size, policy, flags, nice, priority, runtime (here the slice), deadline, period."""


def raise_priority() -> None:
    """Short slices for the calling thread and those that it starts; without effect where the kernel has none."""
    number = SCHED_SETATTR.get(platform.machine())
    if number is None or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    wanted = SCHED_ATTR.pack(SCHED_ATTR.size, os.SCHED_OTHER, 0, nice, 0, SLICE_NS, 0, 0)
    ctypes.CDLL(None).syscall(number, 0, wanted, 0)


def lower_priority() -> None:
    """A lower priority for the calling thread and those that it starts."""
    os.nice(NICENESS)
