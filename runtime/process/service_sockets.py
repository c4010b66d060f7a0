"""The sockets of an actor that is itself a client of services: one for each of its sessions.

The sessions say what to send, and on which connection (``protocol/client/session.py``). Here are their sockets: what
arrives is handed over frame by frame, and that a connection broke once all has been that came before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import zmq

from ...protocol.client.session import Session
from ...protocol.client.transport import Transport
from ...protocol.client_key import ClientKey
from ...protocol.events import ServiceFrame, ServiceInterrupted

Watch = Callable[[int, Callable[[], None]], object]
"""Call the function whenever the file descriptor is readable."""


class ServiceSockets:
    """The socket of each session, by the actor's name for the service."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], sessions: Mapping[str, Session], key: ClientKey | None
    ) -> None:
        self.context = context
        self.sessions = sessions
        """The actor's own, which come and go."""
        self.key = key
        self.transports: dict[str, ServiceTransport] = {}
        self.readable: dict[str, None] = {}
        """Services that may have something, in the order in which it came: a turn looks at no others."""
        self.touched: set[str] = set()
        """Services that were read from or sent to in this turn, which may have used up the edge of their
        descriptors."""
        self.add_reader: Watch = lambda descriptor, call: None
        self.remove_reader: Callable[[int], object] = lambda descriptor: None
        self.turn: Callable[[], None] = lambda: None

    def watch(
        self, add_reader: Watch, remove_reader: Callable[[int], object], turn: Callable[[], None]
    ) -> None:
        """Have a loop call ``turn`` when something has arrived. Before the first ``flush``."""
        self.add_reader, self.remove_reader, self.turn = add_reader, remove_reader, turn

    @property
    def has_more(self) -> bool:
        return bool(self.readable)

    def arrived(self, most: int) -> Iterator[ServiceFrame | ServiceInterrupted]:
        """The frames that have come, of each service at most ``most``."""
        names, self.readable = self.readable, {}
        for name in names:
            transport = self.transports.get(name)
            if transport is not None:
                yield from self.arrived_from(name, transport, most)

    def arrived_from(
        self, name: str, transport: ServiceTransport, most: int
    ) -> Iterator[ServiceFrame | ServiceInterrupted]:
        self.touched.add(name)
        for _ in range(most):
            if transport.socket is None or not self.is_current(name, transport):
                return  # what an older connection still brings is of no session
            try:
                frame = transport.socket.recv(zmq.DONTWAIT)
            except zmq.Again:
                break
            yield ServiceFrame(name, frame)
        else:
            self.readable[name] = None
            return
        if self.is_current(name, transport) and transport.is_broken():
            yield ServiceInterrupted(name)

    def is_current(self, name: str, transport: ServiceTransport) -> bool:
        """Whether it is the connection that its session speaks of."""
        session = self.sessions.get(name)
        return session is not None and session.connection == transport.connection

    def flush(self) -> None:
        """Send what the sessions have to say, each on the connection that it speaks of."""
        for name, session in self.sessions.items():
            transport = self.transports.get(name)
            if transport is None:
                transport = self.transports[name] = ServiceTransport(session.endpoint, self, name)
            if session.outbox or session.connection != transport.connection or session.state == "lost":
                self.touched.add(name)
                transport.flush(session)
        for name in self.transports.keys() - self.sessions.keys():
            self.transports.pop(name).disconnect()

    def look_again(self) -> bool:
        """Whether something has arrived of which the descriptor does not tell any more."""
        touched, self.touched = self.touched, set()
        for name in touched:
            transport = self.transports.get(name)
            if transport is None:
                continue
            if transport.socket is not None and int(transport.socket.get(zmq.EVENTS)) & zmq.POLLIN:
                self.readable[name] = None
        return self.has_more

    def close(self) -> None:
        for transport in self.transports.values():
            transport.disconnect()


class ServiceTransport(Transport):
    """The transport of one session, in the host's context and watched by its loop."""

    def __init__(self, endpoint: str, sockets: ServiceSockets, name: str) -> None:
        super().__init__(endpoint, sockets.key)
        self.context = sockets.context
        self.sockets = sockets
        self.name = name

    def connect(self) -> None:
        super().connect()
        for watched in (self.socket, self.monitor):
            if watched is not None:
                self.sockets.add_reader(watched.fileno(), self.arrived)

    def arrived(self) -> None:
        self.sockets.readable[self.name] = None
        self.sockets.turn()

    def disconnect(self) -> None:
        for watched in (self.socket, self.monitor):
            if watched is not None:
                self.sockets.remove_reader(watched.fileno())
        super().disconnect()
