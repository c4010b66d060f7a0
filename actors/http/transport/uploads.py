"""Bodies of requests: how they come in, within a time and a budget, and how they are decoded, within bounds."""

from __future__ import annotations

import asyncio
import codecs
import re
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from ....protocol.codec import UNKNOWN, convert, explain, field_of, mendable
from ....protocol.errors import Overloaded, ServiceUnavailable
from ....protocol.limits import MAX_ALL_ITEMS, MAX_CONTAINERS, MAX_DEPTH, MAX_FRAME_BYTES
from ..errors import STOPPED, Problem
from .events import ClientLeft

MAX_BODY_BYTES = MAX_FRAME_BYTES
"""Most bytes of a body, which has to fit into a frame to the gateway."""

MAX_READ_AWAY_BYTES = 4 * MAX_BODY_BYTES
"""How much is read of a body that is too long, so that its sender, who may not listen before, hears that it is."""

SMALL_BODY_BYTES = 64 * 1024
"""A body up to this size needs no room in the budget, since uvicorn holds as much for every connection anyway,
and is decoded at once: it takes less than a millisecond."""

MAX_BYTES_ON_THEIR_WAY = 4 * MAX_BODY_BYTES
"""Most bytes of all larger bodies together, from their first byte until they are decoded."""

BODY_S = 60.0
"""How long a body may take to come: the largest does at 2.3 Mbit/s."""

NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What reading hostile bytes raises, beyond that they are JSON of another type."""

CHARSET = re.compile(r';\s*charset\s*=\s*"?([^";\s]*)', re.IGNORECASE)
"""The parameter of a ``Content-Type``."""

T = TypeVar("T")


class Uploads:
    """The bodies that are on their way."""

    def __init__(self) -> None:
        self.open = 0
        """Requests whose body has not come: they are not accepted yet, so no drain waits for them."""
        self.bytes = 0
        self.deadlines: set[asyncio.Timeout] = set()
        self.stopped = False
        self.decoder = ThreadPoolExecutor(1, "decode")
        """Decodes large bodies, one at a time, beside the loop that serves streams."""

    async def read(self, request: Request, kind: type[T]) -> T:
        """The body of a request as ``kind``."""
        check_headers(request)
        self.open += 1
        try:
            async with self.received(request) as data:
                request.state.large = len(data) > SMALL_BODY_BYTES
                if not request.state.large:
                    return decode_body(data, kind)
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self.decoder, decode_body, data, kind)
        finally:
            self.open -= 1

    def stop(self) -> None:
        """Wait for no body any more."""
        self.stopped = True
        for deadline in self.deadlines:
            deadline.reschedule(0.0)

    @asynccontextmanager
    async def deadline(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(0.0 if self.stopped else BODY_S) as deadline:
                self.deadlines.add(deadline)
                try:
                    yield
                finally:
                    self.deadlines.discard(deadline)
        except TimeoutError:
            if self.stopped:
                raise ServiceUnavailable(STOPPED) from None
            message = f"the body did not come within {BODY_S:g} s; send it faster, or shorten it"
            raise Problem(408, message, headers={"Connection": "close"}) from None

    @asynccontextmanager
    async def received(self, request: Request) -> AsyncIterator[bytearray]:
        """The body, which counts as on its way until it has been dealt with."""
        data = bytearray()
        counted = 0
        try:
            async with self.deadline():
                async for part in parts_of(request):
                    data += part
                    if len(data) > SMALL_BODY_BYTES:
                        more = len(data) - counted
                        if self.bytes + more > MAX_BYTES_ON_THEIR_WAY:
                            raise Overloaded(
                                f"bodies of {self.bytes} bytes are on their way, and {MAX_BYTES_ON_THEIR_WAY} are the"
                                " most at once; send it again later"
                            )
                        self.bytes += more
                        counted += more
            yield data
        finally:
            self.bytes -= counted


def check_headers(request: Request) -> None:
    """Refuse a body that is no plain JSON in UTF-8."""
    type = request.headers.get("content-type", "")
    if type.partition(";")[0].strip().lower() != "application/json":
        # Besides, a web page of another origin can send any other type without asking.
        raise Problem(415, f"the content type is {type!r:.80}; send JSON as application/json")
    charset = CHARSET.search(type)
    if charset is not None and charset[1].lower() not in ("utf-8", "utf8"):
        raise Problem(415, f"Content-Type says charset={charset[1]:.40}; send JSON in UTF-8, as JSON is")
    coding = request.headers.get("transfer-encoding", "chunked")
    if coding.strip().lower() != "chunked":
        raise Problem(501, f"Transfer-Encoding is {coding!r:.80}; send the body as it is, chunked at most")
    encoding = ", ".join(request.headers.getlist("content-encoding")) or "identity"
    if encoding.strip().lower() != "identity":
        message = f"Content-Encoding is {encoding!r:.80}; send the body as it is, without one"
        raise Problem(415, message, headers={"Accept-Encoding": "identity"})


async def parts_of(request: Request) -> AsyncIterator[bytes]:
    """The body, as it comes. Of one that is too long the rest is read away."""
    length = request.headers.get("content-length", "0")
    size = int(length[:20]) if length.isdecimal() else 0
    try:
        if size <= MAX_READ_AWAY_BYTES:
            size = 0
            async for part in request.stream():
                size += len(part)
                if size <= MAX_BODY_BYTES:
                    yield part
                elif size > MAX_READ_AWAY_BYTES:
                    break
    except ClientDisconnect:
        raise ClientLeft from None
    if size > MAX_BODY_BYTES:
        raise Problem(413, f"the body has more than {MAX_BODY_BYTES} bytes, the limit; shorten it")


# --- decoding -----------------------------------------------------------------------------------


def decode_body(data: bytes | bytearray, kind: type[T]) -> T:
    """``data`` as ``kind``; a ``Problem`` names the field, the value and what was expected."""
    if data.startswith(codecs.BOM_UTF8):  # PowerShell and others put it before what they send
        data = data[len(codecs.BOM_UTF8) :]
    try:
        check_bounds(data)
        try:
            return msgspec.json.decode(data, type=kind)
        except msgspec.ValidationError as error:
            if mendable(error) is None:
                raise
            return convert(msgspec.json.decode(data), kind)
    except msgspec.ValidationError as error:
        field = field_of(error)
        if str(error).startswith(UNKNOWN):
            message = f"{field} is no field of this request; /openapi.json has those that are: leave it out"
        else:
            message = complaint(error, data, kind)
        raise Problem(400, message, param=field) from None
    except RecursionError:
        raise Problem(400, f"the body is nested too deep; the limit is {MAX_DEPTH} lists and maps") from None
    except NOT_JSON as error:
        if b"\0" in data[:4] or data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise Problem(400, "the body is in UTF-16 or UTF-32; send it in UTF-8") from None
        if half := lone_surrogate(data):
            message = f"the body is no JSON: it has {half}, half of a character; cut texts between characters"
            raise Problem(400, message) from None
        raise Problem(400, f"the body is no JSON: {error}") from None


SURROGATES = re.compile(
    rb"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)
"""In JSON text: a backslash, a character as two escapes, and, as its group, one of them alone."""


def lone_surrogate(data: bytes | bytearray) -> str:
    """The first escape that is half of a character, as of texts that were cut by their UTF-16; empty if none is."""
    found = next((match[1] for match in SURROGATES.finditer(data) if match[1]), b"")
    return found.decode()


def complaint(error: msgspec.ValidationError, data: bytes | bytearray, kind: Any) -> str:
    try:
        return explain(error, msgspec.json.decode(data), kind)
    except NOT_JSON:
        return str(error)


def check_bounds(data: bytes | bytearray) -> None:
    """Refuse JSON text with more in it than a frame may have, before it is decoded: a byte of it can become a
    hundred bytes of memory."""
    containers, items = data.count(b"[") + data.count(b"{"), data.count(b",")
    if containers > MAX_CONTAINERS or items > MAX_ALL_ITEMS:  # those in strings are none: count again
        containers = items = 0
        for part in without_strings(data):
            containers += part.count(b"[") + part.count(b"{")
            items += part.count(b",")
            if containers > MAX_CONTAINERS:
                raise Problem(400, f"the body has more than {MAX_CONTAINERS} arrays and objects; send fewer")
            if items > MAX_ALL_ITEMS:
                raise Problem(400, f"the body has more than {MAX_ALL_ITEMS} values; send fewer")


PIECE = 64 * 1024
"""Bytes that are looked through at a time, about 3 ms, since the interpreter lock is held meanwhile."""

STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
WHOLE = re.compile(rb'(?:[^"]++|"(?:[^"\\]++|\\.)*+")*+', re.DOTALL)
"""JSON text up to a string that does not end."""


def without_strings(data: bytes | bytearray) -> Iterator[bytes]:
    """JSON text in parts, without what is in its strings."""
    start = 0
    while start < len(data):
        found = WHOLE.match(data, start, start + PIECE)
        end = start if found is None else found.end()
        if end > start:
            yield STRING.sub(b"", data[start:end])
        else:  # a string that is longer than a piece
            end = end_of_string(data, start + 1)
        start = end


def end_of_string(data: bytes | bytearray, start: int) -> int:
    """Behind the quote that ends the string that begins at ``start``."""
    while True:
        quote = data.find(b'"', start)
        if quote < 0:
            return len(data)
        before = quote
        while before > start and data[before - 1] == 0x5C:  # a backslash
            before -= 1
        start = quote + 1
        if (quote - before) % 2 == 0:
            return start
