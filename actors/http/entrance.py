"""The entrance: the checks that every request passes before it reaches an endpoint, and the count of open ones."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
import time
import uuid
from collections.abc import Callable, Sequence
from email.utils import formatdate
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...protocol.errors import ServiceUnavailable
from .endpoints.dashboard import PAGES
from .errors import STOPPED, Problem, is_of_messages, log_fault, problem_of
from .service import Service
from .transport.events import ClientLeft

OPEN = frozenset({"/", "/docs", "/health", "/ready", "/version", "/metrics", "/openapi.json"}) | PAGES
"""Paths that need no key: probes and scrapers have none, and a page has to be there to ask for it."""

MAX_REQUEST_ID_CHARS = 128
"""Most characters of an ``X-Request-Id`` that is kept: as long as an id of the protocol, and too short to fill logs
with."""


HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.~!$&'()*+,;=%-]*)(:[0-9]*)?", re.ASCII)
"""The form of ``Host``: that of a URI's host and port (RFC 9110, 7.2; RFC 3986, 3.2.2)."""


class Entrance:
    """Wraps every request: gives it an id, checks its key, and counts it while it is under way."""

    def __init__(
        self,
        service: Service,
        app: ASGIApp,
        api_key: str | None,
        hosts: frozenset[str] | None = None,
        allowed_origins: Sequence[str] = (),
    ) -> None:
        """``hosts``, where no key is asked, are the names that the service may be called by, beside IP addresses;
        None: any. ``allowed_origins`` are those of web pages that may ask."""
        self.service = service
        self.app = for_pages(app, allowed_origins)
        self.origins = allowed_origins
        self.key = None if api_key is None else api_key.encode()
        self.hosts = hosts
        self.under_way: set[asyncio.Task[Any]] = set()
        self.changed = asyncio.Event()
        """Set whenever a request ends; cleared before it is waited for."""
        self.on_busy: Callable[[], None] = lambda: None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        usable = 0 < len(given) <= MAX_REQUEST_ID_CHARS and given.isascii() and given.isprintable()
        id = given if usable else new_request_id()
        scope.setdefault("state", {})["request_id"] = id
        path, begun = scope["path"], False

        async def send_with_id(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                self.service.statuses[message["status"]] += 1
                more = [(b"date", date_at(int(time.time()))), (b"x-request-id", id.encode())]
                if is_of_messages(path):  # whose clients look for it under this name
                    more.append((b"request-id", id.encode()))
                message["headers"] = [*message["headers"], *more]
            await send(message)

        task = asyncio.current_task()
        assert task is not None
        self.under_way.add(task)
        self.on_busy()
        try:
            refusal = self.refusal(scope, headers)
            if refusal is not None:
                self.service.errors[refusal.reason] += 1
            app = self.app if refusal is None else for_pages(refusal.response(path), self.origins)
            await app(scope, receive, send_with_id)
        except ClientLeft:
            pass  # nobody is left to be answered
        except asyncio.CancelledError:
            if not self.service.stopped:
                raise
            if not begun:
                await problem_of(ServiceUnavailable(STOPPED)).response(path)(scope, receive, send_with_id)
        except Exception as error:  # those that are no fault of ours were answered further in
            log_fault(f"request {id} ({scope['method']} {scope['path']:.200})", error)
            if not begun:
                await problem_of(error).response(path)(scope, receive, send_with_id)
        finally:
            self.under_way.discard(task)
            self.changed.set()

    def refusal(self, scope: Scope, headers: Headers) -> Problem | None:
        """Why this request is not let in."""
        hosts = headers.getlist("host")
        if len(hosts) > 1:
            return Problem(400, "the header Host is there more than once; send one")
        if not hosts and scope["http_version"] == "1.1":
            return Problem(400, "the header Host is missing, which HTTP/1.1 asks for; send it")
        if hosts and HOST.fullmatch(hosts[0]) is None:
            return Problem(
                400, f"Host is {hosts[0]!r:.80}, which is no name or address with or without a port"
            )
        if self.key is None:
            host = headers.get("host", "")
            if self.hosts is None or not host or is_address(name_of(host)) or name_of(host) in self.hosts:
                return None
            return Problem(
                421,
                f"Host is {host!r:.80}; without a key this service answers only to localhost and IP addresses, so"
                " that no web page can ask it under a name of its own: use one of these, set --api-key, or list"
                " the name's origin in --allowed-origins",
            )
        if self.origins and scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            return None  # a browser asks whether a page may ask, and sends no key yet
        if self.is_known(headers) or scope["path"] in OPEN:
            return None
        return Problem(
            401,
            "the API key is missing or wrong; send it as Authorization: Bearer KEY or as x-api-key: KEY",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )

    def is_known(self, headers: Headers) -> bool:
        """Whether the key is in one of the two headers that have it. Anthropic's clients send both where both of their
        variables are set, and ``x-api-key`` empty where people were told to empty it."""
        assert self.key is not None
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = [headers.get("x-api-key", ""), bearer if scheme.lower() == "bearer" else ""]
        # In constant time: how long it takes says nothing about the key.
        return any([hmac.compare_digest(key.strip().encode(), self.key) for key in given])

    async def drained(self) -> None:
        """Return when nothing is under way that was accepted: a request whose body has not come was not."""
        while len(self.under_way) > self.service.uploads.open:
            self.changed.clear()
            await self.changed.wait()
        if self.service.background:
            await asyncio.wait(self.service.background)

    async def stop(self, last_words_s: float) -> None:
        """End every request with an error; what cannot be ended within ``last_words_s`` is cancelled."""
        await self.service.stop()
        if self.under_way:
            await asyncio.wait(self.under_way, timeout=last_words_s)
        for task in self.under_way:
            task.cancel()


@lru_cache(maxsize=1)
def date_at(second: int) -> bytes:
    """``Date`` for answers of that second since 1970."""
    return formatdate(second, usegmt=True).encode()


def new_request_id() -> str:
    return uuid.uuid4().hex


def name_of(host: str) -> str:
    """The name in a ``Host``, without the port and the dot of a name that is looked up as it stands."""
    if host.startswith("["):
        return host.partition("]")[0][1:]
    return host.partition(":")[0].lower().removesuffix(".")


def is_address(name: str) -> bool:
    """Whether a name needs no look-up, so that no page can have had it made to mean this machine."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")
    return True


def hosts_of(origins: Sequence[str]) -> frozenset[str]:
    """The names in origins such as ``https://a.example``."""
    return frozenset((urlsplit(origin).hostname or "").removesuffix(".") for origin in origins)


def for_pages(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """The app with what browsers need to let pages of these origins ask and read the answers."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["DELETE", "GET", "POST"],
        allow_headers=["*"],
        expose_headers=["x-request-id", "retry-after"],
    )
