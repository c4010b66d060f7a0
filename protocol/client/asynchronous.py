"""The client for asyncio: ``AsyncClient``.

The socket is a plain one whose file descriptor the event loop watches, as it does that of the monitor that
reports when the connection breaks. ZeroMQ signals that descriptor
only on the edge, so each turn empties the socket and looks at it again after each send. One client
belongs to one event loop; any number of its streams run at once in it. Another loop, another thread or a forked
child that uses it gets a ``RuntimeError``.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import AsyncGenerator
from typing import Any, NoReturn, cast

import zmq

from ..client_key import Curve, client_key
from ..endpoints import check_endpoint
from ..errors import InvalidRequest
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
from .blocking import Prompt
from .loop_transport import LoopTransport
from .outputs import Collector, RequestOutput
from .pending import Pending, Stream
from .session import NO_RESET, Message, Reply, Session
from .timeline import Timeline

FRAMES_AT_ONCE = 256
"""Most frames taken from the socket before other callbacks of the loop have their turn."""


class AsyncClient:
    """A connection to a service.

    ``timeout_s`` is how long the service may stay away, at first and after a lost connection, before
    ``ServiceUnavailable``; how long a request may take is ``SamplingParams.deadline_s``. ``curve`` is the key
    file of this client, where the service asks for one; left out, for a ``tcp://`` endpoint, the one that
    ``SLIPSTREAM_CLIENT_KEY`` names.
    """

    def __init__(self, endpoint: str, *, timeout_s: float = 10.0, curve: Curve = None) -> None:
        self.endpoint = check_endpoint(endpoint, insecure=True)
        self._session = Session(self.endpoint, timeout_s=timeout_s)
        self._transport = LoopTransport(self.endpoint, client_key(curve, self.endpoint), self._receive)
        self._release = weakref.finalize(self, self._transport.close)  # for a client that nobody closes
        self._timer: asyncio.TimerHandle | None = None

    def __copy__(self) -> NoReturn:
        self._transport.__reduce__()

    async def __aenter__(self) -> AsyncClient:
        try:
            await self.connect()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def connect(self) -> Welcome:
        """Connect and return the service's welcome: its model and its limits. Requests connect by themselves."""
        return await self._inquire(Welcome)

    async def close(self) -> None:
        """Close the connection; the service ends what was open. Closing twice is harmless.

        In a forked child it only forgets the connection, which stays the parent's. Where the client's event loop is
        alive and another one than this it is a ``RuntimeError``.
        """
        if not self._transport.is_own_process():
            self._session.close()
            return
        if self._transport.loop is not None and not self._transport.loop.is_closed():
            self._check()
        if self._session.state != "closed":
            self._wake(self._session.close())
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._release()

    # --- asking -------------------------------------------------------------------------------

    def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        traceparent: str = "",
    ) -> AsyncGenerator[Delta, None]:
        """The answer as it comes. Leaving the iterator early ends the request. ``traceparent`` is the trace that it is
        part of, where the service sends spans."""
        return self._deltas(prompt=prompt, params=params, request_id=request_id, traceparent=traceparent)

    def chat(
        self,
        messages: list[Message],
        params: SamplingParams | None = None,
        *,
        tools: list[dict[str, Any]] | None = None,
        tool_choice: str | dict[str, Any] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        request_id: str | None = None,
    ) -> AsyncGenerator[ChatDelta, None]:
        """The next message of a conversation as it comes: ``reasoning``, then ``text`` and ``tool_calls``.

        ``tools`` and ``tool_choice`` are as OpenAI has them, ``chat_template_kwargs`` what else the template knows.
        """
        asked = {
            "messages": messages,
            "params": params,
            "tools": tools,
            "tool_choice": tool_choice,
            "chat_template_kwargs": chat_template_kwargs,
        }
        return cast("AsyncGenerator[ChatDelta, None]", self._deltas(**asked, request_id=request_id))

    def batches(self, **asked: Any) -> AsyncGenerator[list[Delta], None]:
        """``generate`` or ``chat`` (``prompt=`` or ``messages=``, ``params=``, …), each time with everything that
        has arrived: a consumer that is behind catches up."""
        return self._batches(**asked)

    async def complete(self, prompt: Prompt, params: SamplingParams | None = None) -> RequestOutput:
        """The finished answer."""
        stream = self._ask(prompt=prompt, params=params, return_prompt_ids=True)
        return await self._finish(stream, Collector(stream.request.id, prompt))

    async def complete_chat(
        self,
        messages: list[Message],
        params: SamplingParams | None = None,
        *,
        tools: list[dict[str, Any]] | None = None,
        tool_choice: str | dict[str, Any] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> RequestOutput:
        """The finished next message of a conversation; the rest as for ``chat``."""
        stream = self._ask(
            messages=messages,
            params=params,
            tools=tools,
            tool_choice=tool_choice,
            chat_template_kwargs=chat_template_kwargs,
            return_prompt_ids=True,
        )
        return await self._finish(stream, Collector(stream.request.id))

    def abort(self, request_id: str) -> None:
        """End a request by the id that ``generate`` was given; its last delta says ``abort``."""
        self._check()
        self._session.abort(request_id)
        self._send()

    async def stats(self) -> dict[str, float]:
        """The service's counters."""
        return (await self._inquire(Stats)).counters

    async def trace(self, seconds: float | None = None) -> Timeline:
        """The spans of every actor and of the device in the last ``seconds``, or as far back as they remember."""
        return Timeline.of(await self._inquire(Trace, seconds), seconds)

    async def actors(self) -> Actors:
        """The states of the service and of each of its actors."""
        return await self._inquire(Actors)

    async def reset_prefix_cache(self) -> None:
        """Empty the prefix cache, so that later requests find nothing in it; ``InvalidRequest`` where the service
        was started without ``--server-dev-mode``."""
        if not (await self._inquire(CacheReset)).done:
            raise InvalidRequest(NO_RESET)

    async def adapters(self) -> list[LoadedAdapter]:
        """The adapters that requests may name."""
        return (await self._inquire(Adapters, message=GetAdapters())).adapters

    async def load_adapter(self, name: str, path: str) -> list[LoadedAdapter]:
        """Load the adapter in a folder of the service's machine; returns all that are loaded when it is.

        ``InvalidRequest`` says why it cannot be.
        """
        change = LoadAdapter(name=name, path=path)
        return (await self._inquire(Adapters, message=change)).adapters

    async def unload_adapter(self, name: str) -> list[LoadedAdapter]:
        """Take an adapter away; returns those that are left when no request is computed with it any more."""
        return (await self._inquire(Adapters, message=UnloadAdapter(name=name))).adapters

    # --- waiting ------------------------------------------------------------------------------

    async def _deltas(self, **asked: Any) -> AsyncGenerator[Delta, None]:
        stream = self._ask(**asked)
        deltas = stream.deltas
        try:
            while deltas or stream.unfinished:
                if deltas:
                    yield deltas.popleft()
                else:
                    await self._wait_for(stream)
        finally:
            self._leave(stream)

    async def _batches(self, **asked: Any) -> AsyncGenerator[list[Delta], None]:
        stream = self._ask(**asked)
        try:
            while stream.deltas or stream.unfinished:
                if stream.deltas:
                    batch = list(stream.deltas)
                    stream.deltas.clear()
                    yield batch
                else:
                    await self._wait_for(stream)
        finally:
            self._leave(stream)

    async def _finish(self, stream: Stream, collector: Collector) -> RequestOutput:
        try:
            while stream.deltas or stream.unfinished:
                while stream.deltas:
                    collector.add(stream.deltas.popleft())
                if stream.unfinished:
                    await self._wait_for(stream)
        finally:
            self._leave(stream)
        return collector.output()

    async def _inquire(
        self, expects: type[Reply], seconds: float | None = None, message: FromClient | None = None
    ) -> Reply:
        loop = self._attach()
        question = self._session.inquire(loop.time(), expects, seconds, message)
        self._send()
        while question.answer is None:
            await self._wait_for(question)
        return question.answer

    async def _wait_for(self, pending: Pending) -> None:
        """Wait until something has come for ``pending``, or raise its error."""
        if pending.error is not None:
            raise pending.error
        loop = asyncio.get_running_loop()
        if loop is not self._transport.loop:  # whose thread and process are the client's
            loop = self._attach()
        pending.waiter = loop.create_future()
        await pending.waiter

    def _wake(self, touched: list[Pending]) -> None:
        loop = self._transport.loop
        if loop is None or loop.is_closed():
            return  # nobody waits in it any more
        for pending in touched:
            waiter = pending.waiter
            if waiter is not None:
                pending.waiter = None
                if not waiter.done():
                    waiter.set_result(None)

    # --- the connection -----------------------------------------------------------------------

    def _attach(self) -> asyncio.AbstractEventLoop:
        """The running loop, which from now on is this client's."""
        loop = asyncio.get_running_loop()
        if self._transport.loop is None:
            self._transport.loop, self._transport.thread = loop, threading.get_ident()
        self._check()
        return loop

    def _check(self) -> None:
        """Refuse another process, event loop or thread than the one that first used it."""
        self._transport.check_process()
        if not self._transport.is_here():
            raise RuntimeError(
                "an AsyncClient belongs to the event loop that first used it; make a new one for another loop or thread"
            )

    def _ask(self, **asked: Any) -> Stream:
        stream = self._session.ask(self._attach().time(), **asked)
        self._send()
        return stream

    def _leave(self, stream: Stream) -> None:
        """The consumer wants no more of a stream; a generator that nobody finished can be collected anywhere."""
        loop = self._transport.loop
        if loop is None or loop.is_closed() or not self._transport.is_own_process():
            return
        if self._transport.is_here():
            self._session.leave(stream)
            self._send()
        else:
            loop.call_soon_threadsafe(self._leave, stream)

    def _send(self) -> None:
        """Send what is due, and see to the clock."""
        sends = bool(self._session.outbox)
        self._transport.flush(self._session)
        if sends:
            self._look_again()
        self._set_timer()

    def _look_again(self) -> None:
        """A send may have used up the edge that signalled a frame."""
        loop, socket = self._transport.loop, self._transport.socket
        if loop is not None and socket is not None and int(socket.get(zmq.EVENTS)) & zmq.POLLIN:
            loop.call_soon(self._receive)

    def _receive(self) -> None:
        """Take in what has arrived, and wake those who wait for it."""
        loop, socket, session = self._transport.loop, self._transport.socket, self._session
        if loop is None or socket is None:
            return  # closed between the signal and this call
        now = loop.time()
        for _ in range(FRAMES_AT_ONCE):
            try:
                frame = socket.recv(zmq.DONTWAIT)
            except zmq.Again:
                break
            self._wake(session.receive(frame, now))
            if session.outbox or session.state != "ready":
                self._send()
            if self._transport.socket is not socket:
                return
        else:
            loop.call_soon(self._receive)
            return
        if self._transport.is_broken():
            self._wake(session.interrupted(now))
            self._send()
        self._look_again()

    def _set_timer(self) -> None:
        """Have the session told the time when it wants to know."""
        due = self._session.wake_at
        if due is None or self._transport.loop is None:
            return
        if self._timer is not None:
            if self._timer.when() <= due:
                return  # one that rings too early only looks at the clock
            self._timer.cancel()
        self._timer = self._transport.loop.call_at(due, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._receive()  # what has arrived meanwhile counts as heard
        if self._transport.loop is not None:
            self._wake(self._session.tick(self._transport.loop.time()))
        self._send()
