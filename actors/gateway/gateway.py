"""The gateway's actor: takes in requests, delivers their answers, and answers questions about the service."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from ...protocol import limits
from ...protocol.digest import digest_of
from ...protocol.errors import DEFAULT_RETRY_AFTER_S, InvalidRequest, brief
from ...protocol.events import Ending, PeerDown, PeerUp
from ...protocol.internal import AdapterAnswer, Cancel, ForgetCache, Refused, Texts, Tokenized, first_number
from ...protocol.limits import Limits
from ...protocol.messages import (
    NO_FORMATS,
    Abort,
    Adapters,
    CacheReset,
    Delta,
    Error,
    Formats,
    Generate,
    GetAdapters,
    GetStats,
    LoadAdapter,
    LoadedAdapter,
    ResetCache,
    Stats,
    UnloadAdapter,
)
from ...runtime.actor import HostAddress
from ..options import GatewayOptions
from ..public.actor import PublicActor
from ..public.allowed_clients import allowed_clients
from ..public.connections import PROBE_S, Connection
from .admission import check
from .carried_counters import CarriedCounters
from .changes import CHANGES_AGAIN_S, Changes
from .delivery import by_request, take_in
from .ledger import Ledger, Request
from .metrics import Metrics
from .request_trace import request_trace
from .submissions import Submissions

if TYPE_CHECKING:
    from ...runtime.process.child import StartContext


FAULTS = frozenset({"internal", "quarantined"})
"""Codes of errors that are the service's own fault, which are logged for the operator."""

PATH = ("tokenizer", "scheduler", "detokenizer")
"""The actors that hold something of each open request. What the executor holds, the scheduler can send it again."""


