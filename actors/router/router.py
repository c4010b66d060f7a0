"""The router's actor: takes in requests as a gateway does, and has each answered by one of several services.

What it holds of a request is the stream of a client's session: what was asked, with a seed, and what has come. So a
request whose service goes is sent on to another, which continues it where it was: behind the tokens that have come, by
the same seed, and until the same deadline.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from ...protocol.client.pending import Pending, Stream
from ...protocol.client.request import answer_count
from ...protocol.client.session import Session
from ...protocol.errors import DEFAULT_RETRY_AFTER_S, SlipstreamError
from ...protocol.events import Ending, ServiceFrame, ServiceInterrupted, WatchedFile
from ...protocol.limits import Limits
from ...protocol.messages import (
    NO_FORMATS,
    Abort,
    Actors,
    Adapters,
    Delta,
    Error,
    Formats,
    Generate,
    GetAdapters,
    GetStats,
    LoadAdapter,
    Stats,
    UnloadAdapter,
)
from ...runtime.actor import HostAddress
from ..options import RouterOptions
from ..public.actor import PublicActor
from ..public.connections import PROBE_S, Connection
from ..public.keys import public_keys
from .admission import Admission
from .open_requests import OpenRequests, Routed
from .placement import Placement
from .prefixes import size_and_bytes
from .replica import MOVE_AFTER_S, SILENT_S, Replica
from .services import Services
from .services_file import endpoints_in
from .timers import ReplicaTimers
from .totals import totals

if TYPE_CHECKING:
    from ...runtime.process.child import StartContext

LEAST_BETWEEN_CHECKS_S = 0.02
"""Between two checks: of a thousand services, the timer of one fires every millisecond."""

AWAY_S = 0.5
"""A check that is later than this was held up by the machine, or by one long turn: what services have said since is not
read yet, so that their silence is the router's own."""

LATE_S = 0.5
"""How much later than the service the router ends a request by its deadline, so that the service's own word, with what
it has computed, comes first: several round trips."""


