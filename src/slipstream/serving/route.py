"""A router of one's own: the actor that stands before many services, and OpenAI's frontend if asked for."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from .. import __version__
from ..actors.checkpoint import open_checkpoint
from ..actors.options import RouterOptions
from ..actors.router.services_file import MAX_SERVICES, named_in
from ..options.route import RouteOptions
from ..protocol.client.asynchronous import AsyncClient
from ..protocol.client_key import ClientKey, client_key
from ..protocol.endpoints import check_endpoint, is_same
from ..protocol.errors import InvalidRequest, ServiceUnavailable, SlipstreamError
from ..protocol.messages import Welcome
from ..protocol.paths import absolute_path, working_folder
from ..protocol.small_file import read_small_file
from ..runtime.log import logger
from ..runtime.supervision.children import ChildSpec
from ..runtime.supervision.supervisor import Supervisor
from .banner import announce_addresses
from .child_specs import child, http_options
from .running import specify_and_run
from .service import BUNDLED_MODEL

FIRST_ANSWER_S = 30.0
"""How long the services may take until the first of them answers."""

FURTHER_ANSWERS_S = 1.0
"""How long the others may take from then on, until the router starts without having heard them."""


def route(options: RouteOptions) -> int:
    """Run a router until SIGTERM, SIGINT or SIGHUP; returns the exit code."""

    def announce(supervisor: Supervisor, seconds: float) -> dict[str, Any]:
        router = supervisor.children["router"]
        served = msgspec.convert(router.spec.options, RouterOptions)
        services = ", ".join(served.services)
        logger.info(
            f"slipstream {__version__} routes to {len(served.services)} services of {served.model_name}"
        )
        logger.info(f"  services {services}")
        ready = announce_addresses(supervisor, router, served.model_name)
        logger.info(f"ready in {seconds:.1f} s")
        return ready

    return specify_and_run(options, lambda directory: router_specs(options, directory), announce)


def router_specs(options: RouteOptions, directory: Path) -> list[ChildSpec]:
    """The children; ``ServiceUnavailable`` if none of the services answers."""
    endpoints = options.endpoints or read_services(options.services_file)
    if len(endpoints) > MAX_SERVICES:
        raise InvalidRequest(f"{len(endpoints)} services are named; a router takes at most {MAX_SERVICES}")
    own = check_endpoint(options.endpoint or f"ipc://{directory}/router", insecure=True)
    for endpoint in endpoints:
        if is_same(endpoint, own):
            raise InvalidRequest(
                f"the service {endpoint} is the router itself; it needs an endpoint of its own"
            )
    keys = {endpoint: client_key(options.client_key, endpoint) for endpoint in endpoints}
    welcome = asyncio.run(first_welcome(keys))
    router = RouterOptions(
        endpoint=own,
        services=endpoints,
        services_file=None if options.services_file is None else absolute_path(options.services_file),
        started_in=working_folder(),
        client_key=next((key for key in keys.values() if key is not None), None),
        model_name=welcome.model,
        limits=welcome.limits,
        formats=welcome.formats,
        server=f"slipstream {__version__}",
        seed=options.seed,
        curve_keys=None if options.curve_keys is None else absolute_path(options.curve_keys),
        curve_also=(),
    )
    if options.http is None:
        return [child("router", "router.router", router)]
    folder = tokenizer_folder(options, welcome)
    http = http_options(options, options.http, folder, [welcome.model], welcome.limits)
    if http.curve is not None:
        router = replace(router, curve_also=(http.curve.public,))
    return [
        child("router", "router.router", router),
        child("http", "http.build", http, waits=True, frontend_of="router"),
    ]


def read_services(path: str | None) -> tuple[str, ...]:
    """The endpoints that a file names; ``InvalidRequest`` if it names none, or what is none."""
    try:
        found = [] if path is None else named_in(read_small_file(path).decode("utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the file of services {path} cannot be read: {error}") from None
    if not found:
        raise InvalidRequest(f"the file of services {path} names none; it has an endpoint on each line")
    return tuple(dict.fromkeys(check_endpoint(endpoint, insecure=True) for endpoint in found))


def tokenizer_folder(options: RouteOptions, welcome: Welcome) -> str:
    """The folder from which the frontend reads the vocabulary and the chat template of the services' model."""
    named = options.model or welcome.model
    if options.model is None and welcome.model == "slipstream-bundled":
        named = str(BUNDLED_MODEL)
    try:
        return str(open_checkpoint(named).folder)
    except SlipstreamError as error:
        raise type(error)(f"{error}; --model says where the files of {welcome.model!r} are") from None


async def first_welcome(keys: dict[str, ClientKey | None]) -> Welcome:
    """The welcome of the first service, in their order, that answers; those that do not are named in the log."""
    asked = [asyncio.create_task(greet(endpoint, key)) for endpoint, key in keys.items()]
    await wait_for_first(asked)
    await asyncio.wait(asked, timeout=FURTHER_ANSWERS_S)
    silent: list[str] = []
    answers: list[Welcome] = []
    for endpoint, task in zip(keys, asked, strict=True):
        if not task.done():
            silent.append(f"{endpoint} has not answered yet")
            task.cancel()
        elif (error := task.exception()) is not None:
            silent.append(str(error))
        else:
            answers.append(task.result())
    await asyncio.gather(*asked, return_exceptions=True)
    if not answers:
        raise ServiceUnavailable("; ".join(silent))
    for text in silent:
        logger.warning("%s", text)
    return answers[0]


async def wait_for_first(asked: list[asyncio.Task[Welcome]]) -> None:
    """Until one of the services has answered, or all have failed to."""
    pending = set(asked)
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        if any(task.exception() is None for task in done):
            return


async def greet(endpoint: str, key: ClientKey | None) -> Welcome:
    async with AsyncClient(endpoint, timeout_s=FIRST_ANSWER_S, curve=key) as client:
        return await client.connect()