class Gateway(PublicActor):
    """Owns the connections of clients and the ledger of requests."""

    name = "gateway"

    def __init__(
        self,
        endpoint: str,
        model: str,
        bounds: Limits,
        *,
        other_names: tuple[str, ...] = (),
        server: str,
        formats: Formats = NO_FORMATS,
        rng: random.Random,
        epoch: int = 0,
        restarted: bool = False,
        max_open_bytes: int = 1 << 28,
        default_deadline_s: float = 3600.0,
        dev_mode: bool = False,
        request_traces_endpoint: str | None = None,
        lora_updates: bool = False,
    ) -> None:
        super().__init__(endpoint, model, bounds, server=server, formats=formats)
        self.rng = rng
        self.max_open_bytes = max_open_bytes
        self.default_deadline_s = default_deadline_s
        self.dev_mode = dev_mode
        """Whether clients may reset the prefix cache."""
        self.cache_resets = first_number(epoch)
        """The number of the last reset; no two incarnations give the same number."""
        self.changes = Changes(allowed=lora_updates, taken=(model, *other_names))
        self.ledger = Ledger(epoch, self.note_moment)
        self.submissions = Submissions(self.ledger, self.send)
        self.quarantined = 0
        """The number of requests that were quarantined here; the scheduler counts its own."""
        self.metrics = Metrics()
        self.request_traces_endpoint = request_traces_endpoint
        if request_traces_endpoint is not None:
            self.ledger.on_end = self.send_request_trace
        self.scheduler_counters = CarriedCounters(anew=restarted)
        self.handlers |= {
            Tokenized: self.on_tokenized,
            Refused: self.on_refused,
            Texts: self.on_texts,
            AdapterAnswer: self.on_adapter_answer,
            Ending: self.on_ending,
        }

    @property
    def idle(self) -> bool:
        return not self.ledger.requests and super().idle

    # --- clients ----------------------------------------------------------------------------------

    def on_connection_lost(self, connection: Connection) -> None:
        requests = self.ledger.of(connection)
        self.metrics.count("aborted", len(requests))
        self.submissions.cancel(requests)
        self.submissions.advance_probation()

    def on_reset_cache(self, connection: Connection, message: ResetCache, now: float) -> None:
        if self.dev_mode:
            self.cache_resets += 1
            self.send("tokenizer", ForgetCache(self.cache_resets))
        self.send_to(connection, CacheReset(done=self.dev_mode))

    # --- requests ---------------------------------------------------------------------------------

    def on_generate(self, connection: Connection, message: Generate, now: float) -> None:
        try:
            prompt, size = check(message, connection, self.bounds)
        except InvalidRequest as error:
            # An error with an id ends the request of this id, which must not be one that is open under the same id.
            usable = (
                1 <= len(message.id) <= limits.MAX_REQUEST_ID_CHARS and message.id not in connection.open_ids
            )
            id = message.id if usable else None
            self.refuse(connection, id, error.code, str(error), param=error.param)
            return
        if self.refuses(message):
            self.refuse(
                connection, message.id, "unavailable", "the service is stopping and accepts nothing new"
            )
            return
        answers, open_bytes = len(self.ledger.answers), self.ledger.open_bytes
        if (
            answers + message.params.n > self.bounds.max_queued_requests
            or open_bytes + size > self.max_open_bytes
        ):
            full = (
                f"{answers} requests with {open_bytes} bytes are open; the limits are"
                f" {self.bounds.max_queued_requests} requests and {self.max_open_bytes} bytes: try again later"
            )
            self.refuse(connection, message.id, "overloaded", full, retry_after_s=DEFAULT_RETRY_AFTER_S)
            return
        params = message.params
        if self.changes.is_leaving(params.adapter):
            text = f"adapter={brief(params.adapter)} is being unloaded"
            self.refuse(connection, message.id, "model_not_found", text, param="adapter")
            return
        quarantined = self.submissions.quarantine.quarantined
        if quarantined and (why := quarantined.get(digest_of(message))):
            self.refuse(connection, message.id, "quarantined", why)
            return
        if params.seed is None:
            params = msgspec.structs.replace(params, seed=self.rng.getrandbits(63))
        request = self.ledger.open(connection, message, prompt, size, params)
        self.metrics.on_accepted(request, now)
        allowed = self.default_deadline_s if params.deadline_s is None else params.deadline_s
        due = now + allowed - message.age_s
        self.ledger.deadlines.add(request.number, due)
        self.wake_by(due)
        self.connections.probe_by(now + PROBE_S)
        self.submissions.submit(request)

    def refuse(
        self,
        connection: Connection,
        id: str | None,
        code: str,
        message: str,
        *,
        retry_after_s: float | None = None,
        param: str | None = None,
    ) -> None:
        self.metrics.count("refused")
        self.metrics.errors[code] += 1
        self.send_to(
            connection, Error(code=code, message=message, id=id, retry_after_s=retry_after_s, param=param)
        )

    def on_abort(self, connection: Connection, abort: Abort, now: float) -> None:
        request = self.ledger.find(connection, abort.id)
        if request is not None:
            self.metrics.count("aborted")
            self.submissions.cancel([request])
            items = request.early + [
                Delta(id=request.id, index=answer.index, finish_reason="abort")
                for answer in request.unfinished
            ]
            items[-1].usage = request.usage
            self.connections.send_deltas(connection, items, now)
            self.submissions.advance_probation()

    def send_request_trace(self, request: Request) -> None:
        """Report the times of a request to the collector of traces."""
        self.send(HostAddress.REQUEST_TRACES, request_trace(request, self.model, self.now))

    # --- what comes back --------------------------------------------------------------------------

    def on_tokenized(self, message: Tokenized, now: float) -> None:
        answer = self.ledger.answers.get(message.request)
        if answer is None:
            return
        request = answer.request
        request.prompt_tokens = len(message.prompt) // 4
        request.tokenized = True
        if request.return_prompt_ids:
            request.prompt_ids = message.prompt
        if request.early:
            request.early[0].prompt_token_ids = array("i", message.prompt).tolist()
            request.prompt_ids = b""
            self.connections.send_deltas(request.connection, request.early, now)
            request.early = []
        if not request.unfinished:
            self.metrics.on_finished(request, now)
            self.ledger.forget(request)
        elif answer is request.started_alone:  # and not another, of an earlier attempt
            self.submissions.start_others(answer, message.prompt)
        self.submissions.advance_probation()

    def on_refused(self, message: Refused, now: float) -> None:
        answer = self.ledger.answers.get(message.request)
        if answer is not None:
            answer.finished = True
            self.fail(answer.request, message.code, message.message, message.param)
            self.submissions.advance_probation()
        else:
            # The scheduler never hears of it, so no end of it will come.
            self.ledger.cancelled.discard(message.request)

    def fail(self, request: Request, code: str, message: str, param: str | None = None) -> None:
        """End the request, and all answers of it that are not finished, with an error."""
        self.metrics.count("failed")
        self.metrics.errors[code] += 1
        if code in FAULTS:
            self.send(HostAddress.LOG, f"request {request.id} failed ({code}): {message}")
        request.error = code
        if request.unfinished:
            self.submissions.cancel([request])
        else:
            self.ledger.forget(request)
        self.send_to(request.connection, Error(code=code, message=message, id=request.id, param=param))

    def parts(self, message: Any) -> Iterable[tuple[bytes, Any]]:
        return by_request(self.ledger, message) if isinstance(message, Texts) else [(b"", message)]

    def on_texts(self, message: Texts, now: float) -> None:
        """Take the texts of a step into the ledger, and send each client all that is its own in one message."""
        if message.counters:
            self.scheduler_counters.take(message.counters)
        delivery = take_in(self.ledger, message)
        self.metrics.on_delivery(delivery, message.step, len(message.texts), bool(self.ledger.answers), now)
        if delivery.unknown:
            self.send("tokenizer", Cancel(sorted(delivery.unknown)))
            self.ledger.unknown |= delivery.unknown
        for connection, items in delivery.deltas.items():
            self.connections.send_deltas(connection, items, now)
        for answer, end in delivery.failed:
            if answer.number in self.ledger.answers:  # it was neither cut off nor failed in this loop
                answer.finished = True
                if end.reason == "quarantined":
                    self.submissions.quarantine.remember(answer.request, end.message)
                self.fail(answer.request, end.reason, end.message, end.param)
        self.submissions.advance_probation()

    # --- time -------------------------------------------------------------------------------------

    def on_wake(self, now: float) -> None:
        for number in self.ledger.deadlines.overdue(now):
            request = self.ledger.requests[number]
            stated = request.params.deadline_s
            late = f"deadline_s={stated}"
            if stated is None:
                late = f"{self.default_deadline_s:g} s, this service's deadline for requests that state no deadline_s"
            self.fail(request, "deadline_exceeded", f"not finished within {late}")
        self.submissions.advance_probation()
        if self.changes.waiting:
            self.send_changes(now)
        due = self.ledger.deadlines.next
        if due is not None:
            self.wake_by(due)
        super().on_wake(now)

    def on_ending(self, ending: Ending, now: float) -> None:
        """End all open requests with an error before the process ends."""
        for request in list(self.ledger.requests.values()):
            self.fail(request, "unavailable", ending.reason)
        self.connections.on_wake(now)

    # --- peers ------------------------------------------------------------------------------------

    def on_peer_down(self, peer: PeerDown, now: float) -> None:
        if peer.name == "scheduler":
            self.scheduler_counters.on_death()
        if peer.own_fault and peer.name in PATH:
            self.submissions.on_fault(peer.name)

    def on_peer_up(self, peer: PeerUp, now: float) -> None:
        """A new tokenizer, scheduler or detokenizer knows nothing: send every open request again."""
        self.traces.peers.add(peer.name)
        if peer.name not in PATH:
            return  # it held nothing that another actor does not have
        if peer.name == "scheduler":
            self.scheduler_counters.restart()
            self.changes.ask_again()
        culprit = self.submissions.resolve_fault(peer.name)
        if culprit is not None:
            self.quarantine(culprit, peer.name)
        self.ledger.cancelled.clear()
        self.ledger.unknown.clear()
        if self.dev_mode:  # the last one may be lost with the incarnation that is gone
            self.send("tokenizer", ForgetCache(self.cache_resets))
        for request in self.ledger.requests.values():
            request.attempt += 1
            self.submissions.submit(request)
        self.submissions.advance_probation()
        self.send_changes(now)

    def quarantine(self, request: Request, actor: str) -> None:
        """End a request that has killed the actor twice."""
        self.quarantined += 1
        why = (
            f"the {actor} died while this was the only request that it had in hand, and it was in hand at a"
            " death before: it is not tried again"
        )
        self.submissions.quarantine.remember(request, why)
        self.fail(request, "quarantined", why)

    # --- adapters ---------------------------------------------------------------------------------

    def on_adapters(
        self, connection: Connection, message: GetAdapters | LoadAdapter | UnloadAdapter, now: float
    ) -> None:
        """Ask the scheduler, which knows the adapters and decides about changes."""
        if not isinstance(message, GetAdapters) and (error := self.changes.refusal(message)):
            self.send_to(connection, Adapters(adapters=[], code="invalid_request", error=error))
            return
        self.changes.open(connection.address, message)
        self.send_changes(now)

    def send_changes(self, now: float) -> None:
        """Send the scheduler the changes that are allowed now: an adapter stays while a request that names it is
        open."""
        used = {request.params.adapter for request in self.ledger.requests.values()}
        for change in self.changes.take(used):
            self.send("scheduler", change)
        if self.changes.waiting:
            self.wake_by(now + CHANGES_AGAIN_S)

    def on_adapter_answer(self, message: AdapterAnswer, now: float) -> None:
        address = self.changes.close(message.number)
        found = [LoadedAdapter(name=one.name, path=one.path) for one in message.adapters]
        self.send_if_there(address, Adapters(adapters=found, code=message.code, error=message.error))

    # --- looking inside ---------------------------------------------------------------------------

    def on_get_stats(self, connection: Connection, message: GetStats, now: float) -> None:
        counters = self.scheduler_counters.totals() | self.host_counters
        counters |= self.metrics.as_counters(len(self.ledger.requests))
        counters["num_requests_quarantined"] = (
            counters.get("num_requests_quarantined", 0.0) + self.quarantined
        )
        self.send_to(connection, Stats(counters=counters))


def build(context: StartContext) -> Gateway:
    """The gateway of a service, from its options."""
    options = context.options_as(GatewayOptions)
    rng = random.Random(options.seed) if options.seed is not None else random.SystemRandom()
    gateway = Gateway(
        options.endpoint,
        options.model_name,
        options.limits,
        other_names=options.other_names,
        server=options.server,
        formats=options.formats,
        rng=rng,
        epoch=context.epoch,
        restarted=context.restarted,
        default_deadline_s=options.default_deadline,
        dev_mode=options.server_dev_mode,
        request_traces_endpoint=options.otlp_traces_endpoint,
        lora_updates=options.lora_updates,
    )
    gateway.allowed_clients = allowed_clients(options.curve_keys, options.curve_also)
    return gateway