class Router(PublicActor):
    """A gateway to its clients, and a client to each of its services."""

    name = "router"

    def __init__(
        self,
        endpoint: str,
        model: str,
        bounds: Limits,
        services: Iterable[str],
        *,
        server: str,
        rng: random.Random,
        formats: Formats = NO_FORMATS,
    ) -> None:
        """``services``: the endpoints behind. Each serves ``model`` with ``bounds``, or is not used."""
        super().__init__(endpoint, model, bounds, server=server, formats=formats)
        self.services = Services(model, bounds)
        self.open = OpenRequests()
        self.counters: Counter[str] = Counter(router_requests=0, router_requests_moved=0)
        self.admission = Admission(self.open, rng)
        self.placement = Placement(
            self.open,
            self.services.replicas,
            self.counters,
            fail=self.fail,
            end_aborted=self.end_aborted,
            check_by=self.check_by,
            set_timer=self.set_timer,
        )
        self.timers = ReplicaTimers()
        self.handlers |= {
            ServiceFrame: self.on_service_frame,
            ServiceInterrupted: self.on_service_interrupted,
            WatchedFile: self.on_services_file,
            Ending: self.on_ending,
        }
        self.check_at = 0.0
        """When the next timer of a service fires, or a request tries again to find a service."""
        self.checked_at = float("-inf")
        self.set_services(services)

    @property
    def idle(self) -> bool:
        return not self.open.by_number and super().idle

    @property
    def sessions(self) -> dict[str, Session]:
        return self.services.sessions

    # --- which services ---------------------------------------------------------------------------

    def set_services(self, endpoints: Iterable[str]) -> None:
        """From now on these are behind the router. One that is not among them any more finishes what it has."""
        wanted = dict.fromkeys(endpoints)
        self.services.set(wanted, self.now)
        for replica in self.services.replicas.values():
            self.set_timer(replica)
        self.placement.on_change()
        most = self.services.bounds.max_queued_requests * max(1, len(wanted))
        self.bounds = msgspec.structs.replace(self.services.bounds, max_queued_requests=most)
        self.check_by(self.now)

    def on_services_file(self, file: WatchedFile, now: float) -> None:
        """The file that names the services has changed."""
        self.set_services(endpoints_in(file.text, lambda text: self.send(HostAddress.LOG, text)))

    # --- requests ---------------------------------------------------------------------------------

    def on_generate(self, connection: Connection, message: Generate, now: float) -> None:
        size, beginning = size_and_bytes(message)
        answers = answer_count(message.params)
        error = self.admission.refusal(
            connection, message, size, answers, self.bounds, draining=self.refuses(message)
        )
        if error is not None:
            self.counters["router_requests_refused"] += 1
            self.send_to(connection, error)
            return
        request = self.admission.take(connection, message, size, beginning, answers, now)
        self.counters["router_requests"] += 1
        self.open.add(request)
        deadline_s = message.params.deadline_s
        if deadline_s is not None:
            due = now + deadline_s - message.age_s + LATE_S
            self.open.deadlines.add(request.number, due)
            self.wake_by(due)
        self.connections.probe_by(now + PROBE_S)
        self.placement.place(request, now)

    def fail(self, request: Routed, error: SlipstreamError) -> None:
        """It ends with an error, as it would at a service."""
        self.placement.close(request)
        retry_after_s = getattr(error, "retry_after_s", None)
        self.send_to(
            request.connection,
            Error(
                code=error.code,
                message=str(error),
                id=request.id,
                retry_after_s=retry_after_s,
                param=error.param,
            ),
        )

    def on_abort(self, connection: Connection, abort: Abort, now: float) -> None:
        request = self.open.find(connection, abort.id)
        if request is None:
            return
        if request.replica is not None and request.replica.ready:
            request.replica.session.abort(request.stream.request.id)  # its end says what it took
        else:
            self.end_aborted(request, now)

    def end_aborted(self, request: Routed, now: float) -> None:
        """Its service is not there to end it."""
        items = [
            Delta(id=request.id, index=index, finish_reason="abort")
            for index in sorted(request.stream.unfinished)
        ]
        self.placement.close(request)
        self.connections.send_deltas(request.connection, items, now)

    def on_connection_lost(self, connection: Connection) -> None:
        for request in self.open.of(connection):
            self.placement.close(request)

    # --- services ---------------------------------------------------------------------------------

    def on_service_frame(self, message: ServiceFrame, now: float) -> None:
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

    def on_service_interrupted(self, message: ServiceInterrupted, now: float) -> None:
        replica = self.services.replicas.get(message.service)
        if replica is None:
            return
        was_ready = replica.ready
        touched = replica.session.interrupted(now)
        if was_ready and not replica.ready:
            replica.move_at = now + MOVE_AFTER_S
        self.take_in(replica, touched, was_ready, now)

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
        if replica.prefixes.count != replica.cache_counts:
            self.log_cache(replica)
        for request in failed:
            if request.number in self.open.by_number:  # its connection was not cut off just now
                self.on_failed(replica, request, now)
        if replica.ready and not was_ready:
            self.on_ready(replica, now)
        elif was_ready and not replica.ready:
            self.on_not_ready(replica, now)
        self.set_timer(replica)

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
        self.send(HostAddress.LOG, f"the service at {replica.endpoint} is there")
        self.placement.place_waiting(now)

    def on_not_ready(self, replica: Replica, now: float) -> None:
        """Its connection is gone. One that was silent has been waited for already."""
        if replica.session.state == "lost" or replica.move_at is None:
            replica.move_at = now

    def log_cache(self, replica: Replica) -> None:
        """Say that what was sent to a service counts no more, or again."""
        replica.cache_counts = replica.prefixes.count
        what = (
            "finds what it was sent before in its cache again: that counts"
            if replica.cache_counts
            else "says that it finds little of what it was sent before in its cache, or more than there is: it is"
            " chosen by its load alone until it does; look at its --enable-prefix-caching and the size of its cache"
        )
        self.send(HostAddress.LOG, f"the service at {replica.endpoint} {what}")

    def log_error(self, replica: Replica, why: str) -> None:
        """In the log, once for each reason."""
        if why != replica.last_error:
            replica.last_error = why
            self.send(HostAddress.LOG, why)

    # --- time -------------------------------------------------------------------------------------

    def set_timer(self, replica: Replica) -> None:
        """Check on a service when that is due for it, or before."""
        self.timers.set(replica)
        if self.timers.next < self.check_at:
            self.check_by(self.timers.next)

    def check_by(self, when: float) -> None:
        """Check the services that are due, and the requests that wait for one, at this time or before."""
        self.check_at = min(self.check_at, max(when, self.checked_at + LEAST_BETWEEN_CHECKS_S))
        self.wake_by(self.check_at)

    def check_replicas(self, now: float) -> None:
        self.check_at, self.checked_at = float("inf"), now
        for replica in self.timers.take(now):
            was_ready = replica.ready
            self.take_in(replica, replica.session.tick(now), was_ready, now)
            if replica.move_at is not None and now >= replica.move_at:
                self.send(
                    HostAddress.LOG, f"the service at {replica.endpoint} is gone; its streams go on elsewhere"
                )
                self.placement.move_all(replica, now)
            replica.poll(now)
            self.set_timer(replica)
        self.check_by(self.timers.next)
        self.services.forget_those_that_left()
        self.placement.place_waiting(now)

    def on_wake(self, now: float) -> None:
        if now >= self.check_at + AWAY_S:
            for replica in self.services.replicas.values():
                replica.session.reset_timers(now)
        if now >= self.check_at:
            self.check_replicas(now)
        self.wake_by(self.check_at)
        self.end_overdue(now)
        if self.open.deadlines.next is not None:
            self.wake_by(self.open.deadlines.next)
        super().on_wake(now)

    def end_overdue(self, now: float) -> None:
        """End what its service has not ended in time, because it is silent or because none can take it."""
        for number in self.open.deadlines.overdue(now):
            request = self.open.by_number[number]
            stated = request.stream.request.params.deadline_s
            text = f"not finished within deadline_s={stated}"
            self.fail(request, SlipstreamError(text, code="deadline_exceeded"))

    def on_ending(self, ending: Ending, now: float) -> None:
        """Last words: whatever is open ends with an error."""
        for request in list(self.open.by_number.values()):
            self.fail(request, SlipstreamError(ending.reason, code="unavailable"))
        self.connections.on_wake(now)

    # --- looking inside ---------------------------------------------------------------------------

    def on_adapters(
        self, connection: Connection, message: GetAdapters | LoadAdapter | UnloadAdapter, now: float
    ) -> None:
        """Each service has its own, and answers the requests that name one; none is listed here."""
        change = not isinstance(message, GetAdapters)
        text = "adapters are changed at each of the services, not at their router" if change else ""
        code = "invalid_request" if change else ""
        self.send_to(connection, Adapters(adapters=[], code=code, error=text))

    def on_get_stats(self, connection: Connection, message: GetStats, now: float) -> None:
        """The sums of what the services have last said, and the router's own."""
        replicas = self.services.replicas.values()
        own = {name: float(value) for name, value in self.counters.items()} | {
            "router_requests_open": float(len(self.open.by_number)),
            "router_requests_waiting": float(len(self.open.waiting)),
            "router_services": float(len(replicas)),
            "router_services_ready": float(sum(replica.ready for replica in replicas)),
        }
        self.send_to(connection, Stats(counters=totals(replicas) | self.host_counters | own))

    def on_actors(self, actors: Actors, now: float) -> None:
        """The supervisor's answer, with the services as if they were actors."""
        services = [replica.as_actor(now) for replica in self.services.replicas.values()]
        ready = actors.ready and any(replica.ready for replica in self.services.replicas.values())
        super().on_actors(
            msgspec.structs.replace(actors, actors=[*actors.actors, *services], ready=ready), now
        )


def build(context: StartContext) -> Router:
    """The router, from its options."""
    options = context.options_as(RouterOptions)
    rng = random.Random(options.seed) if options.seed is not None else random.SystemRandom()
    router = Router(
        options.endpoint,
        options.model_name,
        options.limits,
        options.services,
        server=options.server,
        rng=rng,
        formats=options.formats,
    )
    router.public_keys = public_keys(options.curve_keys, options.curve_also)
    router.service_key = options.service_key
    router.watched_file = options.services_file
    return router
