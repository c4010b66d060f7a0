"""The routes: the table of endpoints, and the app that finds the endpoint for a path and turns errors into answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Scope

from ...protocol.errors import SlipstreamError
from .bodies import answers
from .bodies.answers import ErrorAnswer
from .bodies.openapi import Described, document
from .bodies.requests import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    LoadAdapterBody,
    TokenizeBody,
    UnloadAdapterBody,
)
from .endpoints import about, adapters, chat, completions, development, texts
from .endpoints.dashboard import Dashboard
from .endpoints.metrics import metrics
from .entrance import OPEN
from .errors import Problem, problem_at
from .messages import endpoints as messages
from .messages.bodies import CountBody, Counted, MessagesAnswer, MessagesBody, MessagesError
from .responses import endpoints as responses
from .responses.bodies import Deleted, Items, ResponseAnswer, ResponseBody
from .service import Service


class Endpoint(NamedTuple):
    """One row of the table of endpoints."""

    method: str
    path: str
    respond: Callable[[Service, Request], Awaitable[Response]]
    summary: str
    body: type | None = None
    answer: type | None = None
    error: type = ErrorAnswer


RESPONSE = "/v1/responses/{response_id}"

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
    Endpoint(
        "POST",
        "/v1/responses",
        responses.create,
        "The next items of a conversation",
        ResponseBody,
        ResponseAnswer,
    ),
    Endpoint("GET", RESPONSE, responses.get, "A response that is kept", answer=ResponseAnswer),
    Endpoint("DELETE", RESPONSE, responses.delete, "Forget a response", answer=Deleted),
    Endpoint(
        "POST",
        f"{RESPONSE}/cancel",
        responses.cancel,
        "End a response that is made in the background",
        answer=ResponseAnswer,
    ),
    Endpoint("GET", f"{RESPONSE}/input_items", responses.items, "What a response was asked", answer=Items),
    Endpoint(
        "POST",
        "/v1/messages",
        messages.create,
        "The next message of a conversation, in Anthropic's form",
        MessagesBody,
        MessagesAnswer,
        MessagesError,
    ),
    Endpoint(
        "POST",
        "/v1/messages/count_tokens",
        messages.count_tokens,
        "Tokens of a conversation, in Anthropic's form",
        CountBody,
        Counted,
        MessagesError,
    ),
    Endpoint("GET", "/v1/models", about.models, "The model", answer=answers.ModelList),
    Endpoint("GET", "/v1/models/{model:path}", about.model, "The model", answer=answers.ModelCard),
    Endpoint(
        "POST",
        "/v1/load_lora_adapter",
        adapters.load,
        "Load an adapter while the service runs",
        LoadAdapterBody,
    ),
    Endpoint(
        "POST", "/v1/unload_lora_adapter", adapters.unload, "Take an adapter away again", UnloadAdapterBody
    ),
    Endpoint("POST", "/tokenize", texts.tokenize, "Tokens of a text", TokenizeBody, answers.Tokenized),
    Endpoint("POST", "/detokenize", texts.detokenize, "Text of tokens", DetokenizeBody, answers.Detokenized),
    Endpoint("GET", "/health", about.health, "Whether no actor hangs", answer=answers.Condition),
    Endpoint("GET", "/ready", about.ready, "Whether requests are taken", answer=answers.Condition),
    Endpoint("GET", "/metrics", metrics, "Counters and latencies for Prometheus"),
    Endpoint("GET", "/load", about.load, "How many requests are open", answer=answers.Load),
    Endpoint(
        "GET",
        "/tokenizer_info",
        about.tokenizer_info,
        "The chat template and special tokens",
        answer=answers.TokenizerInfo,
    ),
    Endpoint("GET", "/version", about.version, "The version", answer=answers.Version),
]


DEVELOPMENT = [
    Endpoint("POST", "/reset_prefix_cache", development.reset_prefix_cache, "Forget what was computed"),
    Endpoint("POST", "/start_profile", development.start_profile, "Begin a profile"),
    Endpoint(
        "POST",
        "/stop_profile",
        development.stop_profile,
        "The timeline since then, for Perfetto",
        answer=answers.Profile,
    ),
]
"""What is there with ``--server-dev-mode`` alone."""


def path_without_slash(scope: Scope, routes: Sequence[Route]) -> bool:
    """Whether there is what was asked for, but for a slash at the end of its path."""
    path = scope["path"]
    return path.endswith("/") and any(
        route.matches(dict(scope) | {"path": path.removesuffix("/")})[0] is not Match.NONE for route in routes
    )


def make_app(service: Service) -> ASGIApp:
    def route(path: str, endpoints: list[Endpoint]) -> Route:
        """All methods of a path are one route, so that it can say which there are."""
        by_method = {endpoint.method: endpoint for endpoint in endpoints}
        if "GET" in by_method:
            by_method["HEAD"] = by_method["GET"]

        async def answer(request: Request) -> Response:
            return await by_method[request.method].respond(service, request)

        return Route(path, answer, methods=list(by_method))

    async def answer_error(request: Request, error: Exception) -> Response:
        problem = problem_at(request, error)
        if problem.status == 404 and path_without_slash(request.scope, routes):
            name = quote(request.scope["path"].removesuffix("/").rpartition("/")[2])
            query = request.url.query and f"?{request.url.query}"
            # Relative, since a proxy in front may be asked by another scheme, and below another path.
            return RedirectResponse(f"../{name}{query}")
        service.errors[problem.reason] += 1
        return problem.response(request.scope["path"])

    handlers: dict[Any, Any] = dict.fromkeys(
        (Problem, SlipstreamError, HTTPException, Exception), answer_error
    )
    endpoints = [*ENDPOINTS, *DEVELOPMENT] if service.dev_mode else ENDPOINTS
    described = [
        Described(e.method, e.path, e.summary, e.body, e.answer, e.path not in OPEN, e.error)
        for e in endpoints
    ]
    bounds = {"max_model_len": service.bounds.max_model_len, "vocab_size": service.bounds.vocab_size}
    described_as = document(described, service.version, bounds)

    async def openapi(request: Request) -> Response:
        return service.answer(described_as)

    async def home(request: Request) -> Response:
        return RedirectResponse("/dashboard")

    dashboard = Dashboard(service.client, service.model)
    by_path: defaultdict[str, list[Endpoint]] = defaultdict(list)
    for endpoint in endpoints:
        by_path[endpoint.path].append(endpoint)
    own = [route(path, endpoints) for path, endpoints in by_path.items()]
    routes = [*own, Route("/openapi.json", openapi), Route("/", home), *dashboard.routes()]
    starlette = Starlette(routes=routes, exception_handlers=handlers)
    starlette.router.redirect_slashes = False
    return starlette
