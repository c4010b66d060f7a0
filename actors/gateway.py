"""The gateway: the front door, admission, and the ledger of requests.

The ledger holds each request and what of its answer was delivered. It is what makes every other actor
replaceable: when one of them is new, each open request is sent again with what its client already has,
and what an earlier attempt still brings is dropped.
"""

from __future__ import annotations

import heapq
import random
from array import array
from dataclasses import dataclass, field
from typing import Any

from ..protocol import limits
from ..protocol.errors import InvalidRequest
from ..protocol.limits import PROTOCOL, Limits
from ..protocol.messages import (
    Abort,
    Cancel,
    ClientBlocked,
    ClientGone,
    ClientMessage,
    Delta,
    Deltas,
    Drain,
    DumpTrace,
    Error,
    Generate,
    GetStats,
    GetTrace,
    Hello,
    PeerUp,
    Ping,
    Pong,
    Refused,
    Spans,
    Stats,
    Submit,
    Texts,
    Tokenized,
    Trace,
    Usage,
    Welcome,
)
from ..protocol.sampling import SamplingParams
from ..runtime.actor import Actor

ENDS = ("stop", "length", "abort")
"""Reasons for which an answer ends; any other is an error's code."""

PROBE_S = 1.0
"""A client that has requests and was sent nothing for this long is probed, to learn whether it is there."""

RETRY_S = 0.01
"""When a client that does not read is tried again."""

MAX_HELD_TOKENS = 100_000
"""What a client that does not read may have waiting; beyond it, its requests are aborted."""

MAX_CLIENTS = 4096
TRACE_TIMEOUT_S = 2.0


@dataclass(slots=True, eq=False)
class Request:
    """An open request: everything that is needed to start it again from what was delivered."""

    number: int
    client: Client
    id: str
    prompt: str | bytes | list[dict[str, Any]]
    params: SamplingParams
    size: int
    return_prompt_ids: bool
    delivered: array[int]
    attempt: int = 0
    opened: bool = False
    """The current attempt has reached the detokenizer; what comes now belongs to it."""
    prompt_ids: bytes = b""
    prompt_tokens: int = 0
    cached_tokens: int = 0


@dataclass(slots=True, eq=False)
class Client:
    """One connection."""

    address: bytes
    number: int
    requests: dict[str, Request] = field(default_factory=dict)
    sent_at: float = 0.0
    held: dict[str, Delta] = field(default_factory=dict)
    """Merged deltas that wait because the client does not read."""
    held_tokens: int = 0
    blocked: bool = False


