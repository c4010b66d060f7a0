"""A child of the supervisor: its specification, its start, the channel to it, and the reason of its end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...protocol.actors import HELPERS
from ...protocol.errors import SlipstreamError
from ..in_hand import InHand
from ..log import logger, standard_error
from ..machine.memory import private_bytes
from . import control
from .child_output import ChildOutput
from .forked import ForkedProcess, fork_from
from .liveness import Liveness

PROCESS = f"{__name__.split('.supervision')[0]}.process"
"""The package of the modules that child processes run."""

STOP_TIMEOUT_S = 2.0
"""Time that a child has to end before it is killed. Closing sockets takes milliseconds, and nobody waits for anything
else."""

FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that come from outside: a process that dies of one did not end by its own fault."""


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """The specification of one child: how to start it, and what to expect of it."""

    name: str
    factory: str
    """``module:function`` that builds the actor."""
    options: dict[str, Any]
    waits: bool = False
    """Whether to start it only when every child before it in the list is ready."""
    hang_timeout_s: float = 10.0
    """An actor that has something to do and makes no progress for this long is ended and restarted. It may
    report another limit as the fact of this name."""
    group: str | None = None
    """Children of one group start and end together. Each is given, as the option ``rendezvous``, a path that is new for
    each of their lives; what is said of the group is said of the member of the same name."""
    frontend_of: str | None = None
    """For a frontend: the actor whose client it is, at the endpoint that it is given as the option ``service``. It
    is no actor's peer, and its death, however often, does not end the service."""
    prepare: str | None = None
    """For a spare: the ``module:function`` that imports what is slow. Children of its factory are forked from it. It
    is no actor's peer, and its death is no death of the service."""
    from_the_first: bool = False
    """For a spare: the first incarnations of actors are forked from it too, and wait for it."""
    keeps_at: str | None = None
    """For a keeper (`keeping`): the path at which it is asked. It has no factory; its death is none of the service."""

    @property
    def role(self) -> str:
        """``ActorState.role``."""
        if self.keeps_at:
            return "keeper"
        return "spare" if self.prepare else "frontend" if self.frontend_of else "actor"


@dataclass(slots=True)
class Child:
    """One incarnation of an actor."""

    spec: ChildSpec
    epoch: int
    mailbox: str
    process: subprocess.Popen[bytes] | ForkedProcess
    channel: socket.socket
    pidfd: int
    since: float
    """The time at which it was started."""
    kills_for_memory: int
    """The number of processes that the kernel had killed for lack of memory when it was started, on the whole
    machine."""
    in_hand: InHand
    state: str = "starting"
    """``ActorState.state``."""
    ready_at: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    phases: dict[str, float] = field(default_factory=dict)
    liveness: Liveness | None = None
    """None until it is ready."""
    hung: bool = False
    asked_for: bool = False
    """Whether it is ended on request, to be restarted."""
    drained: bool = False
    """Whether it has drained: nothing is under way any more."""
    failure: control.Failed | None = None
    """The reason of its end, if it gave one."""
    forked: bool = False
    """Whether it was forked from the spare, and not started from nothing."""
    output: ChildOutput | None = None
    """Its output, where that is written as JSON; otherwise it goes straight to standard error."""

    @staticmethod
    def spawn(
        spec: ChildSpec,
        epoch: int,
        directory: Path,
        first: control.Begin | control.Prepare,
        *,
        collect_output: bool,
        spare: Child | None = None,
    ) -> Child:
        """Start a process with its ``first`` message; fork it from ``spare`` if there is one that can.

        ``CannotStart`` if the machine has no room for it.
        """
        with contextlib.ExitStack() as undo:
            try:
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                undo.callback(ours.close)
                ours.set_inheritable(False)
                with theirs:
                    in_hand = InHand.create()
                    undo.callback(in_hand.close)
                    output = ChildOutput(spec.name) if collect_output else None
                    if output is not None:
                        undo.callback(output.close)
                    try:
                        process = None if spare is None else spare.fork(theirs, in_hand, output)
                        if process is None:
                            process = start_process(spec, theirs, in_hand, output)
                    finally:
                        if output is not None:
                            os.close(output.writer)
                undo.callback(end_unknown, process)
                pidfd = os.pidfd_open(process.pid)
            except OSError as error:
                raise CannotStart(spec.name, error) from None
            undo.pop_all()
        child = Child(
            spec, epoch, mailbox_of(spec, epoch, directory), process, ours, pidfd, time.monotonic(),
            kills_for_memory(), in_hand, forked=isinstance(process, ForkedProcess), output=output,
        )  # fmt: skip
        if isinstance(first, control.Begin):
            first.in_hand = in_hand.descriptor
        # One that has ended already is noticed in a moment.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            control.send(ours, first)
        ours.setblocking(False)
        return child

    def fork(
        self, channel: socket.socket, in_hand: InHand, output: ChildOutput | None
    ) -> ForkedProcess | None:
        """Have a spare fork an incarnation with these files. None if it cannot; then it is ended."""
        with open(os.devnull, "wb") as nothing:
            descriptor = standard_error() if output is None else output.writer
            printing = nothing.fileno() if descriptor is None else descriptor
            try:
                return fork_from(self.channel, (channel.fileno(), in_hand.descriptor, printing))
            except SlipstreamError as error:
                logger.warning("%s (pid %d) does not fork: %s", self.spec.name, self.process.pid, error)
                self.process.kill()
                return None

    @property
    def hang_timeout_s(self) -> float:
        """The actor knows best how long its work may take; else as specified."""
        return self.facts.get("hang_timeout_s", self.spec.hang_timeout_s)

    @property
    def report(self) -> control.Report | None:
        """Its latest answer to a probe."""
        return None if self.liveness is None else self.liveness.report

    @property
    def running(self) -> bool:
        return self.state != "dead"

    def send(self, message: control.AnyControl) -> None:
        """Send a control message; a child that is gone or hangs is dealt with when that is noticed."""
        if self.running:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError, BlockingIOError):
                control.send(self.channel, message)

    def stopped(self) -> bool:
        """Whether the process was stopped (SIGSTOP) since this was last asked."""
        flags = os.WSTOPPED | os.WNOHANG
        try:
            return self.running and os.waitid(os.P_PIDFD, self.pidfd, flags) is not None
        except ChildProcessError:
            return False

    def reap(self) -> int:
        """The process has ended: free what is held for it; returns its status as ``subprocess`` gives it."""
        status = self.process.wait()
        self.state = "dead"
        self.channel.close()
        os.close(self.pidfd)
        self.in_hand.close()
        if self.output is not None:
            self.output.close()
            self.output = None
        return status

    def end(self, reason: str = "") -> None:
        """Stop it, with a last message to those who wait for it; kill it if it does not end."""
        if self.spec.role in HELPERS:
            self.process.kill()  # nobody waits for it; a spare may be importing
        self.send(control.Stop(reason=reason))
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.reap()

    def memory(self) -> str:
        """The memory that it shares with no other process, in words."""
        try:
            return f"{private_bytes(self.process.pid) >> 20} MB of its own"
        except OSError:
            return "it is gone"

    def lived_s(self, now: float) -> float:
        """Seconds since it was ready."""
        return 0.0 if self.ready_at is None else now - self.ready_at

    @property
    def has_work(self) -> bool:
        """Whether something is under way in it, as far as it has said."""
        return self.liveness is not None and self.liveness.awake

    def out_of_memory(self, status: int) -> bool:
        """Whether the kernel may have killed it to get its memory."""
        return status == -signal.SIGKILL and not self.hung and kills_for_memory() > self.kills_for_memory

    def crashed(self, status: int) -> bool:
        """Whether it ended by its own fault, which what it was working at may have caused."""
        return (
            self.hung
            or self.failure is not None
            or self.out_of_memory(status)
            or status >= 0
            or -status not in FROM_OUTSIDE
        )


