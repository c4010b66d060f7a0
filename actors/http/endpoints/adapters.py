"""Adapters that come and go while the service runs, by vLLM's names of these endpoints."""

from __future__ import annotations

import re

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from ....protocol.errors import InvalidRequest
from ..bodies.requests import LoadAdapterBody, UnloadAdapterBody
from ..errors import as_written
from ..service import Service

WRITTEN = {"name": "lora_name", "path": "lora_path"}
"""What the fields of the protocol are called here."""

UNREADABLE = "cannot be loaded: "
"""In the refusal of an adapter whose folder is none, or has something else in it."""


async def load(service: Service, request: Request) -> Response:
    """Answers when requests may name it."""
    body = await service.uploads.read(request, LoadAdapterBody)
    try:
        await service.client.load_adapter(body.lora_name, body.lora_path)
    except InvalidRequest as error:
        raise named(error) from None
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")


async def unload(service: Service, request: Request) -> Response:
    """Answers when no request is computed with it any more."""
    body = await service.uploads.read(request, UnloadAdapterBody)
    try:
        await service.client.unload_adapter(body.lora_name)
    except InvalidRequest as error:
        raise named(error) from None
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")


def named(error: InvalidRequest) -> InvalidRequest:
    """The same error, about the field that the caller wrote, where it begins with one or is about what lies there."""
    field = next((field for field in WRITTEN if re.match(rf"{field}\b", str(error))), None)
    error.param = "path" if field is None and UNREADABLE in str(error) else field
    return as_written(error, WRITTEN)
