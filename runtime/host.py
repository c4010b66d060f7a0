"""The process host: ZeroMQ sockets and an event loop around one actor.

``python -m slipstream.runtime.host MODULE:FACTORY FD`` is how the supervisor starts an actor. The
host builds the actor, binds its mailbox and then turns: everything that has arrived goes to the
actor, everything that the actor returns goes out. Two loops do the waiting: a blocking poller
(scheduler, executor), and uvloop (the rest), which drains the raw sockets until they are empty and
looks again after each send, since ZeroMQ signals its file descriptor only on the edge.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, Protocol

import zmq

from ..protocol import limits
from ..protocol.codec import decode_from_client, encode, request_id
from ..protocol.errors import ProtocolError, SlipstreamError
from ..protocol.messages import (
    ClientBlocked,
    ClientGone,
    ClientMessage,
    Completed,
    Drain,
    DumpTrace,
    Error,
    PeerUp,
    Spans,
)
from . import control
from .actor import Actor, Send
from .links import Links
from .trace import Ring

MAILBOX_MESSAGES = 20_000
"""Most messages on their way between two actors; admission keeps the number far below."""

CLIENT_MESSAGES = 64
"""Most messages waiting in the socket for one client; then its deltas wait, merged, in the gateway."""

LAST_WORDS_MS = 500
"""How long the last messages to clients may take to leave when the host ends."""

TURN = 256
"""Most messages taken from one socket before the others have their turn."""

NICENESS = 5
"""Of the actors for whom the device does not wait: where cores are few, scheduler and executor come first."""

GARBAGE = 10_000
"""New objects after which Python looks for cycles; messages have none, and a step makes a thousand objects."""


class StartContext(Protocol):
    """What a factory can use while it builds its actor."""

    options: dict[str, Any]

    def phase(self, name: str) -> None:
        """The phase that begins now; a failure names it, and the banner times it."""
        ...


class Build:
    """Times the phases of a start."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.current = "import"
        self.since = time.monotonic()
        self.phases: dict[str, float] = {}

    def phase(self, name: str) -> None:
        now = time.monotonic()
        self.phases[self.current] = self.phases.get(self.current, 0.0) + now - self.since
        self.current, self.since = name, now


