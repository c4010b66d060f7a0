"""Takes in what comes from the services behind a router: tokens, errors, and news of services that come and go."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from ...protocol.client.pending import Pending, Stream
from ...protocol.errors import DEFAULT_RETRY_AFTER_S, SlipstreamError
from ...protocol.events import ServiceFrame, ServiceInterrupted
from ...protocol.messages import Delta
from ..public.connections import Connection, Connections
from .open_requests import Routed
from .placement import Placement
from .replica import MOVE_AFTER_S, SILENT_S, Replica
from .services import Services
from .timers import ReplicaTimers


class ServiceEvents:
    """Takes in what the sessions of the services say, and has those checked that are due."""

    def __init__(
        self,
        services: Services,
        placement: Placement,
        timers: ReplicaTimers,
        connections: Connections,
        *,
        fail: Callable[[Routed, SlipstreamError], None],
        log: Callable[[str], None],
    ) -> None:
        """``fail`` ends a request with an error; ``log`` writes a line for the operator."""
        self.services = services
        self.placement = placement
        self.timers = timers
        self.connections = connections
        self.fail = fail
        self.log = log

    def on_frame(self, message: ServiceFrame, now: float) -> None:
        replica = self.services.replicas.get(message.service)
        if replica is None:
            return
        was_ready = replica.ready
        touched = replica.session.receive(message.frame, now)
        if replica.question is not None:
            if now >= replica.polled_at + SILENT_S:
                self.placement.on_change()  # it may have spoken again
            replica.take_counters()
        self.take_in(replica, touched, was_ready, now)
        self.timers.set(replica)

    def on_interrupted(self, message: ServiceInterrupted, now: float) -> None:
        replica = self.services.replicas.get(message.service)
        if replica is None:
            return
        was_ready = replica.ready
        touched = replica.session.interrupted(now)
        if was_ready and not replica.ready:
            replica.move_at = now + MOVE_AFTER_S
        self.take_in(replica, touched, was_ready, now)
        self.timers.set(replica)

    def take_in(self, replica: Replica, touched: list[Pending], was_ready: bool, now: float) -> None:
        """Hand on what came, and deal with what the session of a service has become."""
        if replica.ready != was_ready:
            self.placement.on_change()
        deltas: defaultdict[Connection, list[Delta]] = defaultdict(list)
        failed: list[Routed] = []
        for pending in touched:
            if isinstance(pending, Stream):
                request: Routed = pending.waiter
                if pending.deltas:
                    request.hand_on(deltas[request.connection])
                    if not pending.unfinished:
                        self.placement.close(request)
                if pending.error is not None:
                    failed.append(request)
            elif pending.error is not None:
                self.log_error(replica, str(pending.error))
        for connection, items in deltas.items():
            self.connections.send_deltas(connection, items, now)
        if replica.prefixes.reliable != replica.logged_as_reliable:
            self.log_cache(replica)
        for request in failed:
            if request.number in self.placement.open.by_number:  # its connection was not cut off just now
                self.on_failed(replica, request, now)
        if replica.ready and not was_ready:
            self.on_ready(replica, now)
        elif was_ready and not replica.ready:
            self.on_not_ready(replica, now)

    def on_failed(self, replica: Replica, request: Routed, now: float) -> None:
        """A service ended a request with an error: the request's own, or one that only says that it has to go on."""
        stream = request.stream
        error, stream.error = stream.error, None
        assert error is not None
        request.leave()
        self.placement.on_change()
        if replica.session.state == "lost":
            self.placement.move(request, now, lost=True)
        elif error.code == "overloaded":
            replica.full_until = now + getattr(error, "retry_after_s", DEFAULT_RETRY_AFTER_S)
            request.refused_by.add(replica.endpoint)
            self.placement.place(request, now)
        elif error.code == "unavailable":
            # What was open there when it stopped taking anything new is ended for its sake, or for the request's own.
            ended, replica.draining = replica.draining, True
            self.log_error(replica, f"the service at {replica.endpoint} takes nothing new: {error}")
            self.placement.move(request, now, lost=ended)
        else:
            self.fail(request, error)

    def on_ready(self, replica: Replica, now: float) -> None:
        """A service is there, or there again: what waits may go there."""
        replica.on_ready()
        self.placement.on_change()
        self.log(f"the service at {replica.endpoint} is there")
        self.placement.place_waiting(now)

    def on_not_ready(self, replica: Replica, now: float) -> None:
        """Its connection is gone. One that was silent has been waited for already."""
        if replica.session.state == "lost" or replica.move_at is None:
            replica.move_at = now

    def log_cache(self, replica: Replica) -> None:
        """Say that what was sent to a service counts no more, or again."""
        replica.logged_as_reliable = replica.prefixes.reliable
        what = (
            "finds what it was sent before in its cache again: that counts"
            if replica.logged_as_reliable
            else "says that it finds little of what it was sent before in its cache, or more than there is: it is"
            " chosen by its load alone until it does; look at its --enable-prefix-caching and the size of its cache"
        )
        self.log(f"the service at {replica.endpoint} {what}")

    def log_error(self, replica: Replica, why: str) -> None:
        """In the log, once for each reason."""
        if why != replica.last_error:
            replica.last_error = why
            self.log(why)

    def check_replicas(self, now: float) -> None:
        """Check on those that are due, and let the requests that wait for one try again."""
        for replica in self.timers.take(now):
            was_ready = replica.ready
            self.take_in(replica, replica.session.tick(now), was_ready, now)
            if replica.move_at is not None and now >= replica.move_at:
                self.log(f"the service at {replica.endpoint} is gone; its streams go on elsewhere")
                self.placement.move_all(replica, now)
            replica.poll(now)
            self.timers.set(replica)
        self.timers.check_by(self.timers.next)
        self.services.forget_those_that_left()
        self.placement.place_waiting(now)
