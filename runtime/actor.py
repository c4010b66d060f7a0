"""An actor: a pure state machine.

``receive(sender, message, now)`` returns the messages to send. An actor opens no socket, reads no
clock and starts no thread; what it needs of the outside arrives as a message, and when it wants to
be woken it says so in ``wake_at``. The same object therefore runs under a process host, under the
simulator and in a unit test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any

from ..protocol.client_key import ClientKey
from ..protocol.events import PeerDown, PeerUp
from .guard import PublicSocketKeys
from .trace import Ring

if TYPE_CHECKING:
    from ..protocol.client.session import Session


class HostAddress(Enum):
    """What an actor can reach through its own host, which it addresses like a peer."""

    SUPERVISOR = "supervisor"
    """Answers how all actors are."""
    LOG = "log"
    """Writes a line, a text, into the log."""
    TRACES = "traces"
    """Sends a ``RequestTrace`` to where ``traces_endpoint`` says."""


Address = str | bytes | HostAddress
"""Another actor by its name, a client's connection by its identity, or the actor's own host."""

Send = tuple[Address, Any]


class Actor:
    """Base of all actors: a table from message types to handlers, and the outbox that they fill."""

    name: str
    wake_at: float | None = None
    """The time at which the host is to call ``wake``, in seconds of its clock; None: never."""
    blocking: bool = False
    """The host waits in a poller (a step more or less matters), not in an event loop."""
    endpoint: str | None = None
    """The endpoint at which the host binds a socket for clients, for the actor that speaks to them."""
    public_keys: PublicSocketKeys | None = None
    """The clients that may connect to it; None: everybody who reaches it."""
    service_key: ClientKey | None = None
    """The key that the services of ``sessions`` ask for; None: they ask for none."""
    traces_endpoint: str | None = None
    """The endpoint to which the host sends the actor's spans of requests; None: there are none."""
    watched_file: str | None = None
    """A file whose text the actor is to know, at first and whenever it changes."""
    completions_fd: int | None = None
    """The file descriptor by which the actor's device reports to the host that a step is complete; None: it has no
    device."""
    full_speed_at: float | None = 0.0
    """Since when it is as fast as it can be, by the host's clock; None: it is ready and will be faster."""
    progress: int = 0
    """Grows whenever what makes the actor ``working`` has come forward."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        """The facts about this actor that the banner shows."""
        self.ring = Ring()
        """The trace: the host adds a span for each turn, and the actor others that it knows better."""
        self.now = 0.0
        """The host's clock at the begin of this turn."""
        self.outbox: list[Send] = []
        self.handlers: dict[type, Callable[[Any, float], None]] = {
            PeerUp: self.on_peer_up,
            PeerDown: self.on_peer_down,
        }
        self.unexpected = 0
        """Messages of a type that this actor does not handle."""

    @property
    def idle(self) -> bool:
        """Nothing is under way: a draining host may stop, and there is time to look for cycles."""
        return True

    @property
    def sessions(self) -> Mapping[str, Session] | None:
        """For an actor that is itself a client of services: its side of each conversation, by a name that it has for
        the service. The host connects them, carries what they say and hands on what comes."""
        return None

    @property
    def working(self) -> bool:
        """Something is under way that only this actor can bring forward: without ``progress`` it hangs."""
        return False

    @property
    def hang_limit_s(self) -> float | None:
        """Seconds that the work under way may take without ``progress``; None: the supervisor's own limit."""
        return None

    def receive(self, sender: Address, message: Any, now: float) -> list[Send]:
        self.now = now
        handler = self.handlers.get(type(message))
        if handler is None:
            self.unexpected += 1
            return []
        handler(message, now)
        return self.take_outbox()

    def parts(self, message: Any) -> Iterable[tuple[bytes, Any]]:
        """The message in parts to be handled one after the other, each with the digest of the request that it is
        about, or an empty one. Hosts ask after a death by the actor's own fault: should it die again, it is known
        which request it had in hand."""
        return [(b"", message)]

    def wake(self, now: float) -> list[Send]:
        """Called at ``wake_at`` or a little later."""
        self.now = now
        self.wake_at = None
        self.on_wake(now)
        return self.take_outbox()

    def on_wake(self, now: float) -> None:
        """Do what is due by now."""

    def next_completion(self) -> float | None:
        """When the actor's simulated device finishes next; None for an actor without one."""
        return None

    def on_peer_up(self, peer: PeerUp, now: float) -> None:
        """A new incarnation of a peer is there and knows nothing: say again what it must know."""

    def on_peer_down(self, peer: PeerDown, now: float) -> None:
        """A peer has ended; what it was sent and has not answered is lost with it."""

    def note_moment(self, name: str, request: int) -> None:
        """This turn is a moment in the life of a request: its trace is to show it."""
        self.ring.add_moment(name, request, self.now)

    def send(self, to: Address, message: Any) -> None:
        self.outbox.append((to, message))

    def take_outbox(self) -> list[Send]:
        sent, self.outbox = self.outbox, []
        return sent