class Host:
    """Sockets, epochs and tracing around one actor."""

    def __init__(self, actor: Actor, begin: control.Begin, channel: socket.socket) -> None:
        self.actor = actor
        self.channel = channel
        self.links = Links(begin.name, begin.epoch)
        self.ring = actor.ring or Ring()
        self.context = zmq.Context()
        self.context.set(zmq.MAX_SOCKETS, 4096)
        self.outgoing: dict[str, zmq.Socket[bytes]] = {}
        self.early: dict[str, list[tuple[int, Any]]] = {}
        """Answers to a new incarnation (its epoch) that spoke before the supervisor told of its mailbox."""
        self.connected: dict[str, int] = {}
        """The epoch of each peer that ``outgoing`` leads to."""
        self.dead_letters = 0
        """Messages to an actor that is not there; it will be told again when it is."""
        self.malformed = 0
        """Frames in the mailbox that are no message; only a stranger sends such."""
        self.draining = False
        self.stopped = False
        self.mailbox = self.socket(zmq.PULL, RCVHWM=MAILBOX_MESSAGES)
        self.mailbox.bind(begin.mailbox)
        self.door: zmq.Socket[bytes] | None = None
        for name, (epoch, mailbox) in begin.peers.items():
            self.connect(name, epoch, mailbox)

    def socket(self, kind: int, **options: int) -> zmq.Socket[bytes]:
        made = self.context.socket(kind)
        made.set(zmq.LINGER, 0)
        made.set(zmq.MAXMSGSIZE, limits.MAX_FRAME_BYTES)
        for name, value in options.items():
            made.set(getattr(zmq, name), value)
        return made

    def open_door(self, endpoint: str) -> str:
        """Bind the public socket; returns where it really is (port 0 takes a free one)."""
        refuse_endpoint_in_use(endpoint)
        self.door = self.socket(
            zmq.ROUTER,
            ROUTER_MANDATORY=1,
            SNDHWM=CLIENT_MESSAGES,
            RCVHWM=1024,
            HANDSHAKE_IVL=2000,
            HEARTBEAT_IVL=2000,
            HEARTBEAT_TIMEOUT=8000,
        )
        try:
            self.door.bind(endpoint)
        except zmq.ZMQError as error:
            raise SlipstreamError(
                f"cannot bind {endpoint}: {error.strerror}; choose another endpoint"
            ) from None
        return self.door.get_string(zmq.LAST_ENDPOINT)

    def connect(self, name: str, epoch: int, mailbox: str) -> None:
        """A new incarnation of a peer: a new socket to its new mailbox."""
        if epoch < self.links.peers.get(name, 0):
            return
        old = self.outgoing.pop(name, None)
        if old is not None:
            old.close()
        self.outgoing[name] = self.socket(zmq.PUSH, SNDHWM=MAILBOX_MESSAGES)
        self.outgoing[name].connect(mailbox)
        self.connected[name] = epoch
        if self.links.peer_up(name, epoch):
            self.tell(name, PeerUp(name, epoch))
        self.deliver([(name, message) for meant, message in self.early.pop(name, ()) if meant == epoch])

    # --- one turn ---------------------------------------------------------------------------------

    def tell(self, sender: str | bytes, message: Any) -> None:
        """Give one message to the actor, and send what it answers."""
        if type(message) is DumpTrace:
            assert isinstance(sender, str)
            self.deliver([(sender, Spans(self.ring.dump()))])
            return
        begun = time.monotonic_ns()
        sends = self.actor.receive(sender, message, begun * 1e-9)
        self.deliver(sends)
        self.note(message, sends, begun)

    def note(self, message: Any, sends: list[Send], begun: int) -> None:
        """A span, sending included, named after what the turn made for a step, or else after what began it."""
        for _, made in sends:
            step = getattr(made, "step", None)
            if step is not None:
                message = made
                break
        step = getattr(message, "step", -1)
        self.ring.add(self.links.name, type(message).__name__, step, begun, time.monotonic_ns())

    def deliver(self, sends: list[Send]) -> None:
        blocked: set[bytes] = set()
        for to, message in sends:
            if isinstance(to, str):
                self.deliver_to_actor(to, message)
            elif to in blocked:  # nothing overtakes what could not be sent
                self.tell(b"", ClientBlocked(to, message))
            elif not self.deliver_to_client(to, message):
                blocked.add(to)

    def deliver_to_actor(self, to: str, message: Any) -> None:
        if to == self.links.name:
            self.tell(to, message)
            return
        epoch = self.links.peers.get(to, 0)
        if epoch > self.connected.get(to, 0):
            self.early.setdefault(to, []).append((epoch, message))
            return
        out = self.outgoing.get(to)
        if out is None:
            self.dead_letters += 1
            return
        try:
            out.send(self.links.seal(to, message), zmq.DONTWAIT)
        except zmq.Again:
            raise SlipstreamError(
                f"the mailbox of {to} is full ({MAILBOX_MESSAGES} messages): it does not read any more"
            ) from None

    def deliver_to_client(self, client: bytes, message: Any) -> bool:
        """False if the client does not read, which the actor is told."""
        assert self.door is not None
        try:
            self.door.send_multipart((client, encode(message)), zmq.DONTWAIT)
        except zmq.Again:
            self.tell(b"", ClientBlocked(client, message))
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self.tell(b"", ClientGone(client))
        return True

    def drain_mailbox(self) -> bool:
        """Hand over what has arrived from other actors; True if there may be more."""
        for _ in range(TURN):
            try:
                frame = self.mailbox.recv(zmq.DONTWAIT)
            except zmq.Again:
                return False
            try:
                opened = self.links.open(frame)
            except ProtocolError as error:
                self.malformed += 1
                print(f"{self.links.name} dropped a frame from a stranger: {error}", file=sys.stderr)
                continue
            for sender, message in opened:
                self.tell(sender, message)
        return True

    def drain_door(self) -> bool:
        """Hand over what has arrived from clients; True if there may be more."""
        door = self.door
        if door is None:
            return False
        for _ in range(TURN):
            try:
                client, *frames = door.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return False
            if frames and not frames[0]:
                frames = frames[1:]  # a REQ socket sends an empty delimiter
            try:
                if len(frames) != 1:
                    raise ProtocolError(f"a message has one frame; this one has {len(frames)}")
                self.tell(client, ClientMessage(client, decode_from_client(frames[0])))
            except ProtocolError as error:
                found = request_id(frames[0]) if len(frames) == 1 else None
                self.deliver_to_client(client, Error(code="invalid_request", message=str(error), id=found))
        return True

    def drain_control(self) -> None:
        """Hand over what the supervisor says; its death ends the process."""
        while not self.stopped:
            try:
                message = control.receive(self.channel)
            except BlockingIOError:
                return
            if isinstance(message, control.Peer):
                self.connect(message.name, message.epoch, message.mailbox)
            elif isinstance(message, control.Stop) and message.drain:
                self.draining = True
                self.tell(b"", Drain())
            elif message is None or isinstance(message, control.Stop):
                self.stopped = True
        return

    def settle(self) -> float | None:
        """What is due by the clock; returns the seconds until the next wake, None if there is none."""
        if self.draining and self.actor.idle:
            self.draining = False
            control.send(self.channel, control.Drained())
        wake_at = self.actor.wake_at
        if wake_at is None:
            return None
        now = time.monotonic()
        if wake_at > now:
            return wake_at - now
        self.wake(now)
        wake_at = self.actor.wake_at
        return None if wake_at is None else max(0.0, wake_at - now)

    def wake(self, now: float) -> None:
        """Let the actor do what is due, and send it."""
        begun = time.monotonic_ns()
        sends = self.actor.wake(now)
        self.deliver(sends)
        if sends:
            self.note(sends[0][1], sends, begun)

    # --- two ways to wait -------------------------------------------------------------------------

    def run_blocking(self) -> None:
        """Wait in a poller; nothing runs while nothing happens."""
        poller = zmq.Poller()
        poller.register(self.mailbox, zmq.POLLIN)
        poller.register(self.channel.fileno(), zmq.POLLIN)
        device = self.actor.completions_fd
        if device is not None:
            poller.register(device, zmq.POLLIN)
        more = False
        while not self.stopped:
            wait = 0.0 if more else self.settle()
            ready = dict(poller.poll(None if wait is None else int(wait * 1000 + 0.999)))
            if device is not None and device in ready:
                os.eventfd_read(device)
                self.tell("device", Completed())
            more = self.drain_mailbox() if self.mailbox in ready else False
            if self.channel.fileno() in ready:
                self.drain_control()

    def run_uvloop(self) -> None:
        """Wait in uvloop for the sockets' file descriptors."""
        import asyncio

        import uvloop

        async def serve() -> None:
            loop = asyncio.get_running_loop()
            done = loop.create_future()
            timer: asyncio.TimerHandle | None = None

            def turn() -> None:
                nonlocal timer
                try:
                    self.drain_control()
                    more = self.drain_mailbox() | self.drain_door()
                    wait = self.settle()
                except Exception as error:
                    if not done.done():
                        done.set_exception(error)
                    return
                if self.stopped:
                    if not done.done():
                        done.set_result(None)
                    return
                # Sending may have used up the edge that told of a message: look again.
                if more or any(int(s.getsockopt(zmq.EVENTS)) & zmq.POLLIN for s in sockets):
                    loop.call_soon(turn)
                elif wait is not None:
                    if timer is not None:
                        timer.cancel()
                    timer = loop.call_later(wait, turn)

            sockets = [s for s in (self.mailbox, self.door) if s is not None]
            for s in sockets:
                loop.add_reader(s.fileno(), turn)
            loop.add_reader(self.channel.fileno(), turn)
            loop.call_soon(turn)
            await done

        uvloop.run(serve())

    def close(self) -> None:
        if self.door is not None:
            self.door.close(linger=LAST_WORDS_MS)
        self.context.destroy(linger=0)


