"""Answers as streams of server-sent events, and the end of a request whose client has left."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import aclosing
from itertools import takewhile
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ....protocol.errors import ServiceUnavailable
from ....protocol.formats.reader import CallPart, ChatDelta
from ....protocol.messages import Delta, Usage
from ..bodies.requests import StreamOptions
from ..errors import is_fault, problem_of

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"

HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}
"""The last has nginx pass events on as they come."""

Batch = tuple[int, list[Delta]]
"""What has arrived, with the number of the prompt that it answers."""

Batches = AsyncGenerator[Batch, None]

encode = msgspec.json.encode


class ClientLeft(Exception):
    """The client has closed its connection: nobody is left to be answered."""


class EventWriter:
    """Base of what makes the events of a stream of its deltas."""

    last = b""
    """What every stream ends with."""

    def add(self, prompt: int, deltas: list[Delta]) -> bytes:
        """The events of what has arrived for one prompt; empty if there is nothing to send yet."""
        raise NotImplementedError

    def end(self) -> bytes:
        """The events after the last delta."""
        raise NotImplementedError

    def fail(self, error: Exception) -> bytes:
        """The event of an error that ends the stream instead."""
        raise NotImplementedError


class Events(EventWriter):
    """Events as OpenAI's completions have them: all have the same ``id``, ``created`` and ``model``."""

    last = DONE

    def __init__(self, about: dict[str, Any], options: StreamOptions | None) -> None:
        self.head = b"data: " + encode(about)[:-1]
        self.include_usage = options is not None and bool(options.include_usage)
        self.tail = b',"usage":null}\n\n' if self.include_usage else b"}\n\n"
        self.usages: list[Usage] = []
        """One for each prompt that is answered."""
        self.so_far = UsageSoFar() if options is not None and options.continuous_usage_stats else None

    def add(self, prompt: int, deltas: list[Delta]) -> bytes:
        chunks: list[bytes] = []
        for delta in merged(deltas):
            if self.so_far is not None:
                self.tail = b',"usage":%b}\n\n' % encode(self.so_far.add(prompt, delta))
            self.write(prompt, delta, chunks)
            if delta.usage is not None:
                self.usages.append(delta.usage)
        return b"".join(chunks)

    def write(self, prompt: int, delta: Delta, chunks: list[bytes]) -> None:
        """Append the events of one delta."""
        raise NotImplementedError

    def chunk(self, choice: bytes, beside: bytes = b"") -> bytes:
        """An event with one choice, and fields ``beside`` it that begin with a comma."""
        return b'%b,"choices":[%b]%b%b' % (self.head, choice, beside, self.tail)

    def fail(self, error: Exception) -> bytes:
        return event(problem_of(error).body)

    def end(self) -> bytes:
        if not self.include_usage:
            return b""
        return b'%b,"choices":[],"usage":%b}\n\n' % (self.head, encode(self.usage()))

    def usage(self) -> dict[str, Any]:
        """That of the whole answer."""
        return total_usage(self.usages)


class UsageSoFar:
    """Counts the tokens of each answer while it is made."""

    def __init__(self) -> None:
        self.prompts: dict[int, int] = {}
        self.answers: Counter[tuple[int, int]] = Counter()

    def add(self, prompt: int, delta: Delta) -> dict[str, int]:
        """The usage of the answer that ``delta`` is of, with it."""
        if delta.prompt_token_ids is not None:
            self.prompts[prompt] = len(delta.prompt_token_ids)
        self.answers[prompt, delta.index] += len(delta.token_ids)
        asked, answered = self.prompts.get(prompt, 0), self.answers[prompt, delta.index]
        return {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered}


def merged(deltas: list[Delta]) -> list[Delta]:
    """One delta per answer and batch: a stream that is behind has fewer events."""
    if len(deltas) == 1:
        return deltas
    found: dict[int, Delta] = {}
    for delta in deltas:
        first = found.setdefault(delta.index, delta)
        if first is not delta:
            first.text += delta.text
            first.token_ids += delta.token_ids
            first.logprobs += delta.logprobs
            if isinstance(first, ChatDelta) and isinstance(delta, ChatDelta):
                first.reasoning += delta.reasoning
                first.reasoning_tokens += delta.reasoning_tokens
                first.tool_calls += delta.tool_calls
            first.finish_reason, first.stop_reason = delta.finish_reason, delta.stop_reason
            first.usage = delta.usage
    return list(found.values())


