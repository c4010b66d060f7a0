"""The router's actor: takes in requests as a gateway does, and has each answered by one of several services.

For each request it holds the stream of a client's session: what was asked, with a seed, and the tokens that have come.
So a request whose service is gone is moved to another service, which continues the answer behind those tokens, with the
same seed and the same deadline.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from ...protocol.client.request import answer_count
from ...protocol.client.session import Session
from ...protocol.errors import SlipstreamError
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
from ..public.allowed_clients import allowed_clients
from ..public.connections import PROBE_S, Connection
from .admission import Admission
from .open_requests import OpenRequests, Routed
from .placement import Placement
from .prompt_blocks import size_and_bytes
from .service_events import ServiceEvents
from .services import Services
from .services_file import endpoints_in
from .timers import ReplicaTimers
from .totals import totals

if TYPE_CHECKING:
    from ...runtime.process.child import StartContext

AWAY_S = 0.5
"""A check that is later than this was delayed by the machine, or by a long turn. What services have sent meanwhile is
not read yet, so they must not count as silent."""

LATE_S = 0.5
"""How much later than the service the router ends a request at its deadline: several round trips, so that the service's
own answer, with what it has computed, comes first."""


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
        started_in: str = "/",
    ) -> None:
        """``services`` are the endpoints of the services. One that does not serve ``model`` with ``bounds`` is not
        used. In the file that names them, relative paths begin in ``started_in``."""
        super().__init__(endpoint, model, bounds, server=server, formats=formats)
        self.services = Services(model, bounds)
        self.started_in = started_in
        self.open = OpenRequests()
        self.counters: Counter[str] = Counter(router_requests=0, router_requests_moved=0)
        self.admission = Admission(self.open, rng)
        self.timers = ReplicaTimers(self.wake_by)
        self.placement = Placement(
            self.open,
            self.services.replicas,
            self.counters,
            fail=self.fail,
            end_aborted=self.end_aborted,
            timers=self.timers,
        )
        self.events = ServiceEvents(
            self.services,
            self.placement,
            self.timers,
            self.connections,
            fail=self.fail,
            log=lambda text: self.send(HostAddress.LOG, text),
        )
        self.handlers |= {
            ServiceFrame: self.events.on_frame,
            ServiceInterrupted: self.events.on_interrupted,
            WatchedFile: self.on_services_file,
            Ending: self.on_ending,
        }
        self.set_services(services)

    @property
    def idle(self) -> bool:
        return not self.open.by_number and super().idle

    @property
    def sessions(self) -> dict[str, Session]:
        return self.services.sessions

    # --- which services ---------------------------------------------------------------------------

    def set_services(self, endpoints: Iterable[str]) -> None:
        """Use these services from now on. A service that is no longer among them finishes its open requests."""
        wanted = dict.fromkeys(endpoints)
        self.services.set(wanted, self.now)
        for replica in self.services.replicas.values():
            self.timers.set(replica)
        self.placement.on_change()
        most = self.services.bounds.max_queued_requests * max(1, len(wanted))
        self.bounds = msgspec.structs.replace(self.services.bounds, max_queued_requests=most)
        self.timers.check_by(self.now)

    def on_services_file(self, file: WatchedFile, now: float) -> None:
        """The file that names the services has changed."""
        complain = partial(self.send, HostAddress.LOG)
        self.set_services(endpoints_in(file.text, self.started_in, self.endpoint, complain))

    # --- requests ---------------------------------------------------------------------------------

    def on_generate(self, connection: Connection, message: Generate, now: float) -> None:
        size, prefix = size_and_bytes(message)
        answers = answer_count(message.params)
        error = self.admission.refusal(
            connection, message, size, answers, self.bounds, draining=self.refuses(message)
        )
        if error is not None:
            self.counters["router_requests_refused"] += 1
            self.send_to(connection, error)
            return
        request = self.admission.take(connection, message, size, prefix, answers, now)
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
        """End a request with an error, as a service would."""
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
            # The service ends it, and says how many tokens it took.
            request.replica.session.abort(request.stream.request.id)
        else:
            self.end_aborted(request, now)

    def end_aborted(self, request: Routed, now: float) -> None:
        """End an aborted request whose service cannot end it."""
        items = [
            Delta(id=request.id, index=index, finish_reason="abort")
            for index in sorted(request.stream.unfinished)
        ]
        self.placement.close(request)
        self.connections.send_deltas(request.connection, items, now)

    def on_connection_lost(self, connection: Connection) -> None:
        for request in self.open.of(connection):
            self.placement.close(request)

    # --- time -------------------------------------------------------------------------------------

    def on_wake(self, now: float) -> None:
        if now >= self.timers.check_at + AWAY_S:
            for replica in self.services.replicas.values():
                replica.session.reset_timers(now)
        if now >= self.timers.check_at:
            self.events.check_replicas(now)
        self.wake_by(self.timers.check_at)
        self.end_overdue(now)
        if self.open.deadlines.next is not None:
            self.wake_by(self.open.deadlines.next)
        super().on_wake(now)

    def end_overdue(self, now: float) -> None:
        """End requests that no service has ended in time, because it is silent or none can take them."""
        for number in self.open.deadlines.overdue(now):
            request = self.open.by_number[number]
            stated = request.stream.request.params.deadline_s
            text = f"not finished within deadline_s={stated}"
            self.fail(request, SlipstreamError(text, code="deadline_exceeded"))

    def on_ending(self, ending: Ending, now: float) -> None:
        """End all open requests with an error before the process ends."""
        for request in list(self.open.by_number.values()):
            self.fail(request, SlipstreamError(ending.reason, code="unavailable"))
        self.connections.on_wake(now)

    # --- looking inside ---------------------------------------------------------------------------

    def on_adapters(
        self, connection: Connection, message: GetAdapters | LoadAdapter | UnloadAdapter, now: float
    ) -> None:
        """Each service has adapters of its own, and answers the requests that name one; the router lists none."""
        change = not isinstance(message, GetAdapters)
        text = "adapters are changed at each of the services, not at their router" if change else ""
        code = "invalid_request" if change else ""
        self.send_to(connection, Adapters(adapters=[], code=code, error=text))

    def on_get_stats(self, connection: Connection, message: GetStats, now: float) -> None:
        """Send the sums of the counters that the services have sent last, and the router's own counters."""
        replicas = self.services.replicas.values()
        own = {name: float(value) for name, value in self.counters.items()} | {
            "router_requests_open": float(len(self.open.by_number)),
            "router_requests_waiting": float(len(self.open.waiting)),
            "router_services": float(len(replicas)),
            "router_services_ready": float(sum(replica.ready for replica in replicas)),
        }
        self.send_to(connection, Stats(counters=totals(replicas) | self.host_counters | own))

    def on_actors(self, actors: Actors, now: float) -> None:
        """Add the services to the supervisor's answer, as if they were actors."""
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
        started_in=options.started_in,
    )
    router.allowed_clients = allowed_clients(options.curve_keys, options.curve_also)
    router.client_key = options.client_key
    router.watched_file = options.services_file
    return router
