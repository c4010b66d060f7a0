"""The connections of an actor that is itself a client of services: one socket for each of its sessions.

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


class Services:
    """The sockets of all sessions, by name."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], sessions: Mapping[str, Session], key: ClientKey | None
    ) -> None:
        self.context = context
        self.sessions = sessions
        """The actor's own, which come and go."""
        self.key = key
        self.connections: dict[str, Connection] = {}
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
            connection = self.connections.get(name)
            if connection is not None:
                yield from self.arrived_from(name, connection, most)

    def arrived_from(
        self, name: str, connection: Connection, most: int
    ) -> Iterator[ServiceFrame | ServiceInterrupted]:
        self.touched.add(name)
        for _ in range(most):
            if connection.socket is None or not self.is_current(name, connection):
                return  # what an older connection still brings is of no session
            try:
                frame = connection.socket.recv(zmq.DONTWAIT)
            except zmq.Again:
                break
            yield ServiceFrame(name, frame)
        else:
            self.readable[name] = None
            return
        if self.is_current(name, connection) and connection.is_broken():
            yield ServiceInterrupted(name)

    def is_current(self, name: str, connection: Connection) -> bool:
        """Whether it is the connection that its session speaks of."""
        session = self.sessions.get(name)
        return session is not None and session.connection == connection.connection

    def flush(self) -> None:
        """Send what the sessions have to say, each on the connection that it speaks of."""
        for name, session in self.sessions.items():
            connection = self.connections.get(name)
            if connection is None:
                connection = self.connections[name] = Connection(session.endpoint, self, name)
            if session.outbox or session.connection != connection.connection or session.state == "lost":
                self.touched.add(name)
                connection.flush(session)
        for name in self.connections.keys() - self.sessions.keys():
            self.connections.pop(name).disconnect()

    def look_again(self) -> bool:
        """Whether something has arrived of which the descriptor does not tell any more."""
        touched, self.touched = self.touched, set()
        for name in touched:
            connection = self.connections.get(name)
            if connection is None:
                continue
            if connection.socket is not None and int(connection.socket.get(zmq.EVENTS)) & zmq.POLLIN:
                self.readable[name] = None
        return self.has_more

    def close(self) -> None:
        for connection in self.connections.values():
            connection.disconnect()


class Connection(Transport):
    """The transport of one session, in the host's context and watched by its loop."""

    def __init__(self, endpoint: str, services: Services, name: str) -> None:
        super().__init__(endpoint, services.key)
        self.context = services.context
        self.services = services
        self.name = name

    def connect(self) -> None:
        super().connect()
        for watched in (self.socket, self.monitor):
            if watched is not None:
                self.services.add_reader(watched.fileno(), self.arrived)

    def arrived(self) -> None:
        self.services.readable[self.name] = None
        self.services.turn()

    def disconnect(self) -> None:
        for watched in (self.socket, self.monitor):
            if watched is not None:
                self.services.remove_reader(watched.fileno())
        super().disconnect()