def total_usage(usages: Sequence[Usage]) -> dict[str, Any]:
    prompt, completion, cached = (
        sum(getattr(usage, name) for usage in usages)
        for name in ("prompt_tokens", "completion_tokens", "cached_tokens")
    )
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def finish_reason_of(reason: str | None) -> str | None:
    if reason == "abort":
        raise ServiceUnavailable("the service ended the request before its answer was complete")
    return reason


def part_calls(parts: Sequence[CallPart]) -> tuple[list[CallPart], list[CallPart]]:
    """The parts of a delta that go on with a call of an earlier one, and so come before its text; and all others."""
    ending = list(takewhile(lambda part: not part.name, parts))
    return ending, list(parts[len(ending) :])


MAX_AT_ONCE = 1_000_000
"""Logprobs of prompts that may be on their way for one request: 200 bytes each until they are told."""


async def together(streams: list[Batches], weights: Sequence[int] | None = None) -> Batches:
    """Several streams as one. The first that fails ends them all. Of those that weigh something no more are asked for
    at once than weigh ``MAX_AT_ONCE``."""
    results: asyncio.Queue[tuple[int, Batch | BaseException | None]] = asyncio.Queue()
    waiting = deque(zip(streams, weights or [0] * len(streams), strict=True))
    pumps: list[asyncio.Task[None]] = []
    left, weight_under_way = len(streams), 0

    async def pump(stream: Batches, weight: int) -> None:
        try:
            async with aclosing(stream):
                async for batch in stream:
                    results.put_nowait((0, batch))
        except BaseException as error:
            results.put_nowait((0, error))
            raise
        results.put_nowait((weight, None))

    try:
        while left:
            while waiting and (weight_under_way == 0 or weight_under_way + waiting[0][1] <= MAX_AT_ONCE):
                stream, weight = waiting.popleft()
                weight_under_way += weight
                pumps.append(asyncio.ensure_future(pump(stream, weight)))
            weight, found = await results.get()
            weight_under_way -= weight
            if isinstance(found, BaseException):
                raise found
            if found is None:
                left -= 1
            else:
                yield found
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        for stream, _ in waiting:
            await stream.aclose()


def event(data: bytes) -> bytes:
    return b"data: %b\n\n" % data


def named_event(name: str, value: dict[str, Any]) -> bytes:
    """An event that says its type in both places, as the newer APIs have it."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), encode({"type": name} | value))


async def wait_until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_left(receive: Receive, work: Awaitable[T]) -> T:
    """The result of ``work``, which is cancelled, and with it its requests, when the client leaves first."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(wait_until_left(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientLeft
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


class EventStream(Response):
    """A stream that begins with its first delta, so that a request refused at once has its proper status."""

    def __init__(self, first: Batch, rest: Batches, events: EventWriter) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self.first = first
        self.rest = rest
        self.events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_left(receive, self.send_all(send))
        except ClientLeft:
            return

    async def send_all(self, send: Send) -> None:
        fault = None
        async with aclosing(self.rest):
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            await send(part(await events_of(self.events, *self.first)))
            try:
                async for prompt, deltas in self.rest:
                    if data := await events_of(self.events, prompt, deltas):
                        await send(part(data))
                last = self.events.end()
            except Exception as error:
                last = self.events.fail(error)
                fault = error if is_fault(error) else None
            body = last + self.events.last
            await send({"type": "http.response.body", "body": body, "more_body": False})
        if fault is not None:
            raise fault  # the client was told, and the log is to have it too


async def events_of(events: EventWriter, prompt: int, deltas: list[Delta]) -> bytes:
    """The events to send for a batch. A hundred thousand logprobs of a prompt, which are told with its first delta, are
    written beside the loop that serves streams."""
    if any(delta.prompt_logprobs is not None for delta in deltas):
        return await asyncio.to_thread(events.add, prompt, deltas)
    return events.add(prompt, deltas)


def part(data: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": True}


async def open_stream(request: Request, batches: Batches, events: EventWriter) -> Response:
    """The stream, once its first delta is there."""
    try:
        first = await unless_left(request.receive, anext(batches))
    except BaseException:
        await batches.aclose()
        raise
    return EventStream(first, batches, events)
