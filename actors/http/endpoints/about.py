"""Endpoints about the service itself: its model, its version, its health."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ....protocol.errors import DEFAULT_RETRY_AFTER_S, ServiceUnavailable
from ....protocol.messages import Actors, LoadedAdapter
from ..errors import retry_after
from ..service import Service

ANSWER_S = 2.0
"""Time that the gateway has to report on the actors before the service counts as unhealthy: above its restart, and
below the usual timeouts of health checks."""


async def models(service: Service, request: Request) -> Response:
    """All there are, on one page, with the fields of OpenAI's and of Anthropic's list."""
    cards = model_cards(service, await service.client.adapters() if service.adapters else [])
    page = {"first_id": cards[0]["id"], "last_id": cards[-1]["id"], "has_more": False}
    return service.answer({"object": "list", "data": cards} | page)


async def model(service: Service, request: Request) -> Response:
    name = request.path_params["model"]
    service.check(name)
    loaded = await service.client.adapters() if service.adapters else []
    found = [card for card in model_cards(service, loaded) if card["id"] == name]
    if not found:
        raise service.no_adapter(name, loaded)
    return service.answer(found[0])


def model_cards(service: Service, loaded: Sequence[LoadedAdapter]) -> list[dict[str, object]]:
    """The model by each of its names, and the adapters, whose parent it is."""
    cards = [model_card(service, name, service.model, None) for name in service.names]
    return cards + [model_card(service, one.name, one.path, service.model) for one in loaded]


def model_card(service: Service, name: str, root: str, parent: str | None) -> dict[str, object]:
    return {
        "id": name,
        "object": "model",
        "type": "model",
        "display_name": name,
        "lifecycle": "active",
        "created": service.started,
        "created_at": datetime.fromtimestamp(service.started, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "owned_by": "slipstream",
        "root": root,
        "parent": parent,
        "max_model_len": service.bounds.max_model_len,
    }


async def version(service: Service, request: Request) -> Response:
    return service.answer({"version": service.version})


async def load(service: Service, request: Request) -> Response:
    """The load of the service, with vLLM's names."""
    counters = await service.client.stats()
    return service.answer({"server_load": int(counters.get("requests_open", 0.0))})


async def tokenizer_info(service: Service, request: Request) -> Response:
    """The chat template, and the special tokens by name, with which an evaluation writes conversations itself."""
    templates = service.prompts.chat_templates
    found: dict[str, object] = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": None}
    if not isinstance(templates, str):
        found |= templates.default.special_tokens
        found["chat_template"] = templates.default.source
    return service.answer(found | {"model_max_length": service.bounds.max_model_len})


async def health(service: Service, request: Request) -> Response:
    """Live: the service answers and no actor hangs. If not for long, restart it."""
    actors = await actors_of(service)
    return report(service, actors, actors is not None and actors.live)


async def ready(service: Service, request: Request) -> Response:
    """Ready: every actor is, and requests are taken."""
    actors = await actors_of(service)
    return report(service, actors, actors is not None and actors.ready and not service.draining)


async def actors_of(service: Service) -> Actors | None:
    """The states of the actors; None if there is no answer in time."""
    try:
        return await asyncio.wait_for(service.client.actors(), ANSWER_S)
    except (TimeoutError, ServiceUnavailable):
        return None


def report(service: Service, actors: Actors | None, well: bool) -> Response:
    body = {
        "status": "ok" if well else "unavailable",
        "draining": service.draining or (actors is not None and actors.draining),
        "actors": [] if actors is None else msgspec.to_builtins(actors.actors),
    }
    answer = service.answer(body)
    if not well:
        answer.status_code = 503
        answer.headers.update(retry_after(DEFAULT_RETRY_AFTER_S))
    return answer
