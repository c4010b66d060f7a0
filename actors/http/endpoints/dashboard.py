"""The page at ``/dashboard``: what the service does at this moment, and a box to try a prompt.

The page is four files, sent as they are; what it shows it asks for at ``/dashboard/state``. However many look
at it, the service is asked at most a few times a second, and not at all when nobody looks.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ....protocol.client.asynchronous import AsyncClient
from ....protocol.client.snapshot import Observer

FOLDER = Path(__file__).parent / "page"

TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}

HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}

PAGES = frozenset({"/dashboard", *(f"/dashboard/{file.name}" for file in FOLDER.iterdir())})
"""They show nothing of the service by themselves, so they need no key."""

FRESH_S = 0.25
"""For how long an answer does for all who ask."""


class Dashboard:
    """The page, and the snapshot that it shows."""

    def __init__(self, client: AsyncClient, model: str) -> None:
        self.client = client
        self.observer = Observer(model)
        self.reading: asyncio.Task[bytes] | None = None
        self.read_at = 0.0

    def routes(self) -> list[Route]:
        return [
            Route("/dashboard", self.page),
            Route("/docs", self.docs),
            Route("/dashboard/state", self.state),
            Route("/dashboard/{file}", self.page),
        ]

    async def page(self, request: Request) -> Response:
        path = FOLDER / request.path_params.get("file", "index.html")
        if request.url.path not in PAGES:
            return Response(status_code=404)
        return Response(path.read_bytes(), media_type=TYPES[path.suffix], headers=HEADERS)

    async def docs(self, request: Request) -> Response:
        """The page that shows ``/openapi.json``."""
        return Response((FOLDER / "docs.html").read_bytes(), media_type="text/html", headers=HEADERS)

    async def state(self, request: Request) -> Response:
        now = time.monotonic()
        if self.reading is None or (self.reading.done() and now - self.read_at > FRESH_S):
            self.reading, self.read_at = asyncio.create_task(self.read()), now
        snapshot = await asyncio.shield(self.reading)
        return Response(snapshot, media_type="application/json", headers={"cache-control": "no-store"})

    async def read(self) -> bytes:
        # First how the actors are: the other questions would show as messages in their mailboxes.
        actors = await self.client.actors()
        counters, timeline = await asyncio.gather(
            self.client.stats(), self.client.trace(self.observer.seconds)
        )
        return msgspec.json.encode(self.observer.snapshot(actors, counters, timeline))
