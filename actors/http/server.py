"""The process of the HTTP frontend: its socket, uvicorn, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from ipaddress import ip_address
from typing import Any

import uvicorn
from tokenizers import Tokenizer

from ...protocol.client.asynchronous import AsyncClient
from ...protocol.errors import SlipstreamError
from ..options import HttpOptions
from ..text.prompts.chat_template import ChatTemplates
from .app import make_app
from .entrance import Entrance, hosts_of
from .service import Service
from .transport.connection import Connections, HttpProtocol

BACKLOG = 1024
"""Connections that the kernel keeps until they are accepted: as many as a service holds requests by default."""

LAST_WORDS_S = 1
"""How long the errors that end requests, and the last bytes to clients, may each take when the frontend ends."""

KEEP_ALIVE_S = 30
"""How long a connection without a request is kept: longer than most pauses between requests and probes."""


class Server(uvicorn.Server):
    """Waits for its end instead of looking ten times a second: an idle service uses no CPU."""

    def __init__(self, config: uvicorn.Config, end: Callable[[float], Awaitable[None]]) -> None:
        super().__init__(config)
        self.ended = asyncio.Event()
        self.end = end

    async def main_loop(self) -> None:
        await self.ended.wait()
        await self.end(LAST_WORDS_S)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the supervisor's."""
        yield


def make_server(entrance: Entrance, most_connections: int | None = None) -> Server:
    """``most_connections``: by default as many as the process may have descriptors for."""
    protocol: Any = partial(HttpProtocol, all=Connections(most_connections))
    config = uvicorn.Config(
        entrance,
        http=protocol,
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
    return Server(config, entrance.stop)


class HttpFrontend:
    """The frontend that ``FrontendHost`` runs."""

    def __init__(self, options: HttpOptions, texts: tuple[Tokenizer, ChatTemplates | str]) -> None:
        """``texts`` is what ``load_texts`` returns."""
        self.service = Service(
            lambda: AsyncClient(options.service, curve=options.curve),
            texts,
            options.model_name,
            options.version,
            options.limits,
            options.metrics_prefix,
            options.sanitize_control_tokens,
            options.other_names,
            dev_mode=options.server_dev_mode,
            defaults=options.defaults,
            adapters=options.adapters,
            routed=options.routed,
        )
        self.listener = listen(options.endpoint)
        host, port = self.listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        self.facts: dict[str, Any] = {"endpoint": f"{shown}:{port}", "url": f"http://{shown}:{port}"}
        # With --insecure, at other addresses, anybody may ask by any name, and with * any page may.
        local = ip_address(host).is_loopback and "*" not in options.allowed_origins
        hosts = hosts_of(options.allowed_origins) if local else None
        app = make_app(self.service)
        self.entrance = Entrance(self.service, app, options.api_key, hosts, options.allowed_origins)
        self.server: Server | None = None

    @property
    def busy(self) -> bool:
        return bool(self.entrance.under_way)

    @property
    def on_busy(self) -> Callable[[], None]:
        return self.entrance.on_busy

    @on_busy.setter
    def on_busy(self, call: Callable[[], None]) -> None:
        self.entrance.on_busy = call

    async def serve(self) -> None:
        self.server = make_server(self.entrance)
        try:
            await self.server.serve(sockets=[self.listener])
        finally:
            await self.service.stop()

    async def drain(self) -> None:
        self.service.draining = True
        await self.entrance.drained()

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