def refuse_endpoint_in_use(endpoint: str) -> None:
    """ZeroMQ takes an ipc path away from whoever is bound to it, without a word: look first."""
    scheme, _, path = endpoint.partition("://")
    if scheme != "ipc" or not os.path.exists(path):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return  # left behind by a process that is gone; binding replaces it
        except OSError as error:
            raise SlipstreamError(
                f"cannot bind {endpoint}: {error.strerror}; choose another endpoint"
            ) from None
    raise SlipstreamError(
        f"cannot bind {endpoint}: another process is listening there; choose another endpoint"
    )


def die_with_parent(parent: int) -> None:
    """Ask the kernel to end this process when its parent ends, and make sure that it has not yet."""
    libc = ctypes.CDLL(None, use_errno=True)
    pr_set_pdeathsig = 1
    libc.prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def main(factory: str, fd: int, parent: int) -> int:
    """Build the actor that ``factory`` names and run it until the supervisor ends it."""
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the supervisor decides
    channel = socket.socket(fileno=fd)
    begin = control.receive(channel)
    if not isinstance(begin, control.Begin):
        return 1
    build = Build(begin.options)
    try:
        module, _, function = factory.partition(":")
        make: Callable[[StartContext], Actor] = getattr(importlib.import_module(module), function)
        actor = make(build)
        build.phase("sockets")
        host = Host(actor, begin, channel)
        facts = dict(actor.facts)
        if actor.endpoint is not None:
            facts["endpoint"] = host.open_door(actor.endpoint)
        build.phase("ready")
        channel.setblocking(False)
        control.send(channel, control.Ready(facts, {k: round(v, 3) for k, v in build.phases.items()}))
    except Exception as error:
        control.send(channel, failure(build.current, error))
        return 1
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE)
    try:
        if actor.blocking:
            host.run_blocking()
        else:
            os.nice(NICENESS)
            host.run_uvloop()
    except Exception as error:
        control.send(channel, failure("serving", error))
        return 1
    host.close()
    return 0


def failure(phase: str, error: Exception) -> control.Failed:
    return control.Failed(
        phase=phase,
        kind=type(error).__name__,
        message=str(error)[:8000],
        hint=getattr(error, "hint", ""),
        trace="".join(traceback.format_exception(error))[-16000:],
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
