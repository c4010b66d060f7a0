"""The base of the actors that clients speak to: connections, and the answers to all questions but requests."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

from ...protocol.events import ClientBlocked, ClientGone, ClientMessage, Drain, HostCounters
from ...protocol.internal import Spans
from ...protocol.limits import PROTOCOL, Limits
from ...protocol.messages import (
    NO_FORMATS,
    Abort,
    Actors,
    CacheReset,
    Error,
    Formats,
    Generate,
    GetActors,
    GetAdapters,
    GetStats,
    GetTrace,
    Hello,
    LoadAdapter,
    Ping,
    Pong,
    ResetCache,
    ToClient,
    UnloadAdapter,
    Welcome,
)
from ...runtime.actor import Actor, HostAddress
from .connections import Connection, Connections
from .traces import MAX_TRACE_QUESTIONS, TRACE_TIMEOUT_S, Traces

SUPERVISOR_S = 5.0
"""Time in which the supervisor has to report the states of the actors; then it counts as stopped."""


class PublicActor(Actor):
    """Holds the connections and answers what every client may ask; a subclass handles the requests."""

    def __init__(
        self, endpoint: str, model: str, bounds: Limits, *, server: str, formats: Formats = NO_FORMATS
    ) -> None:
        super().__init__()
        self.endpoint = endpoint
        self.model = model
        self.bounds = bounds
        self.server = server
        self.formats = formats
        self.connections = Connections(self.send, self.wake_by, self.on_connection_lost)
        self.draining = False
        self.returning_until = 0.0
        """Until this time a drain still accepts requests of an incarnation that has just died, and waits for them."""
        self.traces = Traces(self.send, self.wake_by, self.send_if_there)
        self.traces.peers.add(self.name)
        self.asking: deque[tuple[bytes, float]] = deque()
        """Clients that have asked for the states of the actors, each with the time until which it waits; the oldest
        first."""
        self.host_counters: dict[str, float] = dict.fromkeys(("dead_letters", "stale", "malformed"), 0.0)
        self.handlers |= {
            ClientMessage: self.on_client_message,
            ClientGone: self.on_client_gone,
            ClientBlocked: self.connections.on_blocked,
            Spans: self.traces.on_spans,
            Drain: self.on_drain,
            HostCounters: self.on_host_counters,
            Actors: self.on_actors,
        }
        self.public: dict[type, Callable[[Connection, Any, float], None]] = {
            Generate: self.on_generate,
            Abort: self.on_abort,
            Ping: self.on_ping,
            GetStats: self.on_get_stats,
            GetTrace: self.on_get_trace,
            GetActors: self.on_get_actors,
            ResetCache: self.on_reset_cache,
            **dict.fromkeys((GetAdapters, LoadAdapter, UnloadAdapter), self.on_adapters),
        }

    # --- what each does in its own way ------------------------------------------------------------

    def on_generate(self, connection: Connection, message: Generate, now: float) -> None:
        raise NotImplementedError

    def on_abort(self, connection: Connection, abort: Abort, now: float) -> None:
        raise NotImplementedError

    def on_get_stats(self, connection: Connection, message: GetStats, now: float) -> None:
        raise NotImplementedError

    def on_reset_cache(self, connection: Connection, message: ResetCache, now: float) -> None:
        self.send_to(connection, CacheReset(done=False))

    def on_adapters(
        self, connection: Connection, message: GetAdapters | LoadAdapter | UnloadAdapter, now: float
    ) -> None:
        raise NotImplementedError

    def on_connection_lost(self, connection: Connection) -> None:
        """End the requests of a client that is gone or was cut off."""
        raise NotImplementedError

    # --- clients ----------------------------------------------------------------------------------

    def on_client_message(self, arrived: ClientMessage, now: float) -> None:
        message = arrived.message
        if isinstance(message, Hello):
            self.on_hello(arrived.client, message, now)
            return
        connection = self.connections.known.get(arrived.client)
        if connection is None:
            id = message.id if isinstance(message, (Generate, Abort)) else None
            self.send(arrived.client, Error(code="protocol", message="say hello first", id=id))
            return
        self.public[type(message)](connection, message, now)

    def on_hello(self, address: bytes, hello: Hello, now: float) -> None:
        if not hello.protocol or hello.protocol[0] != PROTOCOL[0]:
            version = ".".join(map(str, hello.protocol)) or "none"
            message = (
                f"protocol {version} is not spoken here; this service speaks {PROTOCOL[0]}.{PROTOCOL[1]}"
            )
            self.send(address, Error(code="protocol", message=message))
            return
        welcome = Welcome(
            protocol=list(PROTOCOL),
            server=self.server,
            model=self.model,
            limits=self.bounds,
            formats=self.formats,
        )
        self.send_to(self.connections.greet(address, now), welcome)

    def on_client_gone(self, gone: ClientGone, now: float) -> None:
        connection = self.connections.known.get(gone.client)
        if connection is not None:
            self.connections.cut_off(connection)

    def send_to(self, connection: Connection, message: ToClient) -> None:
        self.connections.send_to(connection, message)

    def send_if_there(self, address: bytes, message: ToClient) -> None:
        """Send the answer to a client that has asked earlier, if it is still there."""
        connection = self.connections.known.get(address)
        if connection is not None:
            self.send_to(connection, message)

    def on_ping(self, connection: Connection, ping: Ping, now: float) -> None:
        self.send_to(connection, Pong(nonce=ping.nonce))

    # --- time -------------------------------------------------------------------------------------

    def wake_by(self, when: float) -> None:
        self.wake_at = when if self.wake_at is None else min(self.wake_at, when)

    def on_wake(self, now: float) -> None:
        self.connections.on_wake(now)
        self.traces.finish(now)
        if self.asking:
            self.answer_for_supervisor(now)
        if now < self.returning_until:
            self.wake_by(self.returning_until)

    def on_drain(self, drain: Drain, now: float) -> None:
        self.draining = True
        if drain.returning_s > 0:
            self.returning_until = now + drain.returning_s
            self.wake_by(self.returning_until)

    @property
    def idle(self) -> bool:
        return self.connections.idle and self.now >= self.returning_until

    def refuses(self, message: Generate) -> bool:
        """Whether the request is refused because of a drain: it is new, and not resent."""
        again = message.age_s > 0 or message.received or any(message.received_of_others)
        return self.draining and not (again and self.now < self.returning_until)

    # --- looking inside ---------------------------------------------------------------------------

    def on_host_counters(self, message: HostCounters, now: float) -> None:
        self.host_counters |= message.counters

    def on_get_actors(self, connection: Connection, message: GetActors, now: float) -> None:
        due = now + SUPERVISOR_S
        self.asking.append((connection.address, due))
        self.wake_by(due)
        self.send(HostAddress.SUPERVISOR, message)

    def answer_for_supervisor(self, now: float) -> None:
        """Answer clients that have waited long enough for the supervisor: a service whose supervisor is silent is not
        live."""
        while self.asking and self.asking[0][1] <= now:
            address, _ = self.asking.popleft()
            self.send_if_there(address, Actors(actors=[], live=False, ready=False, draining=self.draining))
        if self.asking:
            self.wake_by(self.asking[0][1])

    def on_actors(self, actors: Actors, now: float) -> None:
        """The supervisor's answer, for all clients that have asked until now."""
        asking, self.asking = self.asking, deque()
        for address, _ in asking:
            self.send_if_there(address, actors)

    def on_get_trace(self, connection: Connection, message: GetTrace, now: float) -> None:
        seconds = math.inf if message.seconds is None else message.seconds
        if not seconds > 0:
            text = f"seconds={seconds}; give more than 0"
            self.send_to(connection, Error(code="invalid_request", message=text, param="seconds"))
        elif not self.traces.ask(connection.address, seconds, now):
            text = f"{MAX_TRACE_QUESTIONS} traces of this client wait already; read one before asking for the next"
            self.send_to(connection, Error(code="overloaded", message=text, retry_after_s=TRACE_TIMEOUT_S))
