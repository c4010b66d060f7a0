"""The routes, and what every request passes on its way to them."""

from __future__ import annotations

import asyncio
import hmac
import time
import uuid
from collections.abc import Callable
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...protocol.async_client import AsyncClient
from ...protocol.errors import ServiceUnavailable, SlipstreamError
from ...protocol.outputs import Collector
from .bodies import ChatBody, Sampling, read_body
from .chat import ChatEvents, chat_completion, chat_params
from .errors import Problem, answer_error, retry_after
from .events import Batches, ClientLeft, Nothing, open_stream, unless_left

OPEN = frozenset({"/health", "/ready", "/version", "/metrics"})
"""Paths that need no key: probes and scrapers have none."""

MAX_REQUEST_ID_CHARS = 128


class OpenAI:
    """The endpoints; every answer comes from ``client``."""

    def __init__(self, client: AsyncClient, options: dict[str, Any]) -> None:
        self.client = client
        self.model: str = options["model_name"]
        self.max_model_len: int = options["max_model_len"]
        self.version: str = options["version"]
        self.started = int(time.time())
        self.draining = False

    def routes(self) -> list[Route]:
        return [
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/version", self.tell_version),
            Route("/health", self.health),
        ]

    # --- answers ----------------------------------------------------------------------------------

    async def chat(self, request: Request) -> Response:
        body = await read_body(request, ChatBody)
        self.check(body)
        params = chat_params(body)
        id, created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        batches = self.ask(messages=body.messages, params=params, request_id=id)
        if body.stream:
            include_usage = body.stream_options is not None and body.stream_options.include_usage
            return await open_stream(request, batches, ChatEvents(id, created, self.model, include_usage))
        collector = Collector(id)
        await unless_left(request.receive, collect(batches, collector))
        return answer(chat_completion(id, created, self.model, collector.output()))

    async def ask(self, **asked: Any) -> Batches:
        async for deltas in self.client.batches(**asked):
            yield 0, deltas

    def check(self, body: Sampling) -> None:
        if self.draining:
            raise ServiceUnavailable("the service is stopping and accepts nothing new")
        if body.model is not None and body.model != self.model:
            raise Problem(
                404,
                f"the model {body.model!r:.200} is not served here; this is {self.model!r}",
                param="model",
                code="model_not_found",
            )

    # --- about the service ------------------------------------------------------------------------

    async def models(self, request: Request) -> Response:
        model = {
            "id": self.model,
            "object": "model",
            "created": self.started,
            "owned_by": "slipstream",
            "root": self.model,
            "parent": None,
            "max_model_len": self.max_model_len,
        }
        return answer({"object": "list", "data": [model]})

    async def tell_version(self, request: Request) -> Response:
        return answer({"version": self.version})

    async def health(self, request: Request) -> Response:
        """Whether the gateway answers."""
        try:
            await self.client.stats()
        except SlipstreamError as error:
            raise Problem(
                503, str(error), type="server_error", code="unavailable", headers=retry_after(1.0)
            ) from None
        return answer({"status": "ok"})


async def collect(batches: Batches, collector: Collector) -> None:
    async for _, deltas in batches:
        for delta in deltas:
            collector.add(delta)


def answer(body: Any) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")


class Entrance:
    """What every request passes: it gets an id, shows its key, and is counted while it is under way."""

    def __init__(self, app: ASGIApp, api_key: str | None) -> None:
        self.app = app
        self.key = None if api_key is None else api_key.encode()
        self.under_way = 0
        self.changed = asyncio.Event()
        """Set whenever a request ends; who waits for it clears it."""
        self.on_busy: Callable[[], None] = lambda: None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        told = headers.get("x-request-id", "")
        usable = 0 < len(told) <= MAX_REQUEST_ID_CHARS and told.isascii() and told.isprintable()
        id = (told if usable else uuid.uuid4().hex).encode()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", id)]
            await send(message)

        self.under_way += 1
        self.on_busy()
        try:
            if self.admits(scope, headers):
                await self.app(scope, receive, send_with_id)
            else:
                refused = Problem(
                    401,
                    "the API key is missing or wrong; send it as Authorization: Bearer KEY",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
                await refused.response()(scope, receive, send_with_id)
        except ClientLeft:
            await Nothing()(scope, receive, send)
        finally:
            self.under_way -= 1
            self.changed.set()

    def admits(self, scope: Scope, headers: Headers) -> bool:
        if self.key is None or scope["path"] in OPEN:
            return True
        scheme, _, key = headers.get("authorization", "").partition(" ")
        # In constant time: how long it takes tells nothing of the key.
        return hmac.compare_digest(key.strip().encode(), self.key) and scheme.lower() == "bearer"


def make_app(openai: OpenAI, allowed_origins: list[str]) -> ASGIApp:
    handlers: dict[Any, Any] = dict.fromkeys(
        (Problem, SlipstreamError, HTTPException, Exception), answer_error
    )
    app: ASGIApp = Starlette(routes=openai.routes(), exception_handlers=handlers)
    if allowed_origins:
        app = CORSMiddleware(
            app,
            allow_origins=allowed_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id"],
        )
    return app
