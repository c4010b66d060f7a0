"""The routes, and what every request passes on its way to them."""

from __future__ import annotations

import asyncio
import hmac
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...protocol.errors import SlipstreamError
from . import about, answers, chat, completions, texts
from .bodies import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from .dashboard import PAGES, Dashboard
from .errors import Problem, answer_error
from .events import ClientLeft
from .metrics import metrics
from .openapi import Described, document
from .service import Service

OPEN = frozenset({"/health", "/ready", "/version", "/metrics", "/openapi.json"}) | PAGES
"""Paths that need no key: probes and scrapers have none, and a page has to be there to ask for it."""

MAX_REQUEST_ID_CHARS = 128


class Endpoint(NamedTuple):
    """One row of the table of all endpoints."""

    method: str
    path: str
    respond: Callable[[Service, Request], Awaitable[Response]]
    summary: str
    body: type | None = None
    answer: type | None = None


ENDPOINTS = [
    Endpoint(
        "POST",
        "/v1/chat/completions",
        chat.create,
        "The next message of a conversation",
        ChatBody,
        answers.ChatCompletion,
    ),
    Endpoint(
        "POST",
        "/v1/completions",
        completions.create,
        "What follows a text",
        CompletionBody,
        answers.Completion,
    ),
    Endpoint("GET", "/v1/models", about.models, "The model", answer=answers.ModelList),
    Endpoint("GET", "/v1/models/{model:path}", about.model, "The model", answer=answers.ModelCard),
    Endpoint("POST", "/tokenize", texts.tokenize, "Tokens of a text", TokenizeBody, answers.Tokenized),
    Endpoint("POST", "/detokenize", texts.detokenize, "Text of tokens", DetokenizeBody, answers.Detokenized),
    Endpoint("GET", "/health", about.health, "Whether no actor hangs", answer=answers.Condition),
    Endpoint("GET", "/ready", about.ready, "Whether requests are taken", answer=answers.Condition),
    Endpoint("GET", "/metrics", metrics, "Counters and latencies for Prometheus"),
    Endpoint("GET", "/version", about.version, "The version", answer=answers.Version),
]


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
            pass  # nobody is left to be answered
        finally:
            self.under_way -= 1
            self.changed.set()

    def admits(self, scope: Scope, headers: Headers) -> bool:
        if self.key is None or scope["path"] in OPEN:
            return True
        scheme, _, key = headers.get("authorization", "").partition(" ")
        # In constant time: how long it takes tells nothing of the key.
        return hmac.compare_digest(key.strip().encode(), self.key) and scheme.lower() == "bearer"


def make_app(service: Service, allowed_origins: Sequence[str]) -> ASGIApp:
    def route(endpoint: Endpoint) -> Route:
        async def answer(request: Request) -> Response:
            return await endpoint.respond(service, request)

        return Route(endpoint.path, answer, methods=[endpoint.method])

    handlers: dict[Any, Any] = dict.fromkeys(
        (Problem, SlipstreamError, HTTPException, Exception), answer_error
    )
    described = [
        Described(e.method, e.path, e.summary, e.body, e.answer, e.path not in OPEN) for e in ENDPOINTS
    ]
    bounds = {"max_model_len": service.bounds.max_model_len, "vocab_size": service.bounds.vocab_size}
    told = document(described, service.version, bounds)

    async def openapi(request: Request) -> Response:
        return service.answer(told)

    dashboard = Dashboard(service.client, service.model)
    routes = [*map(route, ENDPOINTS), Route("/openapi.json", openapi), *dashboard.routes()]
    app: ASGIApp = Starlette(routes=routes, exception_handlers=handlers)
    if allowed_origins:
        app = CORSMiddleware(
            app,
            allow_origins=allowed_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id"],
        )
    return app
