"""The supervisor: starts the actors in order, watches them, restarts them, stops them in reverse order.

It handles no bytes of a user. What it knows of a child is a process file descriptor, which tells of
its death within a millisecond, and a control channel. A child that cannot start says why over that
channel, so that the user reads one block with the cause instead of a trace in another process's log.
"""

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

import msgspec
import zmq

from ..protocol.codec import pack
from ..protocol.errors import SlipstreamError
from ..protocol.messages import Actors, ActorState
from . import control
from .liveness import Pulse
from .log import Log, Output
from .notify import Notify

STOP_TIMEOUT_S = 2.0
"""How long a child may take to end before it is killed."""

INTENSITY, PERIOD_S = 5, 60.0
"""A child that dies more often than this within the period ends the service: it will not heal."""

BACK_OFF_S, MOST_BACK_OFF_S = 0.05, 2.0
"""Wait before the second restart within the period; it doubles with each further one."""


TELL_WITHIN_S = 0.25
"""How long a question after the actors waits for what each of them says of itself."""

AWAY_S = 1.0
"""A supervisor that comes this much late out of a wait was itself stopped."""


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """How to start one actor."""

    name: str
    factory: str
    """``module:function`` that builds the actor."""
    options: dict[str, Any]
    waits: bool = False
    """Start only when every child before it in the list is ready."""
    hang_timeout_s: float = 10.0
    """Without progress for so long although it has something to do, it is ended and restarted."""
    face_of: str | None = None
    """Of a face: the actor whose door it knocks at, told as the option ``door``. It is no actor's peer."""


@dataclass(slots=True)
class Child:
    """One incarnation of an actor."""

    spec: ChildSpec
    epoch: int
    mailbox: str
    process: subprocess.Popen[bytes]
    channel: socket.socket
    pidfd: int
    since: float
    """When it was started."""
    state: str = "starting"
    pulse: Pulse | None = None
    """From when it is ready."""
    facts: dict[str, Any] = field(default_factory=dict)
    phases: dict[str, float] = field(default_factory=dict)
    drained: bool = False
    """It was told to drain, and nothing is under way any more."""
    report: control.Failed | None = None
    """What it said before it ended."""
    output: Output | None = None
    """What it prints, where that has to be made into JSON; elsewhere it goes straight to standard error."""


class ChildFailed(SlipstreamError):
    """A child could not start, or ended while it was needed. ``str`` is the block to print."""

    def __init__(self, child: Child, status: int) -> None:
        self.child = child
        self.report = report = child.report
        self.kind = "" if report is None else report.kind
        lines = [f"  actor   {child.spec.name} (pid {child.process.pid}), {child.state}"]
        if report is not None:
            lines.append(f"  phase   {report.phase}")
            first, *rest = report.message.splitlines() or [""]
            lines.append(f"  cause   {report.kind}: {first}")
            lines += [f"          {line}" for line in rest]
            if report.hint:
                lines.append(f"  try     {report.hint}")
        elif status < 0:
            lines.append(f"  cause   killed by {signal.Signals(-status).name}")
        else:
            lines.append(f"  cause   ended with exit code {status} without a word; see its output above")
        self.cause = (
            next(line for line in lines if line.startswith("  cause")).removeprefix("  cause").strip()
        )
        super().__init__("\n".join(lines))


