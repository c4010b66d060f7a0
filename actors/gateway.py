"""The gateway: the front door, admission, and the ledger of requests.

The ledger holds each request and what of its answer was delivered. It is what makes every other actor
replaceable: when one of them is new, each open request is sent again with what its client already has,
and what an earlier attempt still brings is dropped.
"""

from __future__ import annotations

import heapq
import math
import random
from array import array
from collections import defaultdict
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import msgspec

from ..protocol import limits
from ..protocol.errors import InvalidRequest, brief
from ..protocol.limits import PROTOCOL, Limits
from ..protocol.messages import (
    Abort,
    Actors,
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
    GetActors,
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
    ToClient,
    Tokenized,
    Trace,
    Usage,
    Welcome,
    first_number,
)
from ..protocol.sampling import SamplingParams
from ..protocol.trace import Recorded
from ..runtime.actor import Actor

ENDS = ("stop", "length", "abort")
"""Reasons for which an answer ends; any other is an error's code."""

PROBE_S = 1.0
"""A client that has requests and was sent nothing for this long is probed, to learn whether it is there."""

RETRY_S = 0.01
"""When a client that does not read is tried again."""

MAX_HELD_TOKENS = 100_000
"""What a client that does not read may have waiting; beyond it, its requests are aborted."""

MAX_HELD_MESSAGES = 1024
"""The same for messages that do not merge, such as errors and statistics."""

MAX_CLIENTS = 4096
TRACE_TIMEOUT_S = 2.0


@dataclass(slots=True, eq=False)
class Request:
    """An open request: everything that is needed to start it again from what was delivered."""

    number: int
    """That of its first answer."""
    client: Client
    id: str
    prompt: str | bytes | list[dict[str, Any]]
    params: SamplingParams
    size: int
    return_prompt_ids: bool
    template: dict[str, Any] = field(default_factory=dict)
    """What the chat template is given beside the messages."""
    answers: list[Answer] = field(default_factory=list)
    """``n`` of them, by index."""
    attempt: int = 0
    leader: Answer | None = None
    """The answer that the current attempt has started alone; None once it has started all of them."""
    prompt_ids: bytes = b""
    tokenized: bool = False
    last: Delta | None = None
    """The end of a request that waits for ``Tokenized``, which comes another way and may be later."""
    prompt_tokens: int = 0
    cached_tokens: int = 0

    @property
    def unfinished(self) -> list[Answer]:
        return [answer for answer in self.answers if not answer.finished]


@dataclass(slots=True, eq=False)
class Answer:
    """One of the ``n`` answers to a request. To all other actors it is a request of its own."""

    number: int
    """The ``request`` of the messages inside."""
    request: Request
    index: int
    params: SamplingParams
    """The request's, with the seed of this answer."""
    delivered: array[int]
    opened: bool = False
    """The current attempt has reached the detokenizer; what comes now belongs to it."""
    finished: bool = False


@dataclass(slots=True, eq=False)
class Client:
    """One connection."""

    address: bytes
    number: int
    requests: dict[str, Request] = field(default_factory=dict)
    sent_at: float = 0.0
    held: dict[tuple[str, int], Delta] = field(default_factory=dict)
    """Merged deltas, by request and answer, that wait: for the end of the turn, or for the client to read."""
    held_tokens: int = 0
    held_messages: list[ToClient] = field(default_factory=list)
    """What waits with them, and is sent after them."""
    blocked: bool = False
    """The client does not read."""
    retry_at: float = 0.0


@dataclass(slots=True, eq=False)
class Tracing:
    """A trace that is being gathered from all actors."""

    client: bytes
    answers: int
    """How many questions of the client it answers."""
    since_ns: int
    until_ns: int
    deadline: float
    missing: set[str]
    actors: dict[str, Recorded] = field(default_factory=dict)


