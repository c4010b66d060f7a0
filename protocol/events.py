"""The events that a host gives to its own actor; they never go over a wire."""

from __future__ import annotations

import msgspec

from .messages import PublicIn, PublicOut


class PeerUp(msgspec.Struct, frozen=True):
    """A new incarnation of the actor ``name`` is there; messages on the way to or from the old one are lost."""

    name: str
    epoch: int


class PeerDown(msgspec.Struct, frozen=True):
    """The actor ``name`` has ended; a new incarnation will come."""

    name: str
    own_fault: bool
    """Whether it ended by its own fault, not by a signal from outside: what it was working at may be the cause."""


class ClientMessage(msgspec.Struct, frozen=True):
    """A public message and the connection that it came from."""

    client: bytes
    message: PublicIn


class ClientGone(msgspec.Struct, frozen=True):
    """The connection is no longer there."""

    client: bytes


class ClientBlocked(msgspec.Struct, frozen=True):
    """The client does not read, so this message to it was not sent."""

    client: bytes
    message: PublicOut


class ServiceFrame(msgspec.Struct, frozen=True):
    """A frame from a service that the actor is a client of; ``service`` is the actor's name for it."""

    service: str
    frame: bytes


class ServiceInterrupted(msgspec.Struct, frozen=True):
    """The connection to this service broke; all frames that had arrived came before this event."""

    service: str


class WatchedFile(msgspec.Struct, frozen=True):
    """The present text of the file that the host watches for the actor."""

    text: str


class Completed(msgspec.Struct, frozen=True):
    """The device has completed at least one step."""


class HandedOn(msgspec.Struct, frozen=True):
    """From an actor to itself: the messages that it sent to others in the turn before are on their way."""


class Drain(msgspec.Struct, frozen=True):
    """Accept nothing new."""

    returning_s: float = 0.0
    """Seconds for which the clients of an incarnation that has just died may still resend their requests."""


class Ending(msgspec.Struct, frozen=True):
    """The host ends now: answer all requests that are still open."""

    reason: str


class HostCounters(msgspec.Struct, frozen=True):
    """The counters of the hosts of all actors, since the start of the service."""

    counters: dict[str, float]
