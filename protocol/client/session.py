"""One client's side of the conversation with a gateway, without a socket or a clock.

A ``Session`` is given the frames that arrive, and the time. It says which frames to send (``outbox``), on which
connection (``connection`` counts them), and when it wants to be called again (``wake_at``). ``Client`` and
``AsyncClient`` add a socket and a clock. Its states:

    lost      connect, or a request     → greeting   a new connection, Hello is sent
    greeting  Welcome                   → ready      every open request is sent, or resent
    greeting  no answer for HELLO_TIMEOUT_S → greeting   on another new connection
    greeting  Error, or ``timeout_s``   → lost       every open request fails
    greeting  Welcome of another service → lost      the same (``refuses``)
    ready     Error "protocol"          → greeting   the gateway was restarted and does not know us
    ready     no answer to Ping         → greeting   the gateway cannot be reached
    ready     ``interrupted``           → greeting   the same, known at once; lost if nothing is open
    ready     a frame that is no message → lost      every open request fails, since something may be missing

A gateway forgets its connections when it restarts, but the session keeps each request with the token
ids that have arrived, so that the stream goes on where it stopped.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from ..codec import decode_to_client, encode, encode_from_client
from ..errors import (
    InvalidRequest,
    Overloaded,
    ProtocolError,
    ServiceUnavailable,
    SlipstreamError,
    brief,
    from_wire,
)
from ..formats.ids import CallIds
from ..formats.tools import Offer, offer_of, with_schema
from ..limits import MAX_FRAME_BYTES, MAX_REQUEST_ID_CHARS, PROTOCOL
from ..messages import (
    NO_FORMATS,
    Abort,
    Actors,
    Adapters,
    CacheReset,
    Delta,
    Deltas,
    Error,
    Formats,
    FromClient,
    Generate,
    GetTrace,
    Hello,
    Ping,
    Stats,
    Trace,
    Welcome,
)
from ..sampling import SamplingParams
from .pending import Pending, Stream
from .questions import ASKED_BY, Question, Questions
from .request import check_asked, check_params, check_seconds, encode_request

PING_AFTER_S = 1.0
"""Silence while a request is open, after which the session pings the gateway. The gateway itself writes to a client
with requests every second."""

LOST_AFTER_S = 5.0
"""The default of ``Session.lost_after_s``."""

RECONNECT_DELAY_S = 0.05
"""Pause between the break of a connection and the next Hello: short, compared with the start of a gateway, but no busy
loop."""

HELLO_TIMEOUT_S = 3.0
"""Silence after a Hello, after which it is sent again on a new connection, as the first may be lost. A gateway is back
sooner, after about half a second."""

MAX_UNANSWERED_CONNECTIONS = 5
"""Connections in a row that may bring nothing but a Welcome, before every open request fails. Otherwise requests of
which the gateway dies would be resent for ever."""

NO_RESET = "this service resets no prefix cache; start it with --server-dev-mode"

Message = dict[str, Any]
"""One message of a conversation: ``{"role": "user", "content": "…"}``."""

Reply = TypeVar("Reply", Welcome, Stats, Trace, Actors, CacheReset, Adapters)


class Session:
    """The requests that one client has open, and the state of its connection."""

    def __init__(
        self,
        endpoint: str,
        *,
        timeout_s: float = 10.0,
        lost_after_s: float = LOST_AFTER_S,
        client: str = "slipstream-python",
        refuses: Callable[[Welcome], str | None] | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.timeout_s = check_seconds("timeout_s", timeout_s)
        """Seconds for which the service may be unavailable, at first or after a lost connection, before requests
        fail."""
        self.lost_after_s = lost_after_s
        """Seconds of silence after a Ping, after which the connection counts as lost."""
        self.client = client
        self.refuses = refuses
        """Says why the service that answers is not the wanted one, or None if it is; without this, every service is."""
        self.state: Literal["lost", "greeting", "ready", "closed"] = "lost"
        self.welcome: Welcome | None = None
        self.connection = 0
        """The number of the connection that ``outbox`` is for. When it grows, the client closes the old connection and
        opens a new one."""
        self.outbox: deque[bytes] = deque()
        self.streams: dict[str, Stream] = {}
        self.questions = Questions()
        self.unanswered_connections = 0
        """The number of connections in a row, up to this one, that have brought nothing but a Welcome."""
        self.heard_at = 0.0
        self.pinged_at: float | None = None
        self.retry_at = 0.0
        self.unavailable_at = 0.0
        self.prefix = os.urandom(4).hex()
        self.opened = 0

    # --- what the client wants ----------------------------------------------------------------

    def ask(
        self,
        now: float,
        *,
        prompt: str | list[int] | None = None,
        messages: list[Message] | None = None,
        params: SamplingParams | None = None,
        request_id: str | None = None,
        return_prompt_ids: bool = False,
        tools: list[dict[str, Any]] | None = None,
        tool_choice: Any = None,
        parallel_tool_calls: bool | None = None,
        offered: Offer | None = None,
        new_ids: Callable[[], CallIds] = CallIds,
        chat_template_kwargs: dict[str, Any] | None = None,
        add_special_tokens: bool = True,
        max_waiting: int | None = None,
        traceparent: str = "",
    ) -> Stream:
        """Open a request; ``InvalidRequest`` if it cannot even be sent.

        ``offered`` is made of the tools and the choice among them; it is given where it is known already and
        ``params`` have its schema. ``new_ids`` makes the ids of calls.

        The request ends with ``Overloaded`` if its consumer leaves more than ``max_waiting`` deltas waiting.
        """
        self.check_open()
        check_asked(prompt, messages)
        params = check_params(params)
        if offered is None:
            offered = offer_of(tools, tool_choice, parallel_tool_calls)
            params = with_schema(params, offered)
        request = Generate(
            id=self.new_id() if request_id is None else self.check_id(request_id),
            prompt=prompt,
            messages=messages,
            params=params,
            return_prompt_ids=return_prompt_ids or messages is not None,
            tools=offered.tools,
            chat_template_kwargs=chat_template_kwargs or {},
            add_special_tokens=add_special_tokens,
            marks=messages is not None,
            calls=offered.calls,
            traceparent=traceparent,
        )
        frame = encode_request(request)
        self.ensure_connection(now)
        stream = self.streams[request.id] = Stream(request, now, max_waiting, offered, new_ids)
        if self.state == "ready":
            self.outbox.append(frame)
        return stream

    def adopt(self, stream: Stream, now: float) -> None:
        """Continue a stream of another session behind what has arrived of it; ``InvalidRequest`` if it cannot be sent.

        No other stream of this session may have its id.
        """
        self.check_open()
        frame = encode(stream.resumed(now))
        if len(frame) > MAX_FRAME_BYTES:
            raise InvalidRequest(
                f"the request and what was received of its answer have {len(frame)} bytes; a message has at most"
                f" {MAX_FRAME_BYTES}"
            )
        self.ensure_connection(now)
        self.streams[stream.request.id] = stream
        if self.state == "ready":
            self.outbox.append(frame)

    def release(self) -> list[Stream]:
        """Give up all open streams, so that another session can adopt them; the gateway is not told."""
        streams = list(self.streams.values())
        self.streams.clear()
        return streams

    def inquire(
        self,
        now: float,
        expects: type[Reply],
        seconds: float | None = None,
        message: FromClient | None = None,
    ) -> Question:
        """Ask for the gateway's ``Stats``, its ``Trace`` of the last ``seconds``, its ``Actors`` or its ``Welcome``, or
        have it reset its cache; for ``Adapters`` the question is ``message``."""
        self.check_open()
        if seconds is not None:
            check_seconds("seconds", seconds)
        asked_by = GetTrace(seconds=seconds) if expects is Trace else ASKED_BY.get(expects)
        question = Question(expects, message or asked_by)
        self.ensure_connection(now)
        if self.state == "ready" and expects is Welcome:
            question.answer = self.welcome
        elif self.questions.add(question):
            self.send_next_question(expects)
        return question

    def send_next_question(self, kind: type) -> None:
        """Send the oldest open question of a kind."""
        message = self.questions.next_message(kind)
        if self.state == "ready" and message is not None:
            self.outbox.append(encode_from_client(message))

    def abort(self, request_id: str) -> None:
        """Ask the gateway to end a request; its last delta then has ``finish_reason="abort"``."""
        if not isinstance(request_id, str):
            raise InvalidRequest(f"request_id={brief(request_id)} is no text", param="request_id")
        stream = self.streams.get(request_id)
        if stream is None or stream.aborted:
            return
        stream.aborted = True
        if self.state == "ready":
            self.outbox.append(encode_from_client(Abort(id=request_id)))

    def leave(self, stream: Stream) -> None:
        """End the request of a stream whose consumer wants no more, and forget it."""
        if self.streams.get(stream.request.id) is stream:
            self.abort(stream.request.id)
            del self.streams[stream.request.id]

    def close(self) -> list[Pending]:
        """Close the session; returns the streams and questions that were open, each with its error."""
        self.outbox.clear()
        failed = self.fail(lambda: ServiceUnavailable(f"the client of {self.endpoint} was closed"))
        self.state = "closed"
        return failed

    @property
    def formats(self) -> Formats:
        """The formats in which the service's model writes thoughts and calls."""
        return NO_FORMATS if self.welcome is None else self.welcome.formats

    # --- what happens -------------------------------------------------------------------------

    def receive(self, frame: bytes, now: float) -> list[Pending]:
        """Take in one frame; returns the streams and questions that have something new."""
        self.heard_at = now
        self.pinged_at = None
        try:
            message = decode_to_client(frame)
        except ProtocolError as error:
            text = f"the service at {self.endpoint} sent something that is no message: {error}"
            return self.fail(lambda: ProtocolError(text))
        if isinstance(message, Welcome):
            return self.take_welcome(message, now)
        if isinstance(message, Error):
            return self.take_error(message, now)
        self.unanswered_connections = 0
        if isinstance(message, Deltas):
            return self.take_deltas(message.items)
        return self.take_answer(type(message), message)

    def take_deltas(self, deltas: list[Delta]) -> list[Pending]:
        touched: list[Pending] = []
        formats = self.formats
        for delta in deltas:  # the hot path of every client: once for each token
            stream = self.streams.get(delta.id)
            if stream is None:
                continue  # it was on its way when the consumer left
            ends = delta.finish_reason is not None
            if stream.last is not None:
                if delta.usage is None:
                    continue
                stream.last.usage, delta, ends = delta.usage, stream.last, True
            elif delta.index not in stream.unfinished:
                continue  # of an answer that had ended, resent with the rest of the request
            else:
                stream.received[delta.index] += delta.token_ids
                if ends and stream.lacks_usage(delta):
                    stream.last = delta
                    continue
            if delta.prompt_token_ids is not None and stream.request.messages is not None:
                stream.prompt_ids = delta.prompt_token_ids
            stream.deltas.append(stream.parsed(delta, formats) if stream.request.marks else delta)
            if ends:
                stream.unfinished.remove(delta.index)
                if not stream.unfinished:
                    del self.streams[delta.id]
            touched.append(stream)
            if stream.max_waiting is not None and len(stream.deltas) > stream.max_waiting:
                self.cut_off(stream)
        return touched

    def cut_off(self, stream: Stream) -> None:
        """End a request whose consumer reads too slowly."""
        stream.deltas.clear()
        stream.error = Overloaded(
            f"the answer was not read: more than {stream.max_waiting} parts of it were waiting, the most that are"
            " kept; read faster, or ask for less at once"
        )
        self.leave(stream)

    def take_welcome(self, welcome: Welcome, now: float) -> list[Pending]:
        if self.state != "greeting":
            return []
        if welcome.protocol[:1] != [PROTOCOL[0]]:
            text = (
                f"the service at {self.endpoint} speaks protocol {welcome.protocol} and this client"
                f" {list(PROTOCOL)}: install a slipstream of the same major protocol version"
            )
            return self.fail(lambda: ProtocolError(text))
        refusal = self.refuses(welcome) if self.refuses is not None else None
        if refusal is not None:
            return self.fail(lambda: ServiceUnavailable(refusal))
        self.state = "ready"
        self.welcome = welcome
        return self.take_answer(Welcome, welcome) + self.resend(now)

    def resend(self, now: float) -> list[Pending]:
        """Resend every open request on a new connection, with what was received of its answer, and every open
        question."""
        ended: list[Pending] = []
        for stream in list(self.streams.values()):
            if stream.aborted:
                ended += self.take_deltas(
                    [
                        Delta(id=stream.request.id, index=index, finish_reason="abort")
                        for index in sorted(stream.unfinished)
                    ]
                )
                continue
            self.outbox.append(encode_from_client(stream.resumed(now)))
        for kind in self.questions.kinds():
            self.send_next_question(kind)
        return ended

    def take_error(self, error: Error, now: float) -> list[Pending]:
        if self.state == "ready" and error.code == ProtocolError.code:
            return self.reconnect(now, error.message)
        if error.id is None:
            return self.fail(lambda: from_wire(error.code, error.message, error.retry_after_s, error.param))
        self.unanswered_connections = 0
        stream = self.streams.pop(error.id, None)
        if stream is None:
            return []
        stream.error = from_wire(error.code, error.message, error.retry_after_s, error.param)
        return [stream]

    def take_answer(self, kind: type, answer: Any) -> list[Pending]:
        """Take in the answer to a question, and ask the next one of its kind."""
        answered: list[Pending] = [*self.questions.take(kind, answer)]
        if answered:
            self.send_next_question(kind)
        return answered

    # --- the connection -----------------------------------------------------------------------

    @property
    def wake_at(self) -> float | None:
        """The time at which ``tick`` is to be called; None: never."""
        if self.state == "greeting":
            return min(self.retry_at, self.unavailable_at)
        if self.state == "ready" and (self.streams or self.questions):
            if self.pinged_at is None:
                return self.heard_at + PING_AFTER_S
            return self.pinged_at + self.lost_after_s
        return None

    def tick(self, now: float) -> list[Pending]:
        """Do what is due. Before, give the session everything that has arrived."""
        due = self.wake_at
        if due is None or now < due:
            return []
        if self.state == "greeting":
            if now < self.unavailable_at:
                self.connect(now)
                return []
            return self.fail(
                lambda: ServiceUnavailable(
                    f"no service answered at {self.endpoint} within {self.timeout_s:g} s:"
                    " is it running, and is this the endpoint that it printed?"
                )
            )
        if self.pinged_at is None:
            self.pinged_at = now
            self.outbox.append(encode_from_client(Ping()))
            return []
        return self.reconnect(now, f"no answer to a ping for {self.lost_after_s:g} s")

    def reset_timers(self, now: float) -> None:
        """Count no silence for the time in which the client itself was stopped: what arrived then is not read yet."""
        self.heard_at, self.pinged_at = max(self.heard_at, now), None

    def interrupted(self, now: float) -> list[Pending]:
        """The connection broke: reconnect at once. Before, give the session everything that has arrived."""
        if self.state == "greeting":
            self.retry_at = min(self.retry_at, now + RECONNECT_DELAY_S)
        elif self.state == "ready" and (self.streams or self.questions):
            return self.reconnect(now, "the connection broke")
        elif self.state == "ready":
            self.state = "lost"
        return []

    def ensure_connection(self, now: float) -> None:
        """Before a request: connect if there is no connection, and begin to measure silence."""
        if self.state == "lost":
            self.unavailable_at = now + self.timeout_s
            self.connect(now)
        elif not self.streams and not self.questions:
            self.heard_at = max(self.heard_at, now)

    def connect(self, now: float) -> None:
        self.state = "greeting"
        self.connection += 1
        self.retry_at = now + HELLO_TIMEOUT_S
        self.pinged_at = None
        self.outbox.clear()
        self.outbox.append(encode_from_client(Hello(protocol=list(PROTOCOL), client=self.client)))

    def reconnect(self, now: float, reason: str) -> list[Pending]:
        """Make a new connection, since this one is lost or the gateway does not know it; fail if that has not helped
        several times in a row."""
        self.unanswered_connections += 1
        if self.unanswered_connections > MAX_UNANSWERED_CONNECTIONS:
            return self.fail(
                lambda: ServiceUnavailable(
                    f"the service at {self.endpoint} answers a hello and then no request,"
                    f" {MAX_UNANSWERED_CONNECTIONS} times in a row: {reason}"
                )
            )
        self.unavailable_at = now + self.timeout_s
        self.connect(now)
        return []

    def fail(self, make: Callable[[], SlipstreamError]) -> list[Pending]:
        """End everything open, each with an error object of its own; the next request connects anew."""
        failed: list[Pending] = [*self.streams.values(), *self.questions.open]
        for pending in failed:
            pending.error = make()
        self.streams.clear()
        self.questions.open.clear()
        self.unanswered_connections = 0
        self.state = "lost"
        return failed

    # --- names --------------------------------------------------------------------------------

    def check_open(self) -> None:
        if self.state == "closed":
            raise ServiceUnavailable(f"the client of {self.endpoint} was closed; make a new one")

    def new_id(self) -> str:
        self.opened += 1
        return f"{self.prefix}-{self.opened}"

    def check_id(self, request_id: str) -> str:
        if not isinstance(request_id, str) or not 0 < len(request_id) <= MAX_REQUEST_ID_CHARS:
            raise InvalidRequest(
                f"request_id={request_id!r:.80} must be a text of 1 to {MAX_REQUEST_ID_CHARS} characters",
                param="request_id",
            )
        if request_id in self.streams:
            raise InvalidRequest(
                f"request_id={request_id!r} is in use by an open request of this client", param="request_id"
            )
        return request_id
