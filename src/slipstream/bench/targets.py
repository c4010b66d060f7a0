"""The targets of ``bench serve``: a service over ZeroMQ, or any server of OpenAI's API over HTTP."""

from __future__ import annotations

import asyncio
import json
import re
import time
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

from ..protocol.client.asynchronous import AsyncClient
from ..protocol.errors import InvalidRequest, ServiceUnavailable, SlipstreamError
from ..protocol.sampling import SamplingParams

BUSY = re.compile(rb"^\S*device_busy_seconds_total\{[^}]*\} (\S+)$", re.MULTILINE)

LIMIT_S = 600.0
"""How long one request may take."""


@dataclass
class Record:
    """One request: when it was sent and what came when, in seconds of one clock."""

    sent_at: float
    prompt_tokens: int = 0
    arrivals: list[float] = field(default_factory=list)
    """When something of the answer came."""
    tokens: int = 0
    error: str | None = None


class Target(Protocol):
    """A server under load."""

    model: str

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def ask(self, prompt: list[int], tokens: int, record: Record) -> None:
        """Send a request for exactly ``tokens`` tokens, and note in ``record`` what comes."""
        ...

    async def busy_s(self) -> float | None:
        """Seconds that its device has computed so far; None if it does not say."""
        ...


class ZmqTarget:
    def __init__(self, endpoint: str) -> None:
        self.client = AsyncClient(endpoint)
        self.model = ""

    async def open(self) -> None:
        self.model = (await self.client.connect()).model

    async def close(self) -> None:
        await self.client.close()

    async def ask(self, prompt: list[int], tokens: int, record: Record) -> None:
        params = SamplingParams(max_tokens=tokens, ignore_eos=True, temperature=0.0)
        try:
            async for deltas in self.client.batches(prompt=prompt, params=params):
                record.arrivals.append(time.perf_counter())
                record.tokens += sum(len(delta.token_ids) for delta in deltas)
        except SlipstreamError as error:
            record.error = f"{type(error).__name__}: {error}"

    async def busy_s(self) -> float | None:
        return (await self.client.stats()).get("device_busy_s")


class HttpTarget:
    """Speaks to ``/v1/completions`` over connections that it keeps."""

    def __init__(self, base_url: str, model: str | None = None, api_key: str | None = None) -> None:
        parts = urlsplit(base_url)
        if parts.scheme != "http" or not parts.hostname:
            raise InvalidRequest(f"--base-url {base_url} is no http://HOST:PORT; a load needs no encryption")
        self.host, self.port = parts.hostname, parts.port or 80
        self.path = parts.path.rstrip("/").removesuffix("/v1")
        self.given_model = model
        self.model = model or ""
        self.headers = f"host: {parts.netloc}\r\n"
        if api_key is not None:
            self.headers += f"authorization: Bearer {api_key}\r\n"
        self.spare: list[Connection] = []

    async def open(self) -> None:
        try:
            status, body = await self.fetch("GET", "/v1/models")
        except OSError as error:
            raise ServiceUnavailable(f"nothing listens at {self.host}:{self.port}: {error}") from None
        if status != 200:
            raise ServiceUnavailable(
                f"GET /v1/models is answered with {status}: {body[:200].decode(errors='replace')}"
            )
        if self.given_model is None:
            self.model = json.loads(body)["data"][0]["id"]

    async def close(self) -> None:
        for connection in self.spare:
            connection.transport.close()

    async def ask(self, prompt: list[int], tokens: int, record: Record) -> None:
        body = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0.0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        try:
            answer = await self.request("POST", "/v1/completions", json.dumps(body).encode(), record)
        except (OSError, TimeoutError) as error:
            record.error = f"{type(error).__name__}: {error}"
            return
        if answer.status != 200:
            record.error = f"status {answer.status}: {bytes(answer.body[:200]).decode(errors='replace')}"
            return
        *_, usage = [line for line in answer.body.split(b"\n") if line.startswith(b"data: {")] or [b""]
        last = json.loads(usage.removeprefix(b"data: ") or b"{}")
        if last.get("usage") is None:
            record.error = f"a stream without usage at its end: {usage[:200].decode(errors='replace')}"
            return
        record.tokens = last["usage"]["completion_tokens"]

    async def busy_s(self) -> float | None:
        status, body = await self.fetch("GET", "/metrics")
        found = BUSY.search(body) if status == 200 else None
        return None if found is None else float(found[1])

    async def fetch(self, method: str, path: str) -> tuple[int, bytes]:
        answer = await self.request(method, path, b"", None)
        return answer.status, bytes(answer.body)

    async def request(self, method: str, path: str, body: bytes, record: Record | None) -> Connection:
        connection = self.spare.pop() if self.spare else None
        if connection is None or connection.transport.is_closing():
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(Connection, self.host, self.port)
        head = f"{method} {self.path}{path} HTTP/1.1\r\n{self.headers}content-type: application/json\r\n"
        head += f"content-length: {len(body)}\r\n\r\n"
        done = connection.begin(record)
        connection.transport.write(head.encode() + body)
        await asyncio.wait_for(done, LIMIT_S)
        if connection.keeps:
            self.spare.append(connection)
        else:
            connection.transport.close()
        return connection


class Connection(asyncio.Protocol):
    """One connection. ``httptools`` reads what comes, so that the client costs little beside the server."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.status = 0
        self.body = bytearray()
        self.keeps = False
        self.record: Record | None = None
        self.done: asyncio.Future[None] | None = None
        self.parser: Any = None

    def begin(self, record: Record | None) -> asyncio.Future[None]:
        """Ready for the next answer; the future is done when it is complete."""
        from httptools import HttpResponseParser

        self.status, self.record = 0, record
        self.body.clear()
        self.parser = HttpResponseParser(self)
        self.done = asyncio.get_running_loop().create_future()
        return self.done

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self.done is not None and not self.done.done():
            self.done.set_exception(exc or ConnectionResetError("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        size = len(self.body)
        self.parser.feed_data(data)
        if self.record is not None and b"data: {" in memoryview(self.body)[size:].tobytes():
            self.record.arrivals.append(time.perf_counter())

    # --- what the parser calls ------------------------------------------------------------------

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_headers_complete(self) -> None:
        self.status = self.parser.get_status_code()
        self.keeps = self.parser.should_keep_alive()

    def on_message_complete(self) -> None:
        if self.done is not None and not self.done.done():
            self.done.set_result(None)
