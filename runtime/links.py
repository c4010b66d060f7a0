"""Epochs and sequence numbers, by which an actor decides which frames to accept.

A frame begins with the frame key of the service, which only its actors know. A frame without it is refused unread.

Every incarnation of an actor has an epoch, which the supervisor gives it and which is higher than any before. A frame
that is from an older incarnation, or meant for one, is counted and dropped. The frames between two incarnations are
numbered. A gap means that a frame was lost between two living processes, which must not happen: the receiver ends with
an error, and its next incarnation begins anew.
"""

from __future__ import annotations

from typing import Any

from ..protocol.codec import decode_envelope, encode_behind
from ..protocol.errors import ProtocolError
from ..protocol.events import PeerUp
from ..protocol.internal import Envelope


class LostMessage(Exception):
    """A frame of a living peer is missing."""


class Links:
    """The state of one actor's links to all its peers. No I/O."""

    def __init__(self, name: str, epoch: int, frame_key: bytes = b"") -> None:
        self.name = name
        self.epoch = epoch
        self.frame_key = frame_key
        self.peers: dict[str, int] = {}
        self.sent: dict[str, int] = {}
        self.received: dict[str, int] = {}
        self.stale = 0
        """Frames of an older incarnation, or meant for one, that were dropped."""

    def peer_up(self, name: str, epoch: int) -> bool:
        """Record an incarnation of a peer; True if it is new."""
        if epoch <= self.peers.get(name, 0):
            return False
        self.peers[name] = epoch
        self.sent[name] = 0
        self.received[name] = 0
        return True

    def seal(self, to: str, message: Any) -> bytes | bytearray:
        """The frame that carries ``message`` to the known incarnation of ``to``."""
        sequence = self.sent[to]
        self.sent[to] = sequence + 1
        return encode_behind(
            self.frame_key, Envelope(self.name, self.epoch, self.peers[to], sequence, message)
        )

    def open(self, frame: bytes | bytearray) -> list[tuple[str, Any]]:
        """The messages of a frame, as (sender, message); before the first one of a new incarnation comes a ``PeerUp``.

        ``ProtocolError`` if the frame does not begin with the service's frame key.
        """
        if not frame.startswith(self.frame_key):
            raise ProtocolError(f"a frame of {len(frame)} bytes is not of this service")
        envelope = decode_envelope(memoryview(frame)[len(self.frame_key) :])
        sender = envelope.sender
        if envelope.receiver_epoch != self.epoch or envelope.epoch < self.peers.get(sender, 0):
            self.stale += 1
            return []
        opened: list[tuple[str, Any]] = []
        if self.peer_up(sender, envelope.epoch):
            opened.append((sender, PeerUp(sender, envelope.epoch)))
        expected = self.received[sender]
        if envelope.sequence != expected:
            raise LostMessage(
                f"{self.name} expected message {expected} of {sender} (epoch {envelope.epoch})"
                f" and got {envelope.sequence}"
            )
        self.received[sender] = expected + 1
        opened.append((sender, envelope.body))
        return opened