class Gateway(Actor):
    """Front door and ledger."""

    name = "gateway"

    def __init__(
        self, endpoint: str, model: str, bounds: Limits, *, server: str, rng: random.Random, max_open_bytes: int = 1 << 28
    ) -> None:
        super().__init__()
        self.endpoint = endpoint
        self.model = model
        self.bounds = bounds
        self.server = server
        self.rng = rng
        self.max_open_bytes = max_open_bytes
        self.clients: dict[bytes, Client] = {}
        self.requests: dict[int, Request] = {}
        self.open_bytes = 0
        self.next_request = 0
        self.next_client = 0
        self.draining = False
        self.deadlines: list[tuple[float, int]] = []
        self.peers: set[str] = set()
        self.tracing: tuple[bytes, float, set[str], dict[str, list[Any]]] | None = None
        self.counters: dict[str, float] = dict.fromkeys(
            ("requests_accepted", "requests_refused", "requests_finished", "requests_failed", "requests_aborted"), 0.0
        )
        self.scheduler_counters: dict[str, float] = {}
        self.handlers |= {
            ClientMessage: self.on_client_message,
            ClientGone: self.on_client_gone,
            ClientBlocked: self.on_client_blocked,
            Tokenized: self.on_tokenized,
            Refused: self.on_refused,
            Texts: self.on_texts,
            Spans: self.on_spans,
            Drain: self.on_drain,
        }
        self.public = {
            Generate: self.on_generate,
            Abort: self.on_abort,
            Ping: self.on_ping,
            GetStats: self.on_get_stats,
            GetTrace: self.on_get_trace,
        }

    # --- clients ----------------------------------------------------------------------------------

    def on_client_message(self, arrived: ClientMessage, now: float) -> None:
        message = arrived.message
        if isinstance(message, Hello):
            self.on_hello(arrived.client, message, now)
            return
        client = self.clients.get(arrived.client)
        if client is None:
            id = message.id if isinstance(message, (Generate, Abort)) else None
            self.send(arrived.client, Error(code="protocol", message="say hello first", id=id))
            return
        self.public[type(message)](client, message, now)

    def on_hello(self, address: bytes, hello: Hello, now: float) -> None:
        if not hello.protocol or hello.protocol[0] != PROTOCOL[0]:
            version = ".".join(map(str, hello.protocol)) or "none"
            message = f"protocol {version} is not spoken here; this service speaks {PROTOCOL[0]}.{PROTOCOL[1]}"
            self.send(address, Error(code="protocol", message=message))
            return
        if address not in self.clients:
            self.make_place_for_client()
            self.clients[address] = Client(address, self.next_client, sent_at=now)
            self.next_client += 1
        welcome = Welcome(protocol=list(PROTOCOL), server=self.server, model=self.model, limits=self.bounds)
        self.send(address, welcome)

    def make_place_for_client(self) -> None:
        """Forget the oldest connection without a request; should it speak again, it says hello again."""
        if len(self.clients) >= MAX_CLIENTS:
            idle = next((a for a, c in self.clients.items() if not c.requests), None)
            if idle is not None:
                del self.clients[idle]

    def on_client_gone(self, gone: ClientGone, now: float) -> None:
        client = self.clients.pop(gone.client, None)
        if client is None:
            return
        self.counters["requests_aborted"] += len(client.requests)
        self.cancel(list(client.requests.values()))

    def on_client_blocked(self, blocked: ClientBlocked, now: float) -> None:
        """Hold what the client does not take; its deltas merge until it reads again."""
        client = self.clients.get(blocked.client)
        if client is None:
            return
        client.blocked = True
        self.wake_by(now + RETRY_S)
        if isinstance(blocked.message, Deltas):
            self.hold(client, blocked.message.items)

    def hold(self, client: Client, items: list[Delta]) -> None:
        for item in items:
            client.held_tokens += len(item.token_ids)
            held = client.held.get(item.id)
            if held is None:
                client.held[item.id] = item
                continue
            held.text += item.text
            held.token_ids += item.token_ids
            held.finish_reason, held.stop_reason, held.usage = item.finish_reason, item.stop_reason, item.usage
        if client.held_tokens > MAX_HELD_TOKENS:
            self.counters["requests_aborted"] += len(client.requests)
            self.cancel(list(client.requests.values()))
            del self.clients[client.address]

    def send_deltas(self, client: Client, items: list[Delta], now: float) -> None:
        if client.blocked:
            self.hold(client, items)
            return
        client.sent_at = now
        self.send(client.address, Deltas(items=items))

    def on_ping(self, client: Client, ping: Ping, now: float) -> None:
        self.send(client.address, Pong(nonce=ping.nonce))

    # --- requests ---------------------------------------------------------------------------------

    def on_generate(self, client: Client, message: Generate, now: float) -> None:
        try:
            prompt, size = self.checked(client, message)
        except InvalidRequest as error:
            self.refuse(client, message.id, "invalid_request", str(error))
            return
        if self.draining:
            self.refuse(client, message.id, "unavailable", "the service is stopping and accepts nothing new")
            return
        if len(self.requests) >= self.bounds.max_queued_requests or self.open_bytes + size > self.max_open_bytes:
            full = (
                f"{len(self.requests)} requests with {self.open_bytes} bytes are open; the limits are"
                f" {self.bounds.max_queued_requests} requests and {self.max_open_bytes} bytes: try again later"
            )
            self.refuse(client, message.id, "overloaded", full, retry_after_s=1.0)
            return
        params = message.params
        if params.seed is None:
            params = with_seed(params, self.rng.getrandbits(63))
        request = Request(
            self.next_request,
            client,
            message.id,
            prompt,
            params,
            size,
            message.return_prompt_ids,
            array("i", message.received),
        )
        self.next_request += 1
        self.counters["requests_accepted"] += 1
        self.requests[request.number] = client.requests[message.id] = request
        self.open_bytes += size
        self.idle = False
        self.wake_by(now + PROBE_S)
        if params.deadline_s is not None:
            heapq.heappush(self.deadlines, (now + params.deadline_s, request.number))
            self.wake_by(now + params.deadline_s)
        self.submit(request)

    def checked(self, client: Client, message: Generate) -> tuple[str | bytes | list[dict[str, Any]], int]:
        """The prompt as the tokenizer takes it, and its size in bytes; ``InvalidRequest`` if anything is wrong."""
        if not 1 <= len(message.id) <= limits.MAX_REQUEST_ID_CHARS:
            raise InvalidRequest(
                f"id has {len(message.id)} characters; give 1 to {limits.MAX_REQUEST_ID_CHARS}"
            )
        if message.id in client.requests:
            raise InvalidRequest(f"id {message.id!r} is in use by an open request of this connection")
        if (message.prompt is None) == (message.messages is None):
            raise InvalidRequest("give either prompt or messages")
        message.params.check(self.bounds)
        prompt = message.prompt
        self.check_tokens("received", message.received)
        if isinstance(prompt, list):
            self.check_tokens("prompt", prompt)
            return array("i", prompt).tobytes(), 4 * len(prompt)
        if prompt is not None:
            size = len(prompt.encode("utf-8", "surrogatepass"))
            most = self.bounds.max_prompt_bytes
            if size > most:
                raise InvalidRequest(f"prompt has {size} bytes; the limit is {most}")
            return prompt, size
        assert message.messages is not None
        if not message.messages:
            raise InvalidRequest("messages is empty; give at least one")
        return message.messages, len(repr(message.messages))

    def check_tokens(self, name: str, tokens: list[int]) -> None:
        highest = self.bounds.vocab_size - 1
        for token in tokens:
            if not 0 <= token <= highest:
                raise InvalidRequest(f"{name} has token id {token}; this model's are 0 to {highest}")

    def submit(self, request: Request) -> None:
        """Start the request, or start it again from what was delivered."""
        request.opened = False
        ids = request.prompt if isinstance(request.prompt, bytes) else b""
        text = None if isinstance(request.prompt, bytes) else request.prompt
        self.send(
            "tokenizer",
            Submit(
                request.number,
                text,
                request.params,
                request.delivered.tobytes(),
                request.client.number,
                request.attempt,
                ids,
            ),
        )

    def refuse(self, client: Client, id: str, code: str, message: str, retry_after_s: float | None = None) -> None:
        self.counters["requests_refused"] += 1
        self.send(client.address, Error(code=code, message=message, id=id, retry_after_s=retry_after_s))

    def on_abort(self, client: Client, abort: Abort, now: float) -> None:
        request = client.requests.get(abort.id)
        if request is not None:
            self.counters["requests_aborted"] += 1
            self.cancel([request])
            self.send_deltas(client, [self.last_delta(request, "abort")], now)

    def cancel(self, requests: list[Request]) -> None:
        for request in requests:
            self.forget(request)
        if requests:
            self.send("tokenizer", Cancel([request.number for request in requests]))

    def forget(self, request: Request) -> None:
        del self.requests[request.number]
        del request.client.requests[request.id]
        self.open_bytes -= request.size
        self.idle = not self.requests

    def last_delta(self, request: Request, reason: str, stop_reason: str | int | None = None) -> Delta:
        usage = Usage(
            prompt_tokens=request.prompt_tokens,
            completion_tokens=len(request.delivered),
            cached_tokens=request.cached_tokens,
        )
        return Delta(id=request.id, finish_reason=reason, stop_reason=stop_reason, usage=usage)

    # --- what comes back --------------------------------------------------------------------------

    def on_tokenized(self, message: Tokenized, now: float) -> None:
        request = self.requests.get(message.request)
        if request is not None:
            request.prompt_tokens = len(message.prompt) // 4
            if request.return_prompt_ids:
                request.prompt_ids = message.prompt

    def on_refused(self, message: Refused, now: float) -> None:
        request = self.requests.get(message.request)
        if request is not None:
            self.fail(request, message.code, message.message)

    def fail(self, request: Request, code: str, message: str) -> None:
        self.counters["requests_failed"] += 1
        client = request.client
        held = client.held.pop(request.id, None)
        if held is not None:
            self.send(client.address, Deltas(items=[held]))
        self.forget(request)
        self.send(client.address, Error(code=code, message=message, id=request.id))

    def on_texts(self, message: Texts, now: float) -> None:
        """One step's texts: into the ledger, and to each client all that is its own in one message."""
        if message.counters:
            self.scheduler_counters = message.counters
        requests = self.requests
        news: dict[int, tuple[Client, list[Delta]]] = {}
        deltas: dict[int, Delta] = {}

        def delta_of(request: Request) -> Delta:
            delta = deltas[request.number] = Delta(id=request.id, token_ids=[])
            news.setdefault(request.client.number, (request.client, []))[1].append(delta)
            if request.prompt_ids:
                delta.prompt_token_ids = array("i", request.prompt_ids).tolist()
                request.prompt_ids = b""
            return delta

        for opened in message.opened:
            request = requests.get(opened.request)
            if request is not None and opened.attempt == request.attempt:
                request.opened = True
                request.cached_tokens = opened.cached_tokens
        for number, token, text in zip(
            array("q", message.requests), array("i", message.tokens), message.texts, strict=True
        ):
            request = requests.get(number)
            if request is None or not request.opened:
                continue
            request.delivered.append(token)
            delta = deltas.get(number) or delta_of(request)
            delta.token_ids.append(token)
            delta.text += text
        failed: list[tuple[Request, str, str]] = []
        for finished, tail in zip(message.finished, message.tails, strict=True):
            request = requests.get(finished.request)
            if request is None:
                continue
            if finished.reason not in ENDS:
                failed.append((request, finished.reason, finished.message))
                continue
            if not request.opened:
                continue
            delta = deltas.get(request.number) or delta_of(request)
            delta.text += tail
            last = self.last_delta(request, finished.reason, finished.stop_reason)
            delta.finish_reason, delta.stop_reason, delta.usage = last.finish_reason, last.stop_reason, last.usage
            self.counters["requests_finished"] += 1
            self.forget(request)
        for client, items in news.values():
            self.send_deltas(client, items, now)
        for request, code, text in failed:
            self.fail(request, code, text)

    # --- time -------------------------------------------------------------------------------------

    def wake_by(self, when: float) -> None:
        self.wake_at = when if self.wake_at is None else min(self.wake_at, when)

    def on_wake(self, now: float) -> None:
        while self.deadlines and self.deadlines[0][0] <= now:
            request = self.requests.get(heapq.heappop(self.deadlines)[1])
            if request is not None:
                self.send("tokenizer", Cancel([request.number]))
                self.fail(request, "deadline_exceeded", f"not finished within deadline_s={request.params.deadline_s}")
        if self.deadlines:
            self.wake_by(self.deadlines[0][0])
        for client in list(self.clients.values()):
            if client.blocked:
                self.retry(client, now)
            elif client.requests and now - client.sent_at >= PROBE_S:
                client.sent_at = now
                self.send(client.address, Pong())
        if self.requests:
            self.wake_by(now + PROBE_S)
        if self.tracing is not None:
            self.finish_trace(now)

    def retry(self, client: Client, now: float) -> None:
        """Try what a slow client has waiting; the host says if it still does not read."""
        items = list(client.held.values())
        client.held, client.held_tokens, client.blocked = {}, 0, False
        if items:
            self.send_deltas(client, items, now)

    def on_drain(self, drain: Drain, now: float) -> None:
        self.draining = True

    # --- peers ------------------------------------------------------------------------------------

    def on_peer_up(self, peer: PeerUp, now: float) -> None:
        """A new tokenizer, scheduler or detokenizer knows nothing: send every open request again."""
        self.peers.add(peer.name)
        if peer.name == "executor":
            return  # the scheduler holds what is needed
        for request in self.requests.values():
            request.attempt += 1
            self.submit(request)

    # --- looking inside ---------------------------------------------------------------------------

    def on_get_stats(self, client: Client, message: GetStats, now: float) -> None:
        self.send(client.address, Stats(counters=self.scheduler_counters | self.counters))

    def on_get_trace(self, client: Client, message: GetTrace, now: float) -> None:
        if self.tracing is not None:
            self.send(client.address, Error(code="overloaded", message="a trace is being taken; try again"))
            return
        asked = self.peers | {self.name}
        self.tracing = (client.address, now + TRACE_TIMEOUT_S, set(asked), {})
        self.wake_by(now + TRACE_TIMEOUT_S)
        for peer in sorted(asked):
            self.send(peer, DumpTrace())

    def on_spans(self, message: Spans, now: float) -> None:
        if self.tracing is not None:
            _, deadline, missing, tracks = self.tracing
            tracks.update(message.tracks)
            missing -= message.tracks.keys()
            self.finish_trace(now)

    def finish_trace(self, now: float) -> None:
        """Answer once every actor has sent its spans, or with what there is when time is up."""
        assert self.tracing is not None
        address, deadline, missing, tracks = self.tracing
        if missing and now < deadline:
            self.wake_by(deadline)
            return
        self.tracing = None
        self.send(address, Trace(tracks=tracks))


def with_seed(params: SamplingParams, seed: int) -> SamplingParams:
    fields = {name: getattr(params, name) for name in params.__struct_fields__}
    return SamplingParams(**{**fields, "seed": seed})


def build(context: Any) -> Gateway:
    """The gateway of a service, from its options."""
    options = context.options
    bounds = Limits(
        max_model_len=options["max_model_len"],
        vocab_size=options["vocab_size"],
        max_prompt_bytes=min(limits.MAX_FRAME_BYTES // 2, max(65_536, 32 * options["max_model_len"])),
        max_queued_requests=options["max_queued_requests"],
    )
    seed = options["seed"]
    rng = random.Random(seed) if seed is not None else random.SystemRandom()
    return Gateway(options["endpoint"], options["model_name"], bounds, server=options["server"], rng=rng)
