"""The process host: runs one actor, turn by turn.

It gives everything that arrives to the actor, and sends everything that the actor returns: to its peers
(``mailboxes``), to clients (``public_socket``), to services that the actor is a client of (``service_sockets``), and to
the supervisor. How a host waits between two turns is in ``loops``.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import zmq

from ...protocol.codec import decode_from_client, request_id
from ...protocol.digest import digest_of
from ...protocol.errors import ProtocolError, Quarantined
from ...protocol.events import (
    ClientBlocked,
    ClientGone,
    ClientMessage,
    Completed,
    Drain,
    Ending,
    HostCounters,
    PeerDown,
    PeerUp,
    WatchedFile,
)
from ...protocol.internal import DumpTrace, OfStep, Spans
from ...protocol.messages import Error, PublicIn
from ..actor import Actor, Address, HostAddress, Send
from ..in_hand import InHand
from ..log import logger
from ..request_trace import TraceExporter
from ..supervision import control
from .mailboxes import Mailboxes
from .service_sockets import ServiceSockets
from .watched_file import FileWatch

if TYPE_CHECKING:
    from .public_socket import PublicSocket

LONG_TURN_NS = 5_000_000
"""A turn that took this long may have taken as long as the step that it launched, which then ends about now. Launching
a step without a graph takes tens of milliseconds, and with one at most 1.4."""

COMPLETION_WAIT = 0.1
"""How long to wait for that end, as a share of the turn. It comes a few tenths of a millisecond after the turn; where
it does not come, the next message is delayed by no more than this."""

MESSAGES_AT_ONCE = 32
"""Most messages that are taken from one socket before the other sockets and timers are served."""

CLIENT_MESSAGES_AT_ONCE = 8
"""The same for messages of clients. It is smaller because a router sends requests on at the end of a turn, and the
first of many requests shall not wait until all are taken in."""


class Host:
    """Feeds one actor from its sockets, and times its turns."""

    def __init__(self, actor: Actor, begin: control.Begin, channel: socket.socket) -> None:
        self.actor = actor
        self.channel = channel
        self.in_hand = InHand(begin.in_hand)
        self.quarantined = frozenset(begin.quarantined)
        self.careful = begin.crashed
        """Whether the incarnation before this one ended by its own fault: then messages are handled request by request,
        and the one in hand is noted."""
        self.ring = actor.ring
        self.dumps: list[Iterator[tuple[str, Spans]]] = []
        """For each trace that was asked for, the parts that are left to send."""
        self.context = zmq.Context()
        self.context.set(zmq.MAX_SOCKETS, 4096)
        self.turns = 0
        """The number of messages handled."""
        self.busy_ns = 0
        """The time spent in the actor's turns."""
        self.reported_turns = 0
        self.awake = True
        """Whether the supervisor probes this host, as it knows that there is something to do."""
        self.draining = False
        self.stopped = False
        self.mailboxes = Mailboxes(self.context, begin)
        self.links = self.mailboxes.links
        self.public: PublicSocket | None = None
        self.service_sockets: ServiceSockets | None = None
        """For an actor that is itself a client of services."""
        if actor.sessions is not None:
            self.service_sockets = ServiceSockets(self.context, actor.sessions, actor.client_key)
        self.file_watch = None if actor.watched_file is None else FileWatch(actor.watched_file)
        self.request_traces: TraceExporter | None = None
        if actor.request_traces_endpoint is not None:
            self.request_traces = TraceExporter(actor.request_traces_endpoint)
        for name, (epoch, mailbox) in begin.peers.items():
            self.connect(name, epoch, mailbox)

    def open_public(self, endpoint: str) -> str:
        """Bind the public socket; returns its real endpoint."""
        from .public_socket import PublicSocket  # imported only by the actor that clients speak to

        self.public = PublicSocket(self.context, endpoint, self.actor.allowed_clients)
        return self.public.endpoint

    def connect(self, name: str, epoch: int, mailbox: str) -> None:
        """Connect to a new incarnation of a peer, report it to the actor, and send the messages that waited for it."""
        if not self.mailboxes.connect(name, epoch, mailbox):
            return
        if self.links.peer_up(name, epoch):
            self.handle(name, PeerUp(name, epoch))
        self.deliver([(name, message) for message in self.mailboxes.take_early(name)])

    # --- one turn ---------------------------------------------------------------------------------

    def handle(self, sender: Address, message: Any) -> None:
        """Give one message to the actor, and send what it returns."""
        self.announce_awake()
        self.turns += 1
        if type(message) is DumpTrace:
            assert isinstance(sender, str)
            self.dumps.append(self.dump(sender, message.since_ns))
            return
        begun = time.monotonic_ns()
        sends = self.actor.receive(sender, message, begun * 1e-9)
        self.note(message, sends, begun)
        self.deliver(sends)

    def announce_awake(self) -> None:
        """Report to the supervisor, before the first message after a pause, that there is something to do: it would
        notice if the turn never ended."""
        if not self.awake:
            self.awake = True
            self.inform(control.Awake())

    def inform(self, message: control.AnyControl) -> None:
        """Send to the supervisor, without waiting for one that does not read."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            control.send(self.channel, message)

    def note(self, message: Any, sends: list[Send], begun: int) -> None:
        """Record the turn as a span, named after what it made for a step, or else after the message that began it."""
        message = next((made for _, made in sends if isinstance(made, OfStep)), message)
        step = message.step if isinstance(message, OfStep) else -1
        ended = time.monotonic_ns()
        self.busy_ns += ended - begun
        self.ring.add(self.links.name, type(message).__name__, step, begun, ended)

    def dump(self, to: str, since_ns: int) -> Iterator[tuple[str, Spans]]:
        """The trace in parts, between which the actor goes on with its work."""
        for part in self.ring.dump(since_ns):
            yield to, Spans(self.links.name, part, since_ns)
        yield to, Spans(self.links.name, self.ring.outline(since_ns), since_ns, last=True)

    def dump_on(self) -> bool:
        """Send the next part of a trace that was asked for; True if there is more."""
        if self.dumps:
            send = next(self.dumps[0], None)
            if send is None:
                del self.dumps[0]
            else:
                self.deliver_to_actor(*send)
        return bool(self.dumps)

    def deliver(self, sends: list[Send]) -> None:
        blocked: set[bytes] = set()
        for to, message in sends:
            if isinstance(to, str):
                self.deliver_to_actor(to, message)
            elif to is HostAddress.LOG:
                logger.info("%s", message)
            elif to is HostAddress.REQUEST_TRACES:
                assert self.request_traces is not None
                self.request_traces.export(message)
            elif isinstance(to, HostAddress):
                self.inform(control.AskActors())
            elif to in blocked:  # what could not be sent must not be overtaken
                self.handle(b"", ClientBlocked(to, message))
            elif not self.deliver_to_client(to, message):
                blocked.add(to)

    def deliver_to_actor(self, to: str, message: Any) -> None:
        if to == self.links.name:
            self.handle(to, message)
        else:
            self.mailboxes.send(to, message)

    def deliver_to_client(self, client: bytes, message: Any) -> bool:
        """Send to a client; returns False if it does not read, which the actor is told."""
        assert self.public is not None
        outcome = self.public.send(client, message)
        if outcome == "blocked":
            self.handle(b"", ClientBlocked(client, message))
        elif outcome == "gone":
            self.handle(b"", ClientGone(client))
        return outcome != "blocked"

    def receive_from_peers(self) -> bool:
        """Handle what has arrived from other actors; True if there may be more, which is to be handled next."""
        for _ in range(MESSAGES_AT_ONCE):
            opened = self.mailboxes.receive()
            if opened is None:
                return False
            # Take in first what the supervisor reported before this message was sent: a request that is submitted
            # again because of a new peer must not meet an actor that still speaks to the old one.
            self.receive_from_supervisor()
            for sender, message in opened:
                before_ns = self.busy_ns
                if self.careful:
                    self.handle_parts(sender, message)
                else:
                    self.handle(sender, message)
                turn_ns = self.busy_ns - before_ns
                self.complete_first(turn_ns)
                if turn_ns >= LONG_TURN_NS and self.is_due(time.monotonic()):
                    return False  # what is due comes before the next message, even if that is there already
        return True

    def handle_parts(self, sender: Address, message: Any) -> None:
        """Handle a message request by request, and note which one is in hand."""
        for digest, part in self.actor.parts(message):
            if digest:
                self.in_hand.take(digest)
            self.handle(sender, part)
            if digest:
                self.in_hand.put_down()

    def complete_first(self, turn_ns: int) -> None:
        """After a long turn, handle what the device has completed before the next message.

        If launching a step takes as long as the step, its completion comes just after the turn. Handled only after the
        next launch, two completions would come together. Their results would be sent at once, two plans would come
        back at once, and from then on tokens would come in pairs, with twice the gap between them. Of 60 steps
        that are launched in 30 ms and end 0.3 ms later, all are then handled one by one; if the host only looked,
        without waiting, 42 to 54 were.
        """
        device = self.actor.completions_fd
        if device is None or turn_ns < LONG_TURN_NS:
            return
        poll = select.poll()
        poll.register(device, select.POLLIN)
        until_ns = time.monotonic_ns() + int(turn_ns * COMPLETION_WAIT)
        while self.actor.working and poll.poll(max(0, until_ns - time.monotonic_ns()) * 1e-6):
            self.completed(device)

    def completed(self, device: int) -> None:
        os.eventfd_read(device)
        self.handle("device", Completed())

    def receive_from_clients(self) -> bool:
        """Handle what has arrived from clients; True if there may be more."""
        if self.public is None:
            return False
        for _ in range(CLIENT_MESSAGES_AT_ONCE):
            received = self.public.receive()
            if received is None:
                return False
            client, frames = received
            self.announce_awake()
            try:
                if len(frames) != 1:
                    raise ProtocolError(f"a message has one frame; this one has {len(frames)}")
                message = decode_from_client(frames[0])
                digest = self.digest_of_allowed(message)
            except (ProtocolError, Quarantined) as error:
                code = error.code if isinstance(error, Quarantined) else "invalid_request"
                found = request_id(frames[0]) if len(frames) == 1 else None
                self.deliver_to_client(
                    client, Error(code=code, message=str(error), id=found, param=error.param)
                )
                continue
            if digest:
                self.in_hand.take(digest)
            self.handle(client, ClientMessage(client, message))
            if digest:
                self.in_hand.put_down()
        return True

    def receive_from_services(self) -> bool:
        """Handle what has arrived from services; True if there may be more."""
        if self.service_sockets is None:
            return False
        for message in self.service_sockets.arrived(MESSAGES_AT_ONCE):
            self.handle(message.service, message)
        return self.service_sockets.has_more

    def digest_of_allowed(self, message: PublicIn) -> bytes:
        """The digest of a request; ``Quarantined`` if two incarnations of the actor have died while they took it in."""
        digest = digest_of(message)
        if digest in self.quarantined:
            raise Quarantined(
                f"the {self.links.name} died twice while it had this request in hand: it is not tried again"
            )
        return digest

    def receive_from_supervisor(self) -> None:
        """Handle what the supervisor says; its death ends the process."""
        while not self.stopped:
            try:
                message = control.receive(self.channel)
            except BlockingIOError:
                return
            if isinstance(message, control.Peer):
                self.connect(message.name, message.epoch, message.mailbox)
            elif isinstance(message, control.PeerDied):
                self.handle(message.name, PeerDown(message.name, message.own_fault))
            elif isinstance(message, control.Probe):
                self.report()
            elif isinstance(message, control.ReportActors):
                self.handle(HostAddress.SUPERVISOR, message.actors)
            elif isinstance(message, control.Stop) and message.drain:
                self.draining = True
                self.handle(b"", Drain(message.returning_s))
            elif isinstance(message, control.ReportCounters):
                self.handle(HostAddress.SUPERVISOR, HostCounters(message.counters))
            elif message is None:
                self.stopped = True
            elif isinstance(message, control.Stop):
                self.handle(HostAddress.SUPERVISOR, Ending(message.reason))
                self.stopped = True
        return

    def report(self) -> None:
        """Answer a probe."""
        idle = self.turns == self.reported_turns and not self.actor.working
        self.awake, self.reported_turns = not idle, self.turns
        peers = self.links.peers
        self.inform(
            control.Report(
                turns=self.turns,
                busy_s=self.busy_ns * 1e-9,
                progress=self.actor.progress,
                working=self.actor.working,
                idle=idle,
                sent={name: (epoch, self.links.sent[name]) for name, epoch in peers.items()},
                received={name: (epoch, self.links.received[name]) for name, epoch in peers.items()},
                counters={
                    "dead_letters": self.mailboxes.dead_letters,
                    "stale": self.links.stale,
                    "malformed": self.mailboxes.malformed,
                    "unexpected": self.actor.unexpected,
                },
                hang_limit_s=self.actor.hang_limit_s,
                full_speed_at=self.actor.full_speed_at,
            )
        )

    def do_due(self) -> float | None:
        """Do what is due by the clock; returns the seconds until the next wake, None if there is none."""
        now = time.monotonic()
        if self.file_watch is not None:
            text = self.file_watch.changed_text(now)
            if text is not None:
                self.handle(self.file_watch.path, WatchedFile(text))
        if self.is_due(now):
            self.wake(now)
        if self.draining and self.actor.idle:
            self.draining = False
            control.send(self.channel, control.Drained())
        if self.service_sockets is not None:
            self.service_sockets.flush()
        wake_at = self.actor.wake_at
        return None if wake_at is None else max(0.0, wake_at - now)

    def is_due(self, now: float) -> bool:
        """Whether it is time to wake the actor."""
        return self.actor.wake_at is not None and self.actor.wake_at <= now

    def wake(self, now: float) -> None:
        """Let the actor do what is due, and send what it returns."""
        self.announce_awake()
        begun = time.monotonic_ns()
        sends = self.actor.wake(now)
        if sends:
            self.note(sends[0][1], sends, begun)
        self.deliver(sends)

    def close(self) -> None:
        if self.public is not None:
            self.public.close()
        if self.service_sockets is not None:
            self.service_sockets.close()
        if self.request_traces is not None:
            self.request_traces.close()
        self.context.destroy(linger=0)
