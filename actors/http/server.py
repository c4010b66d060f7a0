"""The process of the HTTP face: its socket, uvicorn, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from ...protocol.client.asynchronous import AsyncClient
from ...protocol.errors import SlipstreamError
from ..options import HttpOptions
from .app import Entrance, make_app
from .errors import Problem
from .service import Service

if TYPE_CHECKING:
    from ...runtime.process.child import StartContext

BACKLOG = 1024

MAX_HEADER_BYTES = 64 * 1024
"""Of the path and all headers of a request."""

LAST_WORDS_S = 1
"""How long the last bytes to clients may take to leave when the face ends."""

KEEP_ALIVE_S = 30
"""How long a connection without a request is kept."""


class Server(uvicorn.Server):
    """Waits for its end instead of looking ten times a second: an idle service uses no CPU."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ended = asyncio.Event()

    async def main_loop(self) -> None:
        await self.ended.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the supervisor's."""
        yield


class HttpProtocol(HttpToolsProtocol):
    """Answers what is no HTTP in the form of every other error, and bounds the headers."""

    header_bytes = 0

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.header_bytes = 0

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

    def send_400_response(self, msg: str) -> None:
        if self.transport.is_closing():
            return
        if self.header_bytes > MAX_HEADER_BYTES:
            status, msg = 431, f"path and headers have more than {MAX_HEADER_BYTES} bytes, the limit"
        else:
            status, msg = 400, "this is no HTTP request"
        body = Problem(status, msg).body
        head = "content-type: application/json\r\nconnection: close\r\ncontent-length"
        self.transport.write(b"%b%b: %d\r\n\r\n%b" % (STATUS_LINE[status], head.encode(), len(body), body))
        self.transport.close()


class HttpFace:
    """What ``FaceHost`` runs."""

    def __init__(self, options: HttpOptions) -> None:
        self.client = AsyncClient(options.door, curve=options.curve)
        self.service = Service(
            self.client,
            options.model,
            options.model_name,
            options.version,
            options.limits,
            options.metrics_prefix,
        )
        self.listener = listen(options.endpoint)
        host, port = self.listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        self.facts: dict[str, Any] = {"endpoint": f"{shown}:{port}", "url": f"http://{shown}:{port}"}
        self.entrance = Entrance(make_app(self.service, options.allowed_origins), options.api_key)
        self.server: Server | None = None

    @property
    def busy(self) -> bool:
        return self.entrance.under_way > 0

    @property
    def on_busy(self) -> Callable[[], None]:
        return self.entrance.on_busy

    @on_busy.setter
    def on_busy(self, tell: Callable[[], None]) -> None:
        self.entrance.on_busy = tell

    async def serve(self) -> None:
        config = uvicorn.Config(
            self.entrance,
            http=HttpProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=LAST_WORDS_S,
        )
        self.server = Server(config)
        try:
            await self.server.serve(sockets=[self.listener])
        finally:
            await self.client.close()

    async def drain(self) -> None:
        self.service.draining = True
        while self.entrance.under_way:
            self.entrance.changed.clear()
            await self.entrance.changed.wait()

    def stop(self) -> None:
        if self.server is not None:
            self.server.ended.set()


def listen(endpoint: str) -> socket.socket:
    """A socket that listens at ``HOST:PORT``."""
    host, _, port = endpoint.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, int(port)))
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        raise SlipstreamError(
            f"cannot listen at http://{endpoint}: {error.strerror}; choose another --http"
        ) from None
    made.setblocking(False)
    return made


def build(context: StartContext) -> HttpFace:
    """The HTTP face of a service, from its options."""
    context.phase("load tokenizer")
    return HttpFace(context.options_as(HttpOptions))
