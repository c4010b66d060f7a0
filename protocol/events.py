"""The events that a host gives to its own actor; they never go over a wire."""

from __future__ import annotations

import msgspec

from .messages import PublicIn, PublicOut


class PeerUp(msgspec.Struct, frozen=True):
    """A new incarnation of the actor ``name`` is there; whatever was on its way to or from the old is lost."""

    name: str
    epoch: int


class PeerDown(msgspec.Struct, frozen=True):
    """The actor ``name`` has ended; a new incarnation will come."""

    name: str
    own_fault: bool
    """Not by a signal from outside: what it was working at may be the cause."""


class ClientMessage(msgspec.Struct, frozen=True):
    """A public message and the connection that it came from."""

    client: bytes
    message: PublicIn


class ClientGone(msgspec.Struct, frozen=True):
    """The connection is no longer there."""

    client: bytes


class ClientBlocked(msgspec.Struct, frozen=True):
    """The client does not read: this message to it was not sent."""

    client: bytes
    message: PublicOut


class ServiceFrame(msgspec.Struct, frozen=True):
    """A frame of a service that the actor is a client of, by the name that the actor has for it."""

    service: str
    frame: bytes


class ServiceInterrupted(msgspec.Struct, frozen=True):
    """The connection to that service broke; all that had arrived was handed over."""

    service: str


class WatchedFile(msgspec.Struct, frozen=True):
    """The text of the file that the actor has the host watch, as it is now."""

    text: str


class Completed(msgspec.Struct, frozen=True):
    """The device finished at least one step."""


class HandedOn(msgspec.Struct, frozen=True):
    """From an actor to itself: what it has sent to others in the turn before is on its way."""


class Drain(msgspec.Struct, frozen=True):
    """Accept nothing new."""

    returning_s: float = 0.0
    """Seconds in which the clients of an incarnation that has just died are to ask again for what it had taken."""


class Ending(msgspec.Struct, frozen=True):
    """The host ends now: answer whatever is still open."""

    reason: str


class Counted(msgspec.Struct, frozen=True):
    """The counts of the hosts of all actors since the start of the service."""

    counters: dict[str, float]
