"""A process that a spare forks for the supervisor, whose child it is nevertheless.

The spare forks twice, and what is between ends at once: the process then goes to the nearest ancestor that takes in
orphans, which the supervisor is meanwhile. So it waits for it, and is waited for by nobody else.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence

from ...protocol.errors import SlipstreamError
from . import control

FORK_WITHIN_S = 1.0
"""How long a spare may take to fork; it takes 30 ms. The supervisor waits for that."""

PR_SET_CHILD_SUBREAPER = 36


class ForkedProcess:
    """With what is used of `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        """``pid`` is a child of this process that was not waited for."""
        self.pid = pid
        self.returncode: int | None = None
        self.pidfd = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """Its status, as ``subprocess`` gives it; None while it runs."""
        if self.returncode is None:
            ended = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG)
            if ended is not None:
                self.returncode = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
                os.close(self.pidfd)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; ``subprocess.TimeoutExpired`` if that does not come in time."""
        if self.returncode is None:
            ends = select.poll()
            ends.register(self.pidfd, select.POLLIN)
            if not ends.poll(None if timeout is None else timeout * 1000) and timeout is not None:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        status = self.poll()
        assert status is not None
        return status

    def kill(self) -> None:
        if self.poll() is None:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)


def fork_from(spare: socket.socket, descriptors: Sequence[int]) -> ForkedProcess:
    """Let the spare at the other end fork an incarnation with these files; SlipstreamError if it does not."""
    with taking_in_orphans():
        try:
            control.send(spare, control.Fork(), descriptors)
            answers = select.poll()
            answers.register(spare, select.POLLIN)
            if not answers.poll(FORK_WITHIN_S * 1000):
                raise SlipstreamError(f"it did not answer within {FORK_WITHIN_S:g} s")
            answer = control.receive(spare)
        except OSError as error:
            raise SlipstreamError(f"it cannot be reached: {error.strerror}") from error
        if not isinstance(answer, control.Forked):
            raise SlipstreamError("it has ended")
        try:
            return ForkedProcess(answer.pid)
        except ProcessLookupError:
            raise SlipstreamError("what it forked is no child of the supervisor") from None


@contextlib.contextmanager
def taking_in_orphans() -> Iterator[None]:
    """Processes below this one whose parent ends become its children."""
    library = ctypes.CDLL(None)
    library.prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        library.prctl(PR_SET_CHILD_SUBREAPER, 0)
