"""The sockets between an actor and its peers: its own mailbox, and a socket to the mailbox of each peer.

``links`` decides which frames are accepted. A mailbox belongs to one incarnation, so no frame for a dead incarnation
reaches the next.
"""

from __future__ import annotations

from typing import Any

import zmq

from ...protocol import limits
from ...protocol.errors import ProtocolError, SlipstreamError
from ..links import Links
from ..log import logger
from ..supervision import control

MAILBOX_MESSAGES = 20_000
"""Most messages on their way between two actors; admission keeps the number far below."""


class Mailboxes:
    """The mailbox of one incarnation of an actor, and its sockets to those of its peers."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], begin: control.Begin) -> None:
        self.context = context
        self.links = Links(begin.name, begin.epoch, begin.frame_key)
        self.own = self.socket(zmq.PULL, RCVHWM=MAILBOX_MESSAGES)
        self.own.bind(begin.mailbox)
        self.outgoing: dict[str, zmq.Socket[bytes]] = {}
        self.connected: dict[str, int] = {}
        """The epoch of the incarnation of each peer to which ``outgoing`` is connected."""
        self.early: dict[str, list[tuple[int, Any]]] = {}
        """Messages, with an epoch, for a new incarnation of a peer whose mailbox the supervisor has not reported
        yet."""
        self.dead_letters = 0
        """The number of messages to an actor that was not there; its next incarnation is sent all that it needs."""
        self.malformed = 0
        """The number of frames that are no messages; no actor of the service sends such."""

    def socket(self, kind: int, **options: int) -> zmq.Socket[bytes]:
        made = self.context.socket(kind)
        made.set(zmq.LINGER, 0)
        made.set(zmq.MAXMSGSIZE, limits.MAX_INTERNAL_FRAME_BYTES)
        for name, value in options.items():
            made.set(getattr(zmq, name), value)
        return made

    def connect(self, name: str, epoch: int, mailbox: str) -> bool:
        """Connect to a new incarnation of a peer; returns False if it is known already, or older than the known one."""
        if epoch < self.links.peers.get(name, 0) or epoch == self.connected.get(name):
            return False
        old = self.outgoing.pop(name, None)
        if old is not None:
            old.close()
        self.outgoing[name] = self.socket(zmq.PUSH, SNDHWM=MAILBOX_MESSAGES)
        self.outgoing[name].connect(mailbox)
        self.connected[name] = epoch
        return True

    def take_early(self, name: str) -> list[Any]:
        """The messages that waited for the connection to this incarnation."""
        return [message for epoch, message in self.early.pop(name, ()) if epoch == self.connected[name]]

    def send(self, to: str, message: Any) -> None:
        """Send a message to a peer; ``SlipstreamError`` if its mailbox is full.

        The message waits if the mailbox of the peer is not known yet, and is dropped if there is no such peer.
        """
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

    def receive(self) -> list[tuple[str, Any]] | None:
        """The messages of the next frame, as (sender, message), empty if it does not count; None if none has
        arrived."""
        try:
            frame = self.own.recv(zmq.DONTWAIT)
        except zmq.Again:
            return None
        try:
            return self.links.open(frame)
        except ProtocolError as error:
            self.malformed += 1
            if self.malformed.bit_count() == 1:  # 1, 2, 4, 8, …: a stranger cannot fill the log
                logger.warning(
                    "%s dropped a frame from a stranger, %d until now: %s",
                    self.links.name,
                    self.malformed,
                    error,
                )
            return []
