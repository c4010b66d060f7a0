"""An actor: a pure state machine.

``receive(sender, message, now)`` returns the messages to send. An actor opens no socket, reads no clock and starts no
thread. What it needs from outside arrives as a message, and ``wake_at`` says when it wants to be woken. So the same
object runs under a process host, under the simulator and in a unit test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any

from ..protocol.client_key import ClientKey
from ..protocol.events import PeerDown, PeerUp
from .guard import AllowedClients
from .trace import Ring

if TYPE_CHECKING:
    from ..protocol.client.session import Session


class HostAddress(Enum):
    """Addresses of what an actor can reach through its own host."""

    SUPERVISOR = "supervisor"
    """Answers ``GetActors`` with the states of all actors."""
    LOG = "log"
    """Writes a text as one line into the log."""
    REQUEST_TRACES = "request traces"
    """Sends a ``RequestTrace`` to where ``request_traces_endpoint`` says."""


Address = str | bytes | HostAddress
"""Another actor by its name, a client's connection by its identity, or the actor's own host."""

Send = tuple[Address, Any]


class Actor:
    """Base of all actors: a table from message types to handlers, and the outbox that they fill."""

    name: str
    wake_at: float | None = None
    """The time at which the host is to call ``wake``, in seconds of its clock; None: never."""
    blocking: bool = False
    """Whether the host waits in a poller, which reacts sooner, and not in an event loop."""
    endpoint: str | None = None
    """The endpoint at which the host binds a socket for clients, for the actor that speaks to them."""
    allowed_clients: AllowedClients | None = None
    """The clients that may connect, by their keys; None: every client that reaches the endpoint may."""
    client_key: ClientKey | None = None
    """The key with which it connects, as a client, to the services of ``sessions``; None: they ask for none."""
    request_traces_endpoint: str | None = None
    """The endpoint to which the host sends the actor's traces of requests; None: there are none."""
    watched_file: str | None = None
    """A file whose text the host reports to the actor, at the start and whenever it changes."""
    completions_fd: int | None = None
    """The file descriptor by which the actor's device reports to the host that a step is complete; None: it has no
    device."""
    full_speed_at: float | None = 0.0
    """The time since which it is as fast as it can be, by the host's clock; None: it is ready, and will be faster."""
    progress: int = 0
    """Grows whenever the work under way has come forward; see ``working``."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        """The facts about this actor that the banner shows."""
        self.ring = Ring()
        """The trace: the host adds a span for each turn, and the actor adds what it alone knows."""
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
        """Whether nothing is under way, so that a draining host may stop, and garbage may be collected."""
        return True

    @property
    def sessions(self) -> Mapping[str, Session] | None:
        """For an actor that is itself a client of services: a session for each service, by the actor's own name for it.
        The host connects them, sends their frames, and passes on the frames that arrive."""
        return None

    @property
    def working(self) -> bool:
        """Whether work is under way that only this actor can bring forward: if it makes no ``progress`` then, it
        hangs."""
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
        """Divide the message into parts that are handled one after the other, each with the digest of its request, or
        an empty one. The host does so after a death by the actor's own fault: if the actor dies again, it is known
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
        """A new incarnation of a peer has started and knows nothing: send it again what it must know."""

    def on_peer_down(self, peer: PeerDown, now: float) -> None:
        """A peer has ended; the messages that it has not answered are lost with it."""

    def note_moment(self, name: str, request: int) -> None:
        """Record in the trace that this turn is a moment in the life of a request."""
        self.ring.add_moment(name, request, self.now)

    def send(self, to: Address, message: Any) -> None:
        self.outbox.append((to, message))

    def take_outbox(self) -> list[Send]:
        sent, self.outbox = self.outbox, []
        return sent
