"""The messages between the supervisor and a host, over a socket pair that the child inherits.

The pair is a ``SOCK_SEQPACKET``: one message, one packet. Its end-of-file is also how each side
learns of the other's death.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Sequence
from typing import Any

import msgpack
import msgspec

from ...protocol.codec import encode
from ...protocol.messages import Actors

IDLE_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)
"""Signals that ask a service for nothing, though their default is to end a process."""

MAX_PACKET = 192 * 1024
"""Most bytes of a control message. It must fit as a whole into the buffer of a Unix socket, which has 208 KiB by
default; and the longest, ``Begin``, has up to 64 KiB each of templates and of defaults for requests."""


class Control(msgspec.Struct, tag=True):
    """Base of the control messages."""


class Begin(Control):
    """supervisor → host: who you are. The first message."""

    name: str
    epoch: int
    mailbox: str
    """The ipc endpoint to bind; the name is new for each incarnation."""
    peers: dict[str, tuple[int, str]]
    """Epoch and mailbox of every peer that is there already."""
    options: dict[str, Any]
    restarted: bool = False
    """The service has had an incarnation before this one."""
    crashed: bool = False
    """The incarnation before this one ended by its own fault."""
    in_hand: int = -1
    """The file descriptor of ``InHand``."""
    quarantined: list[bytes] = []
    """Digests of requests that this one is not to meet, since others died while they handled them."""
    frame_key: bytes = b""
    """What frames between the actors of this service begin with."""


class Prepare(Control):
    """supervisor → spare: import what the actor needs; → keeper: begin. The first message; answered by ``Ready`` or
    ``Failed``."""

    options: dict[str, Any]
    """The options of the actor; a keeper has none."""
    background: bool
    """Others serve meanwhile and come first."""


class Fork(Control):
    """supervisor → spare: fork an incarnation; answered by ``Forked``.

    With it come the file descriptors of the incarnation: its control channel, ``InHand``, and what it prints to.
    """


class Forked(Control):
    """spare → supervisor: the incarnation runs, as a child of the supervisor, and waits for ``Begin``."""

    pid: int


class Peer(Control):
    """supervisor → host: a new incarnation of a peer."""

    name: str
    epoch: int
    mailbox: str


class PeerDied(Control):
    """supervisor → host: a peer has ended, by its own fault or not; a ``Peer`` will follow."""

    name: str
    own_fault: bool


class Stop(Control):
    """supervisor → host: end; with ``drain``, first finish what is under way and say ``Drained``."""

    drain: bool = False
    reason: str = ""
    """Without ``drain``: what answers whatever is still open."""
    returning_s: float = 0.0
    """With ``drain``: how long the clients of an incarnation that has just died have to ask again for what it had
    taken, which is nothing new."""


class Ready(Control):
    """host → supervisor: the actor is built and its mailbox is bound; of a spare: all is imported."""

    facts: dict[str, Any] = {}
    """What the actor says of itself, for the banner; ``settled``: options that its later incarnations are to have."""
    phases: dict[str, float] = {}
    """Seconds of each phase of the start."""


class Failed(Control):
    """host → supervisor: the actor could not start or had to stop."""

    phase: str
    kind: str
    message: str
    hint: str = ""
    traceback: str = ""
    of_another: bool = False
    """It ended because another of its group did."""
    for_good: bool = False
    """What it cannot do without is lost, and no restart brings that back."""


class Drained(Control):
    """host → supervisor: nothing is under way any more."""


class Awake(Control):
    """host → supervisor: something has come after a pause; probe me until I am idle again."""


class Probe(Control):
    """supervisor → host: show that your loop turns; answered by ``Report``."""


class Report(Control):
    """host → supervisor: what the actor has done so far."""

    turns: int
    """Messages handled."""
    progress: int
    working: bool
    """``progress`` and ``working`` of the actor."""
    idle: bool
    """Nothing has come since the last report: no further probes are needed until ``Awake``."""
    sent: dict[str, tuple[int, int]]
    received: dict[str, tuple[int, int]]
    """By peer: its epoch, and the messages sent to it, or taken in from it."""
    busy_s: float = 0.0
    """Spent in handling messages."""
    counters: dict[str, int] = {}
    """What this incarnation has counted."""
    hang_limit_s: float | None = None
    """`Actor.hang_limit_s`."""
    full_speed_at: float | None = 0.0
    """`Actor.full_speed_at`."""


class ReportCounters(Control):
    """supervisor → a host with a public socket: what all actors have counted, those that are gone included."""

    counters: dict[str, float]


class AskActors(Control):
    """host → supervisor: a client wants to know how the actors are."""


class ReportActors(Control):
    """supervisor → host: how the actors are."""

    actors: Actors


AnyControl = (
    Begin | Prepare | Fork | Forked | Peer | PeerDied | Stop | Ready | Failed | Drained
    | Awake | Probe | Report | ReportCounters | AskActors | ReportActors
)  # fmt: skip


def send(channel: socket.socket, message: AnyControl, descriptors: Sequence[int] = ()) -> None:
    """Send a message; with it, files that this process has open."""
    packet = encode(message)
    if len(packet) > MAX_PACKET:
        raise ValueError(f"a control message of {len(packet)} bytes is over the limit of {MAX_PACKET}")
    if descriptors:
        socket.send_fds(channel, [packet], descriptors)
    else:
        channel.send(packet)


def receive(channel: socket.socket) -> AnyControl | None:
    """The next message; None when the other side is gone. ``BlockingIOError`` if there is none yet."""
    # A host asks at each turn: do not have the system map a packet's memory for nothing.
    channel.recv(1, socket.MSG_PEEK)
    return decode(channel.recv(MAX_PACKET))


def receive_with_files(channel: socket.socket, most: int) -> tuple[AnyControl | None, list[int]]:
    """The next message, and up to ``most`` file descriptors that came with it."""
    packet, descriptors, _, _ = socket.recv_fds(channel, MAX_PACKET, most)
    return decode(packet), descriptors


def decode(packet: bytes) -> AnyControl | None:
    if not packet:
        return None
    return msgspec.convert(msgpack.unpackb(packet, strict_map_key=False), AnyControl)
