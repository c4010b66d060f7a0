"""The blocking client: ``Client``.

It uses its socket only while one of its methods, or one of its streams, waits; between two calls nothing runs. A
``Client`` may be handed from thread to thread but is used by one at a time; a second thread that comes in while the
first waits gets a ``RuntimeError``, and so does a forked child. Give each thread and each process a client of its own.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from typing import Any, NoReturn, cast

import zmq

from ..client_key import Curve, client_key
from ..endpoints import check_endpoint
from ..errors import InvalidRequest, SlipstreamError
from ..formats.reader import ChatDelta
from ..messages import (
    Actors,
    Adapters,
    CacheReset,
    Delta,
    FromClient,
    GetAdapters,
    LoadAdapter,
    LoadedAdapter,
    Stats,
    Trace,
    UnloadAdapter,
    Welcome,
)
from ..sampling import SamplingParams
from .many import ManyRequests, OnDelta
from .outputs import RequestOutput
from .pending import Pending, Stream
from .questions import Question
from .request import check_many
from .session import NO_RESET, Message, Reply, Session
from .timeline import Timeline
from .transport import Transport, close_unused

Prompt = str | list[int]


class Client:
    """A connection to a service, for programs without an event loop.

    ``timeout_s`` is how long the service may stay away, at first and after a lost connection, before
    ``ServiceUnavailable``; how long a request may take is ``SamplingParams.deadline_s``. ``curve`` is the key
    file of this client, where the service asks for one; left out, for a ``tcp://`` endpoint, the one that
    ``SLIPSTREAM_CLIENT_KEY`` names.
    """

    def __init__(self, endpoint: str, *, timeout_s: float = 10.0, curve: Curve = None) -> None:
        self.endpoint = check_endpoint(endpoint, insecure=True)
        self._session = Session(self.endpoint, timeout_s=timeout_s)
        self._transport = Transport(self.endpoint, client_key(curve, self.endpoint))
        self._busy = threading.RLock()
        """Held by the thread that uses the client."""
        self._turning = False
        self._left: deque[Stream] = deque()
        """Streams whose consumers want no more, which the service has not been told yet."""
        self._release = weakref.finalize(
            self, close_unused, self._transport, self._busy
        )  # if nobody closes it
        try:
            self._inquire(Welcome)
        except BaseException:
            self.close()
            raise

    def __copy__(self) -> NoReturn:
        self._transport.__reduce__()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the service ends what was open. Closing twice is harmless.

        In a forked child it only forgets the connection, which stays the parent's. While another thread uses the
        client it is a ``RuntimeError``.
        """
        if self._transport.is_own_process():
            with self._use():
                self._session.close()
                self._release()
        else:
            self._session.close()

    @property
    def welcome(self) -> Welcome:
        """The service's welcome: its model and its limits."""
        return self._inquire(Welcome)

    # --- asking -------------------------------------------------------------------------------

    def generate(self, prompt: Prompt, params: SamplingParams | None = None) -> RequestOutput:
        """Ask for one answer and wait until it is finished."""
        return self._finish([{"prompt": prompt}], [params], None)[0]

    def chat(
        self,
        messages: list[Message],
        params: SamplingParams | None = None,
        *,
        tools: list[dict[str, Any]] | None = None,
        tool_choice: str | dict[str, Any] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> RequestOutput:
        """Ask for the next message of a conversation and wait until it is finished.

        ``tools`` and ``tool_choice`` are as OpenAI has them, ``chat_template_kwargs`` what else the template knows.
        What is called is in ``tool_calls`` of the output.
        """
        asked = {
            "messages": messages,
            "tools": tools,
            "tool_choice": tool_choice,
            "chat_template_kwargs": chat_template_kwargs,
        }
        return self._finish([asked], [params], None)[0]

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, *, request_id: str | None = None
    ) -> Generator[Delta, None, None]:
        """The answer as it comes. Leaving the iterator early ends the request."""
        return self._deltas(prompt=prompt, params=params, request_id=request_id)

    def stream_chat(
        self,
        messages: list[Message],
        params: SamplingParams | None = None,
        *,
        tools: list[dict[str, Any]] | None = None,
        tool_choice: str | dict[str, Any] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        request_id: str | None = None,
    ) -> Generator[ChatDelta, None, None]:
        """The next message of a conversation as it comes; the rest as for ``chat``."""
        asked = {
            "messages": messages,
            "params": params,
            "tools": tools,
            "tool_choice": tool_choice,
            "chat_template_kwargs": chat_template_kwargs,
        }
        return cast("Generator[ChatDelta, None, None]", self._deltas(**asked, request_id=request_id))

    def generate_many(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        on_delta: OnDelta | None = None,
    ) -> list[RequestOutput]:
        """Ask everything at once over this one connection; the results are in the order of ``prompts``.

        As many requests are open at a time as the service holds. The first one that fails ends the
        others and is raised, with a note that says which prompt it was.
        """
        check_many("prompts", prompts)
        asked = [{"prompt": prompt} for prompt in prompts]
        return self._finish(asked, spread(params, len(prompts)), on_delta)

    def chat_many(
        self,
        conversations: Sequence[list[Message]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: list[dict[str, Any]] | None = None,
        tool_choice: str | dict[str, Any] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        on_delta: OnDelta | None = None,
    ) -> list[RequestOutput]:
        """``generate_many`` for conversations; the rest as for ``chat``, the same for all."""
        check_many("conversations", conversations)
        same = {"tools": tools, "tool_choice": tool_choice, "chat_template_kwargs": chat_template_kwargs}
        asked = [{"messages": messages} | same for messages in conversations]
        return self._finish(asked, spread(params, len(conversations)), on_delta)

    def abort(self, request_id: str) -> None:
        """End the request of a ``stream``; its last delta has ``finish_reason="abort"``."""
        with self._use():
            self._session.abort(request_id)
            self._turn(wait=False)

    def stats(self) -> dict[str, float]:
        """The service's counters."""
        return self._inquire(Stats).counters

    def trace(self, seconds: float | None = None) -> Timeline:
        """The spans of every actor and of the device in the last ``seconds``, or as far back as they remember."""
        return Timeline.of(self._inquire(Trace, seconds), seconds)

    def actors(self) -> Actors:
        """The states of the service and of each of its actors."""
        return self._inquire(Actors)

    def reset_prefix_cache(self) -> None:
        """Empty the prefix cache, so that later requests find nothing in it; ``InvalidRequest`` where the service
        was started without ``--server-dev-mode``."""
        if not (self._inquire(CacheReset)).done:
            raise InvalidRequest(NO_RESET)

    def adapters(self) -> list[LoadedAdapter]:
        """The adapters that requests may name."""
        return self._inquire(Adapters, message=GetAdapters()).adapters

    def load_adapter(self, name: str, path: str) -> list[LoadedAdapter]:
        """Load the adapter in a folder of the service's machine; returns all that are loaded when it is.

        ``InvalidRequest`` says why it cannot be.
        """
        change = LoadAdapter(name=name, path=path)
        return self._inquire(Adapters, message=change).adapters

    def unload_adapter(self, name: str) -> list[LoadedAdapter]:
        """Take an adapter away; returns those that are left when no request is computed with it any more."""
        return self._inquire(Adapters, message=UnloadAdapter(name=name)).adapters

    # --- waiting ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _use(self) -> Iterator[None]:
        """Refuse another process than the one that connected, and a second thread at a time."""
        self._transport.check_process()
        if not self._busy.acquire(blocking=False):
            raise RuntimeError(
                "this Client is in use by another thread; a Client is used by one thread at a time:"
                f" make each thread its own, Client({self.endpoint!r})"
            )
        try:
            yield
        finally:
            self._busy.release()

    def _deltas(self, **asked: Any) -> Generator[Delta, None, None]:
        with self._use():
            stream = self._session.ask(time.monotonic(), **asked)
        try:
            with self._use():
                self._turn(wait=False)
            while stream.deltas or stream.unfinished:
                if stream.deltas:
                    yield stream.deltas.popleft()
                elif stream.error is not None:
                    raise stream.error
                else:
                    with self._use():
                        self._turn()
        finally:
            self._leave(stream)

    def _leave(self, stream: Stream) -> None:
        """The consumer wants no more of a stream.

        A generator that nobody finished can be collected anywhere: in a forked child, in another thread, in the middle
        of a turn. Then the next turn ends the request.
        """
        self._left.append(stream)
        if self._turning or not self._transport.is_own_process() or not self._busy.acquire(blocking=False):
            return
        try:
            self._forget_left()
            if self._session.outbox:
                self._turn(wait=False)
        finally:
            self._busy.release()

    def _forget_left(self) -> None:
        while self._left:
            self._session.leave(self._left.popleft())

    def _finish(
        self,
        asked: Sequence[dict[str, Any]],
        params: Sequence[SamplingParams | None],
        on_delta: OnDelta | None,
    ) -> list[RequestOutput]:
        """Keep as many requests open as the service holds until each of ``asked`` is finished."""
        with self._use():
            return self._finish_all(asked, params, on_delta)

    def _finish_all(
        self,
        asked: Sequence[dict[str, Any]],
        params: Sequence[SamplingParams | None],
        on_delta: OnDelta | None,
    ) -> list[RequestOutput]:
        many = ManyRequests(self._session, asked, params, on_delta, self.welcome.limits.max_queued_requests)
        try:
            while many.left:
                self._turn(until=many.ask(time.monotonic()))
                many.take_in(time.monotonic())
        except SlipstreamError as error:
            if len(asked) > 1:
                error.add_note(f"this was prompt {many.number} of {len(asked)}, counted from 0")
            raise
        finally:
            many.leave()
            if self._session.outbox:
                self._turn(wait=False)
        return [result for result in many.results if result is not None]

    def _inquire(
        self, expects: type[Reply], seconds: float | None = None, message: FromClient | None = None
    ) -> Reply:
        with self._use():
            question: Question = self._session.inquire(time.monotonic(), expects, seconds, message)
            while question.answer is None:
                if question.error is not None:
                    raise question.error
                self._turn()
            return question.answer

    def _turn(self, *, wait: bool = True, until: float | None = None) -> None:
        """Send what is due, wait until something arrives or is due, and take it in. The caller has the client's use."""
        self._turning = True
        try:
            self._forget_left()
            self._transport.flush(self._session)
            socket = self._transport.socket
            if socket is None:
                return
            if wait:
                deadlines = [at for at in (self._session.wake_at, until) if at is not None]
                rest = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
                self._transport.poll(rest)
            while self._transport.socket is socket:
                try:
                    frame = socket.recv(zmq.DONTWAIT)
                except zmq.Again:
                    break
                self._wake(self._session.receive(frame, time.monotonic()))
                self._transport.flush(self._session)
            if self._transport.is_broken():
                self._wake(self._session.interrupted(time.monotonic()))
                self._transport.flush(self._session)
            self._wake(self._session.tick(time.monotonic()))
            self._transport.flush(self._session)
        finally:
            self._turning = False

    def _wake(self, touched: list[Pending]) -> None:
        for pending in touched:
            if pending.waiter is not None:
                pending.waiter.append(pending)


def spread(
    params: SamplingParams | Sequence[SamplingParams] | None, count: int
) -> Sequence[SamplingParams | None]:
    """One ``SamplingParams`` per prompt, from one for all or a list of as many."""
    if params is None or isinstance(params, SamplingParams):
        return [params] * count
    if isinstance(params, str | bytes) or not isinstance(params, Sequence):
        raise InvalidRequest(
            f"params is of type {type(params).__name__}; give a SamplingParams(...), or a list with one for each",
            param="params",
        )
    if len(params) != count:
        raise InvalidRequest(
            f"{len(params)} SamplingParams for {count} prompts; give one, or one for each", param="params"
        )
    return params
