"""Endpoints for developers of the service, which are there with ``--server-dev-mode`` alone."""

from __future__ import annotations

import io
import time

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from ....protocol.client.perfetto import write
from ....protocol.client.timeline import Timeline
from ..errors import Problem
from ..service import Service

ON_ITS_WAY_S = 5.0
"""A question after the last seconds is answered from when it arrives: so much later, at most."""


async def reset_prefix_cache(service: Service, request: Request) -> Response:
    """Let later requests share nothing that was computed before."""
    await service.client.reset_prefix_cache()
    return PlainTextResponse()


async def start_profile(service: Service, request: Request) -> Response:
    """The next ``stop_profile`` tells what happened from now on."""
    service.profiled_since = time.monotonic()
    return PlainTextResponse()


async def stop_profile(service: Service, request: Request) -> Response:
    """The timeline since ``start_profile``, as far back as the actors remember, for https://ui.perfetto.dev."""
    since, service.profiled_since = service.profiled_since, None
    if since is None:
        raise Problem(400, "no profile was started; POST /start_profile first")
    timeline = await service.client.trace(time.monotonic() - since + ON_ITS_WAY_S)
    timeline = timeline.after(round(since * 1e9))  # of the same clock, since this is a process of the service
    request.state.large = True
    text = await service.beside(request, drawn, timeline)
    return Response(text, media_type="application/json")


def drawn(timeline: Timeline) -> str:
    file = io.StringIO()
    write(timeline, file)
    return file.getvalue()
