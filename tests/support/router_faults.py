"""Faults to plant in the router and in what it uses of the client's session, each an edit of one line."""

from __future__ import annotations

from fleet import (
    all_services_die,
    clients_are_cut_off,
    everything_fails,
    routers_die,
    services_are_silent,
    services_die,
    services_drain,
)
from recovery_faults import Fault

EVENTS = "actors.router.service_events:ServiceEvents"
ROUTER = "actors.router.router:Router"
ADMISSION = "actors.router.admission:Admission"
PLACEMENT = "actors.router.placement:Placement"
ROUTED = "actors.router.open_requests:Routed"
OPEN = "actors.router.open_requests:OpenRequests"
REPLICA = "actors.router.replica:Replica"
SESSION = "protocol.client.session:Session"
STREAM = "protocol.client.pending:Stream"
CONNECTIONS = "actors.public.connections:Connections"

FAULTS = [
    # --- requests ---------------------------------------------------------------------------------------
    Fault(
        "what-the-client-has-is-ignored",
        f"{ADMISSION}.take",
        "stream.received[index] += received",
        fails=routers_die,
    ),
    Fault(
        "a-request-gets-another-seed",
        f"{ADMISSION}.take",
        "if params.seed is None:",
        "if True:",
        fails=services_die,
    ),
    Fault(
        "what-waited-stays-in-line",
        f"{PLACEMENT}.place",
        "self.open.waiting.pop(request, None)",
        fails=all_services_die,
    ),
    Fault(
        "open-answers-are-not-counted",
        f"{ROUTED}.go_to",
        "replica.carry(self.answers, self.uncomputed)",
        fails=services_die,
    ),
    Fault(
        "what-has-to-wait-is-forgotten",
        f"{PLACEMENT}.wait",
        "self.open.waiting[request] = None",
        fails=all_services_die,
    ),
    Fault(
        "answers-that-are-over-stay-counted",
        f"{ROUTED}.leave",
        "self.replica.carry(-self.answers, -self.uncomputed)",
        fails=services_die,
    ),
    Fault(
        "a-client-that-left-is-answered-on",
        f"{PLACEMENT}.close",
        "request.replica.session.leave(request.stream)",
        fails=services_die,
    ),
    Fault(
        "requests-of-a-lost-connection-go-on",
        f"{ROUTER}.on_connection_lost",
        "self.placement.close(request)",
        fails=clients_are_cut_off,
    ),
    Fault(
        "bytes-stay-counted",
        f"{OPEN}.forget",
        "self.bytes -= request.size",
        fails=services_die,
    ),
    Fault(
        "ids-stay-in-use",
        f"{OPEN}.forget",
        "del self.by_id[request.connection.number, request.id]",
        fails=services_die,
    ),
    # --- what services say ------------------------------------------------------------------------------
    Fault(
        "deltas-have-the-routers-id",
        f"{ROUTED}.hand_on",
        "delta.id = self.id",
        fails=services_die,
    ),
    Fault(
        "the-logprobs-of-a-prompt-are-told-twice",
        f"{ROUTED}.hand_on",
        "self.sent_prompt_logprobs = True",
        fails=services_die,
    ),
    Fault(
        "a-finished-request-stays",
        f"{PLACEMENT}.close",
        "self.open.forget(request)",
        fails=services_die,
    ),
    Fault(
        "deltas-are-dropped",
        f"{EVENTS}.take_in",
        "self.connections.send_deltas(connection, items, now)",
        fails=services_die,
    ),
    Fault(
        "an-error-is-dropped",
        f"{EVENTS}.take_in",
        "failed.append(request)",
        fails=services_drain,
    ),
    Fault(
        "an-error-stays-with-the-stream",
        f"{EVENTS}.on_failed",
        "error, stream.error = stream.error, None",
        "error = stream.error",
        fails=services_drain,
    ),
    Fault(
        "the-end-of-a-service-fails-its-requests",
        f"{EVENTS}.on_failed",
        'elif error.code == "unavailable":',
        "elif False:",
        fails=services_drain,
    ),
    # --- services that go -------------------------------------------------------------------------------
    Fault(
        "what-has-to-move-stays",
        f"{PLACEMENT}.move",
        "self.place(request, now)",
        fails=services_die,
    ),
    Fault(
        "a-stream-is-in-two-places",
        f"{SESSION}.release",
        "self.streams.clear()",
        fails=services_die,
    ),
    Fault(
        "what-moves-is-not-taken-in",
        f"{SESSION}.adopt",
        "self.streams[stream.request.id] = stream",
        fails=services_die,
    ),
    Fault(
        "what-moves-begins-anew",
        f"{SESSION}.adopt",
        "encode(stream.resumed(now))",
        "encode(stream.request)",
        fails=services_die,
    ),
    Fault(
        "only-the-first-answer-goes-on",
        f"{STREAM}.resumed",
        "request.received_of_others = [self.received.get(i, []) for i in range(1, max(self.received) + 1)]",
        fails=services_die,
    ),
    Fault(
        "a-lost-service-counts-on",
        f"{PLACEMENT}.move_all",
        "replica.on_lost()",
        fails=services_die,
    ),
    Fault(
        "what-waits-is-not-tried-again",
        f"{PLACEMENT}.place_waiting",
        "self.place(request, now)",
        fails=all_services_die,
    ),
    Fault(
        "a-deadline-waits-for-the-service",
        f"{ROUTER}.end_overdue",
        'self.fail(request, SlipstreamError(text, code="deadline_exceeded"))',
        fails=services_are_silent,
    ),
    Fault(
        "a-service-that-is-back-counts-as-gone",
        f"{REPLICA}.takes",
        'self.session.state == "ready"',
        'self.session.state != "ready"',
        fails=everything_fails,
    ),
]
