"""One HTTP connection: what uvicorn's does, within bounds of time, size and number.

The attributes of uvicorn's protocol that are used here are no public interface, which is why its version is
bounded in ``pyproject.toml`` and each of them has a test.
"""

from __future__ import annotations

import asyncio
import re
import resource
import time
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from ....protocol.errors import DEFAULT_RETRY_AFTER_S
from ..entrance import date_at, new_request_id
from ..errors import Problem, retry_after
from .upgrades import Parser, framing

MAX_HEADER_BYTES = 64 * 1024
"""Most bytes of the path and all headers of a request. Proxies in front have their own, lower or equal limits: nginx 32
KiB, AWS's load balancers 64 KiB."""

HEADERS_S = 20.0
"""Time for path and headers to come, from the beginning of a connection or a request: the default of Apache's
mod_reqtimeout."""

UNREAD_S = 30.0
"""Time for which a client may read nothing of an answer while more than 64 KiB of it wait; then it is cut off, so that
its memory comes back."""

MAX_WAITING_REQUESTS = 8
"""Requests that may wait on a connection for the answer to another while it is read on: only by reading is it seen that
the client has left."""

ABSOLUTE = re.compile(rb"https?://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)
"""What is asked for in the form that proxies are asked in."""

RESERVED_DESCRIPTORS = 256
"""Left for everything but HTTP connections: the event loop, pages, 17 connections to the gateway."""


class Connections:
    """All connections of the frontend, so that there are always fewer than the process may have descriptors.

    Where there are too many, the one that has been without a request for longest is closed. So a client that opens
    connections only to hold them locks nobody out.
    """

    def __init__(self, most: int | None = None) -> None:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.most = max(16, soft - RESERVED_DESCRIPTORS) if most is None else most
        self.open: set[HttpProtocol] = set()
        self.idle: dict[HttpProtocol, None] = {}
        """Connections without a request, in the order in which they became so."""

    def add(self, connection: HttpProtocol) -> None:
        self.open.add(connection)
        self.idle[connection] = None
        if len(self.open) > self.most:
            longest = next(iter(self.idle))
            self.discard(longest)
            if longest.cycle is not None:  # an answer now could be taken for that to its next request
                longest.transport.close()
                return
            message = f"there are {self.most} HTTP connections, the most at once; try again later"
            longest.leave(503, message, retry_after(DEFAULT_RETRY_AFTER_S))

    def discard(self, connection: HttpProtocol) -> None:
        self.open.discard(connection)
        self.idle.pop(connection, None)

    def set_idle(self, connection: HttpProtocol) -> None:
        if connection in self.open:
            self.idle[connection] = None

    def set_busy(self, connection: HttpProtocol) -> None:
        self.idle.pop(connection, None)


class HttpProtocol(HttpToolsProtocol):
    """A connection that keeps to these bounds, and answers what is no HTTP in the form of every other error."""

    def __init__(self, *given: Any, all: Connections, **named: Any) -> None:
        super().__init__(*given, **named)
        self.parser = Parser(self)
        self.all = all
        self.header_bytes = 0
        self.unknown_version = False
        self.unanswered: list[RequestResponseCycle] = []
        """The request that is being answered, and those that wait for that."""
        self.headers_due: asyncio.TimerHandle | None = None
        self.reading_due: asyncio.TimerHandle | None = None

    # --- its life -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.expect_headers()
        self.all.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.all.discard(self)
        for timer in (self.headers_due, self.reading_due):
            if timer is not None:
                timer.cancel()
        for cycle in self.unanswered:  # uvicorn tells only the last one
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle is None or self.cycle.response_complete:  # no other was sent meanwhile
            self.all.set_idle(self)

    # --- a request ----------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.header_bytes = 0
        self.expect_headers()

    def expect_headers(self) -> None:
        if self.headers_due is None:
            self.headers_due = self.loop.call_later(HEADERS_S, self.headers_late)

    def headers_late(self) -> None:
        self.headers_due = None
        self.leave(408, f"path and headers did not come within {HEADERS_S:g} s")

    def on_url(self, url: bytes) -> None:
        self.count_header(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.count_header(len(name) + len(value))
        super().on_header(name, value)

    def count_header(self, size: int) -> None:
        self.header_bytes += size
        if self.header_bytes > MAX_HEADER_BYTES:
            raise ValueError(f"more than {MAX_HEADER_BYTES} bytes of headers")

    def on_headers_complete(self) -> None:
        if self.headers_due is not None:
            self.headers_due.cancel()
            self.headers_due = None
        self.all.set_busy(self)
        if self.parser.get_http_version() >= "2":
            self.unknown_version = True
            raise ValueError("a version of HTTP that is not spoken in the clear")
        self.take_target()
        super().on_headers_complete()
        self.unanswered = [cycle for cycle in self.unanswered if not cycle.response_complete]
        self.unanswered.append(self.cycle)
        if 0 < len(self.pipeline) <= MAX_WAITING_REQUESTS:
            self.flow.resume_reading()
        if self.scope["http_version"] == "1.0":
            cycle: Any = self.cycle
            cycle.send = Unframed(self.cycle).send

    def take_target(self) -> None:
        """Take the host of a request that names a whole URI from there, whatever its header says (RFC 9112, 3.2.2)."""
        named = ABSOLUTE.fullmatch(self.url)
        if named is None:
            return
        host, path = named.groups()
        self.url = path if path.startswith(b"/") else b"/" + path
        places = [place for place, (name, _) in enumerate(self.headers) if name == b"host"]
        if len(places) == 1:
            self.headers[places[0]] = (b"host", host)
        elif not places and self.parser.get_http_version() == "1.0":
            self.headers.append((b"host", host))

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade() and framing(self.headers):
            return  # its body is still to come
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        if self.header_bytes > MAX_HEADER_BYTES:
            self.leave(431, f"path and headers have more than {MAX_HEADER_BYTES} bytes, the limit")
        elif self.unknown_version:
            self.leave(505, "HTTP/1.1 and 1.0 are spoken here; for HTTP/2 put a proxy in front")
        else:
            self.leave(400, "this is no HTTP request")

    def leave(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        """Answer what has not become a request, and close the connection."""
        if self.transport.is_closing():
            return
        body = Problem(status, message).body
        named = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
            "date": date_at(int(time.time())).decode(),
            "x-request-id": new_request_id(),
        } | (headers or {})
        head = "".join(f"{name}: {value}\r\n" for name, value in named.items())
        self.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[status], head.encode(), body))
        self.transport.close()

    # --- a client that does not read ----------------------------------------------------------

    def pause_writing(self) -> None:
        super().pause_writing()
        self.reading_due = self.loop.call_later(UNREAD_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.reading_due is not None:
            self.reading_due.cancel()
            self.reading_due = None


class Unframed:
    """The answer to a request of HTTP/1.0, which knows no chunks: one of unknown length ends with the connection."""

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self.cycle = cycle
        self.pass_on = cycle.send
        self.length_known = False

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.length_known = any(name.lower() == b"content-length" for name, _ in message["headers"])
            if not self.length_known:
                self.cycle.chunked_encoding = False
        elif not self.length_known and self.cycle.scope["method"] != "HEAD":
            self.cycle.expected_content_length += len(message.get("body", b""))
        await self.pass_on(message)