class ChildFailed(SlipstreamError):
    """A child could not start, or ended while it was needed. ``str`` is the block to print."""

    def __init__(self, child: Child, status: int) -> None:
        self.child = child
        self.failure = failure = child.failure
        self.kind = "" if failure is None else failure.kind
        lines = [f"  actor   {child.spec.name} (pid {child.process.pid}), {child.state}"]
        if failure is not None:
            lines.append(f"  phase   {failure.phase}")
            first, *rest = failure.message.splitlines() or [""]
            lines.append(f"  cause   {failure.kind}: {first}")
            lines += [f"          {line}" for line in rest]
            if failure.hint:
                lines.append(f"  try     {failure.hint}")
        elif child.hung:
            limit_s = child.hang_timeout_s if child.liveness is None else child.liveness.hangs_after_s
            lines.append(f"  cause   no progress for {round(limit_s, 1):g} s")
        elif child.out_of_memory(status):
            lines.append("  cause   killed by SIGKILL while the machine ran out of memory")
        elif status < 0:
            lines.append(f"  cause   killed by {signal.Signals(-status).name}")
        else:
            lines.append(f"  cause   ended with exit code {status} without a word; see its output above")
        self.cause = (
            next(line for line in lines if line.startswith("  cause")).removeprefix("  cause").strip()
        )
        super().__init__("\n".join(lines))


class CannotStart(SlipstreamError):
    """The machine has no room for another process, or for the files that it needs: now, at least."""

    def __init__(self, name: str, error: OSError) -> None:
        super().__init__(f"{name} cannot be started: {error.strerror}")


def end_unknown(process: subprocess.Popen[bytes] | ForkedProcess) -> None:
    """End a process that nobody has come to know."""
    process.kill()
    process.wait()


def mailbox_of(spec: ChildSpec, epoch: int, directory: Path) -> str:
    return f"ipc://{directory}/{spec.name}.{epoch}"


def start_process(
    spec: ChildSpec, channel: socket.socket, in_hand: InHand, output: ChildOutput | None
) -> subprocess.Popen[bytes]:
    """A new process, with these files."""
    if spec.keeps_at is not None:
        command = [f"{PROCESS}.keeper", spec.keeps_at]
    elif spec.prepare is not None:
        command = [f"{PROCESS}.spare", spec.prepare, spec.factory]
    else:
        command = [f"{PROCESS}.child", spec.factory]
    ours_to_print_to = standard_error()
    stderr = subprocess.DEVNULL if ours_to_print_to is None else ours_to_print_to
    return subprocess.Popen(
        [sys.executable, "-m", *command, str(channel.fileno()), str(os.getpid())],
        pass_fds=(channel.fileno(), in_hand.descriptor),
        stdin=subprocess.DEVNULL,
        stdout=stderr if output is None else output.writer,
        stderr=stderr if output is None else output.writer,
        env=environment(),
        cwd="/",
        process_group=0,  # a signal to our group is for us to handle
    )


def kills_for_memory() -> int:
    """The number of processes that the kernel has killed for their memory since the machine started; 0 if it does not
    say."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def environment() -> dict[str, str]:
    """The environment of a child: without what takes the docstrings away, which transformers reads."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONOPTIMIZE"}