class Gateway(Actor):
    """Front door and ledger."""

    name = "gateway"

    def __init__(
        self,
        endpoint: str,
        model: str,
        bounds: Limits,
        *,
        server: str,
        rng: random.Random,
        epoch: int = 0,
        max_open_bytes: int = 1 << 28,
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
        self.answers: dict[int, Answer] = {}
        """The answers of all open requests, by number."""
        self.open_bytes = 0
        self.next_request = first_number(epoch)
        self.next_client = 0
        self.cancelled: set[int] = set()
        """Numbers whose ``Cancel`` was sent since an actor was last new, and whose end has not come."""
        self.draining = False
        self.deadlines: list[tuple[float, int]] = []
        self.peers: set[str] = set()
        self.asking: list[bytes] = []
        """Clients that want to know how the actors are."""
        self.tracing: Tracing | None = None
        self.trace_questions: dict[bytes, tuple[int, float]] = {}
        """While a trace is gathered: who waits for the next, with how many questions, of how many seconds at most."""
        self.counters: dict[str, float] = dict.fromkeys(
            (
                "requests_accepted",
                "requests_refused",
                "requests_finished",
                "requests_failed",
                "requests_aborted",
            ),
            0.0,
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
            Actors: self.on_actors,
        }
        self.public = {
            Generate: self.on_generate,
            Abort: self.on_abort,
            Ping: self.on_ping,
            GetStats: self.on_get_stats,
            GetTrace: self.on_get_trace,
            GetActors: self.on_get_actors,
        }

    @property
    def idle(self) -> bool:
        return not self.requests and not any(
            client.blocked or client.held for client in self.clients.values()
        )

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
            message = (
                f"protocol {version} is not spoken here; this service speaks {PROTOCOL[0]}.{PROTOCOL[1]}"
            )
            self.send(address, Error(code="protocol", message=message))
            return
        client = self.clients.get(address)
        if client is None:
            self.make_place_for_client()
            client = self.clients[address] = Client(address, self.next_client, sent_at=now)
            self.next_client += 1
        welcome = Welcome(protocol=list(PROTOCOL), server=self.server, model=self.model, limits=self.bounds)
        self.tell(client, welcome)

    def make_place_for_client(self) -> None:
        """Forget the oldest connection without a request; should it speak again, it says hello again."""
        if len(self.clients) >= MAX_CLIENTS:
            idle = next((a for a, c in self.clients.items() if not c.requests), None)
            if idle is not None:
                del self.clients[idle]

    def on_client_gone(self, gone: ClientGone, now: float) -> None:
        client = self.clients.get(gone.client)
        if client is not None:
            self.cut_off(client)

    def on_client_blocked(self, blocked: ClientBlocked, now: float) -> None:
        """Hold what the client does not take; its deltas merge until it reads again."""
        client = self.clients.get(blocked.client)
        if client is None:
            return
        client.blocked = True
        client.retry_at = now + RETRY_S
        self.wake_by(client.retry_at)
        if isinstance(blocked.message, Deltas):
            self.hold(client, blocked.message.items)
        else:
            self.hold_message(client, blocked.message)

    def hold(self, client: Client, items: list[Delta]) -> None:
        for item in items:
            client.held_tokens += len(item.token_ids)
            if item.logprobs:
                client.held_tokens += sum(map(len, item.logprobs))
            held = client.held.setdefault((item.id, item.index), item)
            if held is item:
                continue
            held.text += item.text
            held.token_ids += item.token_ids
            held.logprobs += item.logprobs
            held.finish_reason, held.stop_reason, held.usage = (
                item.finish_reason,
                item.stop_reason,
                item.usage,
            )
            if item.prompt_token_ids is not None:
                held.prompt_token_ids = item.prompt_token_ids
            if item.usage is not None:  # the last delta of a request: behind those of its other answers
                client.held[item.id, item.index] = client.held.pop((item.id, item.index))
        if client.blocked and client.held_tokens > MAX_HELD_TOKENS:
            self.cut_off(client)

    def hold_message(self, client: Client, message: ToClient) -> None:
        client.held_messages.append(message)
        if len(client.held_messages) > MAX_HELD_MESSAGES:
            self.cut_off(client)

    def cut_off(self, client: Client) -> None:
        """Forget a connection and end its requests; should it speak again, it says hello again."""
        if self.clients.pop(client.address, None) is not None:
            self.counters["requests_aborted"] += len(client.requests)
            self.cancel(list(client.requests.values()))

    def tell(self, client: Client, message: ToClient) -> None:
        """Send something other than deltas."""
        if client.blocked or client.held:
            self.hold_message(client, message)
        else:
            self.send(client.address, message)

    def send_deltas(self, client: Client, items: list[Delta], now: float) -> None:
        """Send when all that has arrived is taken in: a gateway that is behind sends less often, and catches up."""
        self.hold(client, items)
        if not client.blocked:
            self.wake_by(now)

    def on_ping(self, client: Client, ping: Ping, now: float) -> None:
        self.tell(client, Pong(nonce=ping.nonce))

    # --- requests ---------------------------------------------------------------------------------

    def on_generate(self, client: Client, message: Generate, now: float) -> None:
        try:
            prompt, size = self.checked(client, message)
        except InvalidRequest as error:
            # An error that carries an id ends that request: not the one that is open under it.
            usable = 1 <= len(message.id) <= limits.MAX_REQUEST_ID_CHARS and message.id not in client.requests
            id = message.id if usable else None
            self.refuse(client, id, "invalid_request", str(error))
            return
        if self.draining:
            self.refuse(client, message.id, "unavailable", "the service is stopping and accepts nothing new")
            return
        if (
            len(self.answers) + message.params.n > self.bounds.max_queued_requests
            or self.open_bytes + size > self.max_open_bytes
        ):
            full = (
                f"{len(self.answers)} requests with {self.open_bytes} bytes are open; the limits are"
                f" {self.bounds.max_queued_requests} requests and {self.max_open_bytes} bytes: try again later"
            )
            self.refuse(client, message.id, "overloaded", full, retry_after_s=1.0)
            return
        params = message.params
        if params.seed is None:
            params = msgspec.structs.replace(params, seed=self.rng.getrandbits(63))
        request = Request(
            self.next_request,
            client,
            message.id,
            prompt,
            params,
            size,
            message.return_prompt_ids,
            template_of(message),
        )
        for index, received in enumerate(received_by_answer(message)):
            answer = Answer(
                self.next_request, request, index, answer_params(params, index), array("i", received)
            )
            request.answers.append(answer)
            self.answers[answer.number] = answer
            self.mark("arrived", answer.number)
            self.next_request += 1
        self.counters["requests_accepted"] += 1
        self.requests[request.number] = client.requests[message.id] = request
        self.open_bytes += size
        self.wake_by(now + PROBE_S)
        if params.deadline_s is not None:
            if len(self.deadlines) > 1000 + 2 * len(self.requests):
                self.deadlines = [due for due in self.deadlines if due[1] in self.requests]
                heapq.heapify(self.deadlines)
            heapq.heappush(self.deadlines, (now + params.deadline_s, request.number))
            self.wake_by(now + params.deadline_s)
        self.submit(request)

    def checked(self, client: Client, message: Generate) -> tuple[str | bytes | list[dict[str, Any]], int]:
        """The prompt as the tokenizer takes it, and its size in bytes; ``InvalidRequest`` if anything is wrong."""
        if not 1 <= len(message.id) <= limits.MAX_REQUEST_ID_CHARS:
            raise InvalidRequest(
                f"id has {len(message.id)} characters; give 1 to {limits.MAX_REQUEST_ID_CHARS}"
            )
        if message.id in client.requests or any(id == message.id for id, _ in client.held):
            raise InvalidRequest(f"id {message.id!r} is in use by an open request of this connection")
        if (message.prompt is None) == (message.messages is None):
            raise InvalidRequest("give either prompt or messages")
        if message.messages is None and template_of(message):
            raise InvalidRequest("tools and chat_template_kwargs go with messages; give messages, not prompt")
        message.params.check(self.bounds)
        prompt = message.prompt
        if message.params.n > self.bounds.max_queued_requests:
            raise InvalidRequest(
                f"n={message.params.n} answers; this service holds at most"
                f" {self.bounds.max_queued_requests} at once"
            )
        if len(message.received_of_others) >= message.params.n:
            raise InvalidRequest(
                f"received_of_others has {len(message.received_of_others)} lists;"
                f" there are {message.params.n - 1} answers after the first"
            )
        self.check_tokens("received", message.received)
        for received in message.received_of_others:
            self.check_tokens("received_of_others", received)
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
        size, most = weight("messages", message.messages), self.bounds.max_prompt_bytes
        size += weight("tools and chat_template_kwargs", template_of(message))
        if size > most:
            raise InvalidRequest(f"messages and tools have {size} bytes; the limit is {most}")
        return message.messages, size

    def check_tokens(self, name: str, tokens: list[int]) -> None:
        highest = self.bounds.vocab_size - 1
        for token in tokens:
            if not 0 <= token <= highest:
                raise InvalidRequest(f"{name} has token id {token}; this model's are 0 to {highest}")

    def submit(self, request: Request) -> None:
        """Start the request, or start it again from what was delivered.

        One answer goes first, and the others once the prompt has been tokenized: it is so but once, and
        they find its blocks in the prefix cache.
        """
        for answer in request.answers:
            answer.opened = False
        request.leader = (request.unfinished or request.answers)[0]
        self.submit_answer(request.leader)

    def submit_answer(self, answer: Answer) -> None:
        request = answer.request
        ids = request.prompt if isinstance(request.prompt, bytes) else b""
        text = None if isinstance(request.prompt, bytes) else request.prompt
        self.send(
            "tokenizer",
            Submit(
                answer.number,
                text,
                answer.params,
                answer.delivered.tobytes(),
                request.client.number,
                request.attempt,
                ids,
                request.template,
            ),
        )

    def refuse(
        self, client: Client, id: str | None, code: str, message: str, retry_after_s: float | None = None
    ) -> None:
        self.counters["requests_refused"] += 1
        self.tell(client, Error(code=code, message=message, id=id, retry_after_s=retry_after_s))

    def on_abort(self, client: Client, abort: Abort, now: float) -> None:
        request = client.requests.get(abort.id)
        if request is not None:
            self.counters["requests_aborted"] += 1
            self.cancel([request])
            items = [
                Delta(id=request.id, index=answer.index, finish_reason="abort")
                for answer in request.unfinished
            ]
            if request.last is not None:
                items.append(request.last)
            items[-1].usage = usage(request)
            self.send_deltas(client, items, now)

    def cancel(self, requests: list[Request]) -> None:
        for request in requests:
            self.forget(request)
        if requests:
            numbers = [answer.number for request in requests for answer in request.unfinished]
            self.send("tokenizer", Cancel(numbers))
            self.cancelled.update(numbers)

    def forget(self, request: Request) -> None:
        del self.requests[request.number]
        for answer in request.answers:
            del self.answers[answer.number]
            self.mark("finished", answer.number)
        del request.client.requests[request.id]
        self.open_bytes -= request.size

    # --- what comes back --------------------------------------------------------------------------

    def on_tokenized(self, message: Tokenized, now: float) -> None:
        answer = self.answers.get(message.request)
        if answer is None:
            return
        request = answer.request
        request.prompt_tokens = len(message.prompt) // 4
        request.tokenized = True
        if request.return_prompt_ids:
            request.prompt_ids = message.prompt
        if request.last is not None:
            request.last.prompt_token_ids = array("i", message.prompt).tolist()
            self.counters["requests_finished"] += 1
            self.forget(request)
            self.send_deltas(request.client, [request.last], now)
            return
        if answer is request.leader:  # and not another, of an earlier attempt
            request.leader = None
            others = [other for other in request.unfinished if other is not answer]
            if others:
                request.prompt = message.prompt
            for other in others:
                self.submit_answer(other)

    def on_refused(self, message: Refused, now: float) -> None:
        answer = self.answers.get(message.request)
        if answer is not None:
            answer.finished = True
            self.fail(answer.request, message.code, message.message)

    def fail(self, request: Request, code: str, message: str) -> None:
        """The request ends with an error, and with it what answers are not finished."""
        self.counters["requests_failed"] += 1
        if request.unfinished:
            self.cancel([request])
        else:
            self.forget(request)
        self.tell(request.client, Error(code=code, message=message, id=request.id))

    def on_texts(self, message: Texts, now: float) -> None:
        """One step's texts: into the ledger, and to each client all that is its own in one message."""
        if message.counters:
            self.scheduler_counters = message.counters
        answers = self.answers
        deltas: dict[int, Delta] = {}
        news: defaultdict[Client, list[Delta]] = defaultdict(list)

        def begin(answer: Answer, token_ids: list[int], text: str) -> Delta:
            request = answer.request
            delta = deltas[answer.number] = Delta(
                id=request.id, text=text, token_ids=token_ids, index=answer.index
            )
            news[request.client].append(delta)
            if request.prompt_ids:
                delta.prompt_token_ids = array("i", request.prompt_ids).tolist()
                request.prompt_ids = b""
            return delta

        for opened in message.opened:
            answer = answers.get(opened.request)
            if answer is not None and opened.attempt == answer.request.attempt:
                answer.opened = True
                request = answer.request
                if answer.index == 0:  # the others find what this one has computed
                    request.cached_tokens = opened.cached_tokens
                # ``Tokenized`` comes another way, and may be later.
                request.prompt_tokens = opened.prompt_tokens
        strangers: set[int] = set()
        logprobs = LogprobRows(message)
        for row, (number, token, text) in enumerate(
            zip(array("q", message.requests), array("i", message.tokens), message.texts, strict=True)
        ):
            answer = answers.get(number)
            if answer is None:
                if number not in self.cancelled:
                    strangers.add(number)
                continue
            if not answer.opened or answer.finished:
                continue
            answer.delivered.append(token)
            delta = deltas.get(number)
            if delta is None:
                delta = begin(answer, [token], text)
                if len(answer.delivered) == 1:
                    self.mark("first token", number)
            else:
                delta.token_ids.append(token)
                delta.text += text
            if logprobs.columns and answer.params.logprobs is not None:
                delta.logprobs.append(logprobs.read(row, 1 + answer.params.logprobs))
        if strangers:  # their Cancel was lost with the actor that carried it
            self.send("tokenizer", Cancel(sorted(strangers)))
            self.cancelled |= strangers
        failed: list[tuple[Answer, str, str]] = []
        for finished, tail in zip(message.finished, message.tails, strict=True):
            answer = answers.get(finished.request)
            if answer is None or answer.finished:
                self.cancelled.discard(finished.request)
                continue
            request = answer.request
            if finished.reason not in ENDS:
                failed.append((answer, finished.reason, finished.message))
                continue
            if not answer.opened:
                continue
            if len(request.answers) > 1:
                deltas.pop(answer.number, None)  # its end comes after what the step brings to the others
            delta = deltas.get(answer.number) or begin(answer, [], "")
            delta.text += tail
            delta.finish_reason, delta.stop_reason = finished.reason, finished.stop_reason
            answer.finished = True
            if not request.unfinished:
                delta.usage = usage(request)
                if request.return_prompt_ids and not request.tokenized:
                    news[request.client].remove(delta)
                    request.last = delta
                    continue
                self.counters["requests_finished"] += 1
                self.forget(request)
        for client, items in news.items():
            self.send_deltas(client, items, now)
        for answer, code, text in failed:
            if answer.number in answers:  # neither cut off nor failed just now
                answer.finished = True
                self.fail(answer.request, code, text)

    # --- time -------------------------------------------------------------------------------------

    def wake_by(self, when: float) -> None:
        self.wake_at = when if self.wake_at is None else min(self.wake_at, when)

    def on_wake(self, now: float) -> None:
        while self.deadlines and self.deadlines[0][0] <= now:
            request = self.requests.get(heapq.heappop(self.deadlines)[1])
            if request is not None:
                self.fail(
                    request,
                    "deadline_exceeded",
                    f"not finished within deadline_s={request.params.deadline_s}",
                )
        if self.deadlines:
            self.wake_by(self.deadlines[0][0])
        for client in list(self.clients.values()):
            if client.blocked and now < client.retry_at:
                self.wake_by(client.retry_at)
            elif client.blocked or client.held:
                self.send_held(client, now)
            elif client.requests and now - client.sent_at >= PROBE_S:
                client.sent_at = now
                self.tell(client, Pong())
        if self.requests:
            self.wake_by(now + PROBE_S)
        self.finish_trace(now)

    def send_held(self, client: Client, now: float) -> None:
        """Send what waits for a client; the host says if it does not read."""
        items, messages = list(client.held.values()), client.held_messages
        client.held, client.held_tokens, client.held_messages, client.blocked = {}, 0, [], False
        if items:
            client.sent_at = now
            self.send(client.address, Deltas(items=items))
        for message in messages:
            self.send(client.address, message)

    def on_drain(self, drain: Drain, now: float) -> None:
        self.draining = True

    # --- peers ------------------------------------------------------------------------------------

    def on_peer_up(self, peer: PeerUp, now: float) -> None:
        """A new tokenizer, scheduler or detokenizer knows nothing: send every open request again."""
        self.peers.add(peer.name)
        if peer.name == "executor":
            return  # the scheduler holds what is needed
        self.cancelled.clear()
        for request in self.requests.values():
            request.attempt += 1
            self.submit(request)

    # --- looking inside ---------------------------------------------------------------------------

    def on_get_stats(self, client: Client, message: GetStats, now: float) -> None:
        self.tell(client, Stats(counters=self.scheduler_counters | self.counters))

    def on_get_actors(self, client: Client, message: GetActors, now: float) -> None:
        self.asking.append(client.address)
        self.send("supervisor", message)

    def on_actors(self, actors: Actors, now: float) -> None:
        """What the supervisor tells: for everyone who has asked until now."""
        asking, self.asking = self.asking, []
        for address in asking:
            client = self.clients.get(address)
            if client is not None:
                self.tell(client, actors)

    def on_get_trace(self, client: Client, message: GetTrace, now: float) -> None:
        seconds = math.inf if message.seconds is None else message.seconds
        if not seconds > 0:
            self.tell(client, Error(code="invalid_request", message=f"seconds={seconds}; give more than 0"))
            return
        questions, most = self.trace_questions.get(client.address, (0, 0.0))
        self.trace_questions[client.address] = (questions + 1, max(seconds, most))
        if self.tracing is None:
            self.gather_trace(now)

    def gather_trace(self, now: float) -> None:
        """Ask all actors for what answers the questions of the client that has waited longest."""
        address = next(iter(self.trace_questions))
        questions, seconds = self.trace_questions.pop(address)
        until_ns = round(now * 1e9)
        since_ns = round(max(0.0, until_ns - seconds * 1e9))
        deadline = now + TRACE_TIMEOUT_S
        self.tracing = Tracing(address, questions, since_ns, until_ns, deadline, self.peers | {self.name})
        self.wake_by(deadline)
        for actor in sorted(self.tracing.missing):
            self.send(actor, DumpTrace(since_ns))

    def on_spans(self, message: Spans, now: float) -> None:
        tracing = self.tracing
        if tracing is None or message.since_ns != tracing.since_ns or message.actor not in tracing.missing:
            return  # it answers an earlier question, too late
        if message.actor in tracing.actors:
            tracing.actors[message.actor].add(message.part)
        else:
            tracing.actors[message.actor] = message.part
        if message.last:
            tracing.missing.discard(message.actor)
            self.finish_trace(now)

    def finish_trace(self, now: float) -> None:
        """Answer once every actor has sent its part, or with what there is when time is up."""
        tracing = self.tracing
        if tracing is None:
            return
        if tracing.missing and now < tracing.deadline:
            self.wake_by(tracing.deadline)
            return
        client = self.clients.get(tracing.client)
        if client is not None:
            trace = Trace(actors=tracing.actors, since_ns=tracing.since_ns, until_ns=tracing.until_ns)
            for _ in range(tracing.answers):
                self.tell(client, trace)
        self.tracing = None
        if self.trace_questions:
            self.gather_trace(now)


def weight(name: str, value: Any, depth: int = 0) -> int:
    """About how many bytes a value of any type takes; ``InvalidRequest`` if it is nested too deep."""
    if isinstance(value, str | bytes):
        return 4 + len(value)
    if not isinstance(value, list | dict):
        return 8
    if depth >= limits.MAX_DEPTH:
        raise InvalidRequest(
            f"{name} is nested deeper than {limits.MAX_DEPTH} lists and maps: {brief(value)}"
        )
    inner = value if isinstance(value, list) else [*value.keys(), *value.values()]
    return 4 + sum(weight(name, item, depth + 1) for item in inner)


def template_of(message: Generate) -> dict[str, Any]:
    """What the chat template is given beside the messages."""
    tools = {} if message.tools is None else {"tools": message.tools}
    return message.chat_template_kwargs | tools


def received_by_answer(message: Generate) -> list[list[int]]:
    """What the client has of each of the ``n`` answers."""
    received = [message.received, *message.received_of_others]
    return received + [[]] * (message.params.n - len(received))


def answer_params(params: SamplingParams, index: int) -> SamplingParams:
    """Those of answer ``index``: a seed of its own. The first has the request's, so it is the answer of ``n=1``."""
    if index == 0:
        return params
    digest = blake2b(f"{params.seed}/{index}".encode(), digest_size=8).digest()
    return msgspec.structs.replace(params, seed=int.from_bytes(digest, "little") & limits.MAX_SEED)


def usage(request: Request) -> Usage:
    return Usage(
        prompt_tokens=request.prompt_tokens,
        completion_tokens=sum(len(answer.delivered) for answer in request.answers),
        cached_tokens=request.cached_tokens,
    )


class LogprobRows:
    """The logprobs of one step, row by row."""

    def __init__(self, message: Texts) -> None:
        self.tokens = array("i", message.logprob_tokens)
        self.values = array("f", message.logprobs)
        self.columns = len(self.tokens) // len(message.texts) if self.tokens else 0
        """0: the step has none."""

    def read(self, row: int, columns: int) -> dict[str, float]:
        """Token id to logprob, from the first ``columns`` of a row."""
        first = row * self.columns
        tokens, values = self.tokens[first : first + columns], self.values[first : first + columns]
        return dict(zip(map(str, tokens), values, strict=True))


def build(context: Any) -> Gateway:
    """The gateway of a service, from its options."""
    options = context.options
    bounds = Limits(
        max_model_len=options["max_model_len"],
        vocab_size=options["vocab_size"],
        max_prompt_bytes=options["max_prompt_bytes"],
        max_stop_token_ids=limits.MAX_STOP_TOKEN_IDS - len(options["eos_token_ids"]),
        max_queued_requests=options["max_queued_requests"],
    )
    seed = options["seed"]
    rng = random.Random(seed) if seed is not None else random.SystemRandom()
    return Gateway(
        options["endpoint"],
        options["model_name"],
        bounds,
        server=options["server"],
        rng=rng,
        epoch=context.epoch,
    )
