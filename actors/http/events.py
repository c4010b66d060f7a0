"""Answers on their way: server-sent events, and the end of a request whose client has left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ...protocol.messages import Delta
from .errors import problem_of

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"

HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}
"""The last tells nginx to pass events on as they come."""

Batches = AsyncGenerator[tuple[int, list[Delta]], None]
"""What has arrived, with the number of the prompt that it answers."""


class ClientLeft(Exception):
    """The client has closed its connection: nobody is left to be answered."""


class Events(Protocol):
    """Makes the events of a stream from its deltas."""

    def add(self, prompt: int, deltas: list[Delta]) -> bytes:
        """The events of what has arrived for one prompt; empty if there is nothing to tell yet."""
        ...

    def end(self) -> bytes:
        """The events after the last delta, without ``[DONE]``."""
        ...


def event(data: bytes) -> bytes:
    return b"data: %b\n\n" % data


async def wait_until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_left(receive: Receive, work: Awaitable[T]) -> T:
    """What ``work`` returns; it is cancelled, and so its requests end, when the client leaves first."""
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


class Nothing(Response):
    """The answer to a client that has left."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        return


class EventStream(Response):
    """A stream that begins with its first delta, so that a request refused at once has its proper status."""

    def __init__(self, first: tuple[int, list[Delta]], rest: Batches, events: Events) -> None:
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
        async with aclosing(self.rest):
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            await send(part(self.events.add(*self.first)))
            try:
                async for prompt, deltas in self.rest:
                    if data := self.events.add(prompt, deltas):
                        await send(part(data))
                last = self.events.end()
            except Exception as error:
                last = event(problem_of(error).body)
            await send({"type": "http.response.body", "body": last + DONE, "more_body": False})


def part(data: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": True}


async def open_stream(request: Request, batches: Batches, events: Events) -> Response:
    """The stream, once its first delta is there."""
    try:
        first = await unless_left(request.receive, anext(batches))
    except BaseException:
        await batches.aclose()
        raise
    return EventStream(first, batches, events)
