"""Requests to stop a service: signals, and the end of the process that started it.

Either may come at any time, so each wakes the supervisor, which waits in one poller for whatever happens.
"""

from __future__ import annotations

import os
import signal
import time

import zmq

from ..log import logger
from . import control

SAME_S = 0.3
"""A signal that follows the first sooner than this is the same request, come twice: ``timeout`` signals its child and
then the group of the child, and a program that started this one may hand on a Ctrl-C that the terminal sent to both."""


class StopRequests:
    """Collects the requests to stop one process."""

    def __init__(self) -> None:
        self.wake_reader, self.wake_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        """A signal that comes writes to this pipe, and so ends a wait."""
        self.signals: list[int] = []
        """The signals that ask to stop, in the order in which they came."""
        self.signalled_at = 0.0
        """When the first came."""
        self.at_once = False
        """Asked again, so that nothing more is waited for."""
        self.idle_signals: list[int] = []
        """Received and not logged yet: they ask for nothing here."""
        self.parent_fd: int | None = None
        """The process file descriptor of the process with which this one ends."""
        self.parent_gone = False

    @property
    def pending(self) -> bool:
        """Whether the service has been asked to stop."""
        return bool(self.signals) or self.parent_gone

    def on_signal(self, number: int, frame: object) -> None:
        """A signal handler for SIGTERM, SIGINT and SIGHUP, which ask to stop.

        A terminal that closes sends SIGHUP more than once, the shell's and the kernel's, and systemd may send it right
        after SIGTERM: it never asks for more than a drain.

        SIGCHLD only wakes: it comes for a child that was stopped, which its process file descriptor does not. For
        SIGUSR1 and SIGUSR2, by which other servers open their logs again or start anew, there is nothing to do.
        """
        if number in control.IDLE_SIGNALS:
            self.idle_signals.append(number)
        elif number != signal.SIGCHLD:
            now = time.monotonic()
            if not self.signals:
                self.signalled_at = now
            elif number != signal.SIGHUP and now - self.signalled_at >= SAME_S:
                self.at_once = True
            self.signals.append(number)

    def handle(self, *numbers: int) -> None:
        """Let these signals come here. What waits is woken by C: a handler in Python runs only when it does not wait,
        and a signal may come just before it begins to."""
        signal.set_wakeup_fd(self.wake_writer, warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, self.on_signal)

    def end_with(self, parent: int) -> None:
        """Stop, without a drain, as soon as process ``parent`` is gone."""
        try:
            self.parent_fd = os.pidfd_open(parent)
        except ProcessLookupError:
            self.parent_gone = True
        if os.getppid() != parent:
            self.parent_gone = True

    def register(self, poller: zmq.Poller) -> None:
        """Have a poller wait for signals and for the parent's end too."""
        poller.register(self.wake_reader, zmq.POLLIN)
        if self.parent_fd is not None:
            poller.register(self.parent_fd, zmq.POLLIN)

    def take_in(self, ready: dict[object, int]) -> bool:
        """Take in what a poll has found ``ready``; returns whether a signal came."""
        if self.parent_fd in ready:
            self.parent_gone = True
        if self.wake_reader not in ready:
            return False
        os.read(self.wake_reader, 4096)
        while self.idle_signals:
            name = signal.Signals(self.idle_signals.pop(0)).name
            logger.info("%s changes nothing here: the log is standard error, and SIGTERM drains", name)
        return True