class Supervisor:
    """Owns the child processes of one service."""

    def __init__(
        self,
        specs: list[ChildSpec],
        directory: Path,
        log: Log,
        notify: Notify,
        start_timeout_s: float = 600.0,
    ) -> None:
        self.specs = specs
        self.directory = directory
        self.logger = log
        self.log = log.line
        self.notify = notify
        self.start_timeout_s = start_timeout_s
        self.children: dict[str, Child] = {}
        self.epoch = 0
        self.serving = False
        """All children have been ready: one that dies from now on is restarted."""
        self.deaths: dict[str, list[float]] = {spec.name: [] for spec in specs}
        self.restarts = dict.fromkeys(self.deaths, 0)
        """Since the start of the service."""
        self.asking: list[str] = []
        """Actors that want to know how all are."""
        self.tell_at = 0.0
        """When they are told at the latest."""
        self.due: list[tuple[float, ChildSpec]] = []
        """Restarts that wait for their back-off."""
        self.context = zmq.Context()
        self.desk = self.context.socket(zmq.REP)
        self.desk.set(zmq.LINGER, 0)
        self.desk.set(zmq.MAXMSGSIZE, 1024)
        self.control_endpoint = f"ipc://{directory}/control"
        self.desk.bind(self.control_endpoint)
        self.wake_reader, self.wake_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.signals: list[int] = []
        self.parent_fd: int | None = None
        self.parent_gone = False

    # --- from outside -----------------------------------------------------------------------------

    def on_signal(self, number: int, frame: object) -> None:
        """A signal handler for SIGTERM and SIGINT: the first drains, the second ends at once."""
        self.signals.append(number)
        os.write(self.wake_writer, b"!")

    def end_with(self, parent: int) -> None:
        """Stop, without a drain, as soon as process ``parent`` is gone."""
        try:
            self.parent_fd = os.pidfd_open(parent)
        except ProcessLookupError:
            self.parent_gone = True
        if os.getppid() != parent:
            self.parent_gone = True

    @property
    def stopping(self) -> bool:
        return bool(self.signals) or self.parent_gone

    # --- starting ---------------------------------------------------------------------------------

    def start(self) -> bool:
        """Start all children; ``ChildFailed`` if one cannot. False: told to stop before they were ready."""
        deadline = time.monotonic() + self.start_timeout_s
        for spec in self.specs:
            if spec.waits and not self.wait_ready(deadline):
                return False
            self.spawn(spec)
        self.serving = self.wait_ready(deadline)
        return self.serving

    def spawn(self, spec: ChildSpec) -> None:
        self.epoch += 1
        mailbox = f"ipc://{self.directory}/{spec.name}.{self.epoch}"
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.set_inheritable(False)
        output = Output(self.logger, spec.name) if self.logger.json else None
        stderr = sys.stderr.fileno() if has_fileno(sys.stderr) else subprocess.DEVNULL
        with theirs:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    f"{__package__}.child",
                    spec.factory,
                    str(theirs.fileno()),
                    str(os.getpid()),
                ],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=stderr if output is None else output.writer,
                stderr=None if output is None else output.writer,
                cwd="/",
                process_group=0,  # a signal to our group is for us to handle
            )
        if output is not None:
            os.close(output.writer)
        now = time.monotonic()
        child = Child(spec, self.epoch, mailbox, process, ours, os.pidfd_open(process.pid), now)
        child.output = output
        others = [other for other in self.children.values() if other.spec.name != spec.name]
        peers = {o.spec.name: (o.epoch, o.mailbox) for o in others if o.spec.face_of is None}
        options = spec.options
        if spec.face_of is not None:
            peers, options = {}, options | {"door": self.children[spec.face_of].spec.options["endpoint"]}
        control.send(ours, control.Begin(spec.name, self.epoch, mailbox, peers, options))
        ours.setblocking(False)
        self.children[spec.name] = child

    def wait_ready(self, deadline: float) -> bool:
        while any(child.state == "starting" for child in self.children.values()):
            left = deadline - time.monotonic()
            if left <= 0:
                slow = [c.spec.name for c in self.children.values() if c.state == "starting"]
                raise SlipstreamError(
                    f"not ready within {self.start_timeout_s:g} s: {', '.join(slow)}; a large model may need longer"
                )
            self.turn(left)
            if self.stopping:
                return False
        return True

    def on_ready(self, child: Child, ready: control.Ready) -> None:
        child.state, child.facts, child.phases = "ready", ready.facts, ready.phases
        child.pulse = Pulse(child.spec.hang_timeout_s, time.monotonic())
        if "endpoint" in ready.facts:
            child.spec.options["endpoint"] = ready.facts["endpoint"]  # a later incarnation takes the same
        news = control.Peer(child.spec.name, child.epoch, child.mailbox)
        # In the order of the list: the gateway, which comes last, sends requests again when it hears the
        # news, and by then all others have to have it in their channels.
        for spec in self.specs:
            other = self.children.get(spec.name)
            if other is not None and other is not child and spec.face_of is child.spec.face_of is None:
                tell(other, news)
        if self.serving:
            seconds = time.monotonic() - self.deaths[child.spec.name][-1]
            self.log(f"{child.spec.name} (pid {child.process.pid}) is back after {seconds:.2f} s")

    # --- watching ---------------------------------------------------------------------------------

    def turn(self, timeout_s: float | None) -> None:
        """Wait for something to happen and deal with it; ``ChildFailed`` if a child is gone for good."""
        timeout_s = self.feed_watchdog(self.check_pulses(self.restart_due(timeout_s)))
        poller = zmq.Poller()
        poller.register(self.desk, zmq.POLLIN)
        poller.register(self.wake_reader, zmq.POLLIN)
        if self.parent_fd is not None:
            poller.register(self.parent_fd, zmq.POLLIN)
        for child in self.children.values():
            if child.state != "dead":
                poller.register(child.channel.fileno(), zmq.POLLIN)
                poller.register(child.pidfd, zmq.POLLIN)
            if child.output is not None and child.output.open:
                poller.register(child.output.reader, zmq.POLLIN)
        begun = time.monotonic()
        ready = dict(poller.poll(None if timeout_s is None else max(0, int(timeout_s * 1000 + 0.999))))
        if timeout_s is not None and time.monotonic() - begun > timeout_s + AWAY_S:
            for pulse in self.pulses():
                pulse.forgive(time.monotonic())
        if self.wake_reader in ready:
            os.read(self.wake_reader, 64)
        if self.parent_fd in ready:
            self.parent_gone = True
        if self.desk in ready:
            self.desk.recv()
            described = {name: self.describe(child) for name, child in self.children.items()}
            self.desk.send(pack(msgspec.to_builtins({"actors": described})))
        for child in list(self.children.values()):
            if child.state == "dead":
                continue
            if child.output is not None and child.output.reader in ready:
                child.output.read()
            if child.channel.fileno() in ready:
                self.hear(child)
            if child.pidfd in ready:
                self.on_death(child)

    def feed_watchdog(self, timeout_s: float | None) -> float | None:
        """Tell systemd that the service is alive, unless an actor hangs and cannot even be ended."""
        if not self.serving:
            return timeout_s  # until it is ready, systemd counts by TimeoutStartSec
        try:
            due = self.notify.beat(time.monotonic(), all(c.state != "hung" for c in self.children.values()))
        except SlipstreamError as error:
            self.log(str(error), level="warning")
            due = self.notify.every_s
        return min((wait for wait in (due, timeout_s) if wait is not None), default=None)

    def pulses(self) -> list[Pulse]:
        """Of all children that are there."""
        return [c.pulse for c in self.children.values() if c.pulse is not None and c.state != "dead"]

    def check_pulses(self, timeout_s: float | None) -> float | None:
        """Probe whom it is time to probe and end whoever hangs; returns how long to wait at most."""
        now = time.monotonic()
        for child in self.children.values():
            pulse = child.pulse
            if pulse is None or child.state in ("dead", "hung"):
                continue
            if pulse.hung(now):
                child.state = "hung"
                self.log(
                    f"{child.spec.name} (pid {child.process.pid}) made no progress for"
                    f" {child.spec.hang_timeout_s:g} s although it has something to do: ending it"
                )
                child.process.kill()
            elif pulse.probe_due(now):
                pulse.ask(now)
                tell(child, control.Probe())
        self.tell_actors(now)
        waits = [
            child.pulse.due - now
            for child in self.children.values()
            if child.pulse is not None and child.pulse.due is not None and child.state not in ("dead", "hung")
        ]
        waits += [self.tell_at - now] if self.asking else []
        waits += [] if timeout_s is None else [timeout_s]
        return None if not waits else max(0.0, min(waits))

    def on_ask_actors(self, child: Child) -> None:
        """Whoever asks is answered when each actor has told how it is, or when that takes too long."""
        now = time.monotonic()
        if not self.asking:
            self.tell_at = now + TELL_WITHIN_S
            for other in self.children.values():
                if other.pulse is not None and other.state == "ready" and not other.pulse.asked:
                    other.pulse.ask(now)
                    tell(other, control.Probe())
        if child.spec.name not in self.asking:
            self.asking.append(child.spec.name)

    def tell_actors(self, now: float) -> None:
        if self.asking and (now >= self.tell_at or not any(pulse.asked for pulse in self.pulses())):
            for name in self.asking:
                tell(self.children[name], control.TellActors(self.actors()))
            self.asking = []

    def actors(self) -> Actors:
        """How each actor is, and what follows for the service."""
        states = [self.describe(child) for child in self.children.values()]
        draining = self.stopping
        return Actors(
            actors=states,
            live=all(state.state != "hung" for state in states),
            ready=self.serving and not draining and all(state.state == "ready" for state in states),
            draining=draining,
        )

    def describe(self, child: Child) -> ActorState:
        now = time.monotonic()
        pulse = child.pulse
        return ActorState(
            name=child.spec.name,
            state=child.state,
            pid=child.process.pid,
            epoch=child.epoch,
            restarts=self.restarts[child.spec.name],
            uptime_s=round(now - child.since, 3),
            mailbox_depth=self.mailbox_depth(child),
            last_progress_s=0.0 if pulse is None else round(now - pulse.turned_at, 3),
            working=pulse is not None and pulse.working,
        )

    def mailbox_depth(self, child: Child) -> int:
        """What the others have sent to it, less what it has taken in, as far as each has reported."""
        depth = 0
        taken = {} if child.pulse is None or child.pulse.report is None else child.pulse.report.received
        for other in self.children.values():
            if other.pulse is None or other.pulse.report is None:
                continue
            epoch, sent = other.pulse.report.sent.get(child.spec.name, (0, 0))
            if epoch == child.epoch:
                known, received = taken.get(other.spec.name, (0, 0))
                depth += max(0, sent - (received if known == other.epoch else 0))
        return depth

    def hear(self, child: Child) -> None:
        while True:
            try:
                message = control.receive(child.channel)
            except (BlockingIOError, ConnectionResetError):
                return
            if isinstance(message, control.Ready):
                self.on_ready(child, message)
            elif isinstance(message, control.Failed):
                child.report = message
            elif isinstance(message, control.Drained):
                child.drained = True
            elif isinstance(message, control.Awake) and child.pulse is not None:
                child.pulse.wake(time.monotonic())
            elif isinstance(message, control.Report) and child.pulse is not None:
                child.pulse.take(message, time.monotonic())
            elif isinstance(message, control.AskActors):
                self.on_ask_actors(child)
            elif message is None:
                return

    def on_death(self, child: Child) -> None:
        """Restart it, with a back-off; ``ChildFailed`` if it never was ready or dies too often."""
        self.hear(child)  # its last words, if any
        failed = ChildFailed(child, child.process.wait())
        bury(child)
        now = time.monotonic()
        deaths = self.deaths[child.spec.name]
        deaths.append(now)
        recent = sum(1 for death in deaths if now - death < PERIOD_S)
        if not self.serving or recent > INTENSITY:
            raise failed
        wait = 0.0 if recent == 1 else min(MOST_BACK_OFF_S, BACK_OFF_S * 2 ** (recent - 2))
        self.due.append((now + wait, child.spec))
        self.log(
            f"{child.spec.name} (pid {child.process.pid}) ended: {failed.cause};"
            f" restarting it ({recent} of {INTENSITY} in {PERIOD_S:g} s)"
        )

    def restart_due(self, timeout_s: float | None) -> float | None:
        """Start what has waited long enough; returns how long to wait at most."""
        now = time.monotonic()
        for when, spec in [due for due in self.due if due[0] <= now]:
            self.due.remove((when, spec))
            self.restarts[spec.name] += 1
            self.spawn(spec)
        waits = [when - now for when, _ in self.due] + ([] if timeout_s is None else [timeout_s])
        return min(waits, default=None)

    def run(self) -> None:
        """Watch until told to stop; ``ChildFailed`` when a child is gone for good."""
        while not self.stopping:
            self.turn(None)

    # --- stopping ---------------------------------------------------------------------------------

    def drain(self, names: list[str], timeout_s: float) -> bool:
        """Let these finish what is under way and accept nothing new; True if all did in time."""
        asked = len(self.signals)
        told: set[int] = set()
        deadline = time.monotonic() + timeout_s
        while busy := [child for name in names if not (child := self.children[name]).drained]:
            for child in busy:
                if child.state == "ready" and child.epoch not in told:
                    told.add(child.epoch)
                    child.state = "draining"
                    tell(child, control.Stop(drain=True))
            left = deadline - time.monotonic()
            if left <= 0 or len(self.signals) > asked or self.parent_gone:
                return False
            self.turn(left)
        return True

    def stop(self) -> None:
        """End every child, in the reverse order of their start; one that does not end is killed."""
        for child in reversed(self.children.values()):
            if child.state == "dead":
                continue
            tell(child, control.Stop())
            try:
                child.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
            bury(child)
        self.children.clear()
        self.context.destroy(linger=0)


def bury(child: Child) -> None:
    """Close what was open to a process that is gone."""
    child.state = "dead"
    child.channel.close()
    os.close(child.pidfd)
    if child.output is not None:
        child.output.close()
        child.output = None


def tell(child: Child, message: control.AnyControl) -> None:
    """Send a control message; a child that is gone by now is dealt with when its end is noticed."""
    if child.state == "dead":
        return
    with contextlib.suppress(BrokenPipeError, ConnectionResetError, BlockingIOError):
        control.send(child.channel, message)


def has_fileno(stream: Any) -> bool:
    """Whether the stream is a real file: in a notebook it is not."""
    try:
        stream.fileno()
    except (OSError, AttributeError, ValueError):
        return False
    return True
