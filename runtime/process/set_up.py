"""The first thing that every process of a service does."""

from __future__ import annotations

import ctypes
import os
import signal

from ..log import configure
from ..machine.file_limit import raise_file_limit
from ..supervision import control

THREADS_OF_NUMPY = "OPENBLAS_NUM_THREADS"
"""Its import starts one for every other core, each of which spins for 50 ms; no actor has work for them."""


def set_up(parent: int) -> None:
    """Prepare this process, whatever it will be, and have it end with ``parent``, the supervisor."""
    die_with_parent(parent)
    # These may reach every process of a service, from a terminal or a process manager; what follows from them the
    # supervisor decides. A handler is not inherited by programs that an actor starts, as an ignored signal would be.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave_to_supervisor)
    for number in (signal.SIGINT, *control.IDLE_SIGNALS):
        signal.signal(number, signal.SIG_IGN)
    raise_file_limit()
    os.environ.setdefault(THREADS_OF_NUMPY, "1")
    configure(as_json=False)


def leave_to_supervisor(number: int, frame: object) -> None:
    """A signal handler that does nothing."""


def die_with_parent(parent: int) -> None:
    """Ask the kernel to end this process when its parent ends, and make sure that it has not yet."""
    libc = ctypes.CDLL(None, use_errno=True)
    pr_set_pdeathsig = 1
    libc.prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
