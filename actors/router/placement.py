"""Places open requests: on a service, into the queue of those that wait, or at an end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from ...protocol.errors import InvalidRequest, Overloaded, SlipstreamError
from .choice import choose
from .open_requests import OpenRequests, Routed
from .replica import SILENT_S, Replica
from .timers import ReplicaTimers

MAX_LOSSES = 3
"""A request that was open at this many services that went, one after the other, while nothing of it came from any, may
be what they died of."""

WAIT_S = 30.0
"""Time that a request waits while no service can take it: longer than the restart of all actors of one, and short of
most clients' timeouts (60 s)."""

RETRY_S = 0.05
"""Pause between two tries to find one: no delay that a person notices, and no busy loop."""

MAX_KNOWN, MAX_KNOWN_OF_ONE = 1 << 21, 1 << 17
"""Hashes that are remembered, of all services together and of one: each takes 120 to 200 bytes (``tracemalloc``)."""


class Placement:
    """Sends requests to services, and on from those that are gone."""

    def __init__(
        self,
        open: OpenRequests,
        replicas: dict[str, Replica],
        counters: Counter[str],
        *,
        fail: Callable[[Routed, SlipstreamError], None],
        end_aborted: Callable[[Routed, float], None],
        timers: ReplicaTimers,
    ) -> None:
        """``fail`` and ``end_aborted`` end a request that no service ends."""
        self.open = open
        self.replicas = replicas
        self.counters = counters
        self.fail = fail
        self.end_aborted = end_aborted
        self.timers = timers
        self.candidates: list[Replica] = []
        """Services that take requests: those that answer, or, where none does, the others."""
        self.candidate_set: frozenset[Replica] = frozenset()
        self.candidates_until = float("-inf")
        """Until when they are those, if nothing happens to a service (``on_change``)."""

    def on_change(self) -> None:
        """Another service takes requests, or one takes none any more."""
        self.candidates_until = float("-inf")

    def find_candidates(self, now: float) -> list[Replica]:
        """The candidates that are remembered or, if their time is over, those of now."""
        if now < self.candidates_until:
            return self.candidates
        taking: list[Replica] = []
        answering: list[Replica] = []
        until = now + SILENT_S  # what is asked from now on is not silent before
        for replica in self.replicas.values():
            if replica.takes(now):
                taking.append(replica)
                if replica.is_answering(now):
                    answering.append(replica)
                    if replica.question is not None:
                        until = min(until, replica.polled_at + SILENT_S)
            elif replica.full_until > now:
                until = min(until, replica.full_until)
        # One that has not answered of late is not asked, unless there is no other.
        self.candidates, self.candidates_until = answering or taking, until
        self.candidate_set = frozenset(self.candidates)
        return self.candidates

    def place(self, request: Routed, now: float) -> None:
        """Send it to the service that is best for it, or let it wait for one."""
        stream = request.stream
        if stream.aborted:
            self.end_aborted(request, now)
            return
        free = self.find_candidates(now)
        if request.refused_by:
            free = [replica for replica in free if replica.endpoint not in request.refused_by]
        if not free:
            self.wait(request, now)
            return
        replica = choose(free, request.hashes, free if request.refused_by else self.candidate_set)
        try:
            replica.session.adopt(stream, now)
        except InvalidRequest as error:
            self.fail(request, error)
            return
        request.go_to(replica)
        replica.prefixes.note(request.hashes, min(MAX_KNOWN // len(self.replicas), MAX_KNOWN_OF_ONE))
        self.open.waiting.pop(request, None)
        self.timers.set(replica)

    def wait(self, request: Routed, now: float) -> None:
        """No service can take it now. One that no service has taken yet is refused if all of them are full."""
        request.refused_by.clear()
        until = [one.full_until for one in self.replicas.values() if one.ready and one.full_until > now]
        if until and not request.accepted:
            text = f"all {len(until)} services behind this router are full: try again later"
            self.fail(request, Overloaded(text, min(until) - now))
            return
        if request.waits_until is None:
            request.waits_until = now + WAIT_S
        elif now >= request.waits_until:
            self.fail(request, SlipstreamError(self.nobody(), code="unavailable"))
            return
        self.open.waiting[request] = None
        self.timers.check_by(now + RETRY_S)

    def nobody(self) -> str:
        """Why no service takes a request."""
        said = [f"{one.endpoint} ({one.last_error or one.state})" for one in self.replicas.values()]
        those = "; ".join(said) or "there is none"
        return f"no service behind this router takes requests, for {WAIT_S:g} s now: {those}"

    def place_waiting(self, now: float) -> None:
        for request in list(self.open.waiting):
            self.place(request, now)

    def move(self, request: Routed, now: float, *, lost: bool) -> None:
        """Another service continues it. ``lost``: the one at which it was open is gone, perhaps because of it."""
        request.accepted = True
        request.losses += lost
        if request.losses >= MAX_LOSSES:
            text = (
                f"{request.losses} services went, one after the other, while this request was open there and nothing"
                " of it came: it is not tried again"
            )
            self.fail(request, SlipstreamError(text, code="quarantined"))
            return
        self.counters["router_requests_moved"] += 1
        self.place(request, now)

    def move_all(self, replica: Replica, now: float) -> None:
        """The service is gone, for all that can be known: what is open there goes on elsewhere."""
        requests: list[Routed] = [stream.waiter for stream in replica.session.release()]
        replica.on_lost()
        for request in requests:
            request.replica, request.uncomputed = None, 0
            self.move(request, now, lost=True)

    def close(self, request: Routed) -> None:
        """It is over: nothing more of it goes to its client."""
        if request.replica is not None:
            request.replica.session.leave(request.stream)  # if it goes on there
        request.leave()
        self.open.forget(request)
