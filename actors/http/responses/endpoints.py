"""``/v1/responses``: made whole, as events or in the background; asked for again, cancelled, deleted."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ....protocol.formats.reader import ChatDelta
from ..bodies.requests import PARAMETERS
from ..endpoints import chat
from ..errors import Problem, is_fault, log_fault
from ..service import Service
from ..transport.events import Batches, open_stream, unless_left
from .bodies import ResponseBody, ResponseFields
from .reading import WRITTEN, conversation, refuse_more
from .store import Stored
from .tools import all_tools
from .writing import Output, ResponseEvents, new_id

NAMES = tuple(field.name for field in PARAMETERS)

MAX_PAGE_ITEMS = 100
"""Most items of one page of a response's input, as OpenAI has it."""


async def create(service: Service, request: Request) -> Response:
    body = await service.read(request, ResponseBody)
    if body.background and (body.stream or body.store is False):
        other = "stream=true" if body.stream else "store=false"
        raise Problem(400, f"background=true cannot be had with {other}; leave one out", param="background")
    if not isinstance(body.input, str):
        body.input = service.responses.whole(body.input)
    tools = list(all_tools(body.tools or ()))
    asked = conversation(body, messages_before(service, body), service.prompts.chat_templates, NAMES)
    about = first_body(service, request, body)
    custom = frozenset(tool.name or "" for _, _, tool in tools if tool.type == "custom")
    output = Output(about, custom, {tool.name or "": space for _, space, tool in tools if space})
    own = asked.messages[1:] if body.instructions else asked.messages
    stored = Stored(about, items_of(body), own)
    batches = chat.ask(service, request, asked, about["id"], WRITTEN)

    def keep() -> None:
        stored.messages = [*own, output.message()]
        if body.store is not False:
            service.responses.put(stored)

    if body.background:
        about["status"] = "queued"
        stored.task = service.in_background(make(service, batches, output, stored))
        service.responses.put(stored)
        return service.answer(about)
    if body.stream:
        return await open_stream(request, batches, ResponseEvents(output, keep))
    await unless_left(request.receive, take(batches, output))
    output.end()
    keep()
    return service.answer(about)


def messages_before(service: Service, body: ResponseFields) -> list[dict[str, Any]]:
    """The messages of the response that this one goes on from."""
    if body.previous_response_id is None:
        return []
    previous = service.responses.get(body.previous_response_id, "previous_response_id")
    if previous.body["status"] not in ("completed", "incomplete"):
        status = previous.body["status"]
        message = f"the response {body.previous_response_id} is {status}: it has no answer to go on from"
        raise Problem(400, message, param="previous_response_id")
    return previous.messages


async def make(service: Service, batches: Batches, output: Output, stored: Stored) -> None:
    """A response in the background."""
    try:
        stored.body["status"] = "in_progress"
        await take(batches, output)
        output.end()
        stored.messages = [*stored.messages, output.message()]
    except asyncio.CancelledError:
        output.close("incomplete")
        stored.body |= {"status": "cancelled", "output": output.items}
    except Exception as error:
        output.fail(error)
        if is_fault(error):
            log_fault(f"response {stored.body['id']}", error)
    finally:
        stored.task = None
        if stored.body["id"] in service.responses.kept:
            service.responses.put(stored)


# --- what is kept -------------------------------------------------------------------------


def asked_for(service: Service, request: Request) -> Stored:
    return service.responses.get(request.path_params["response_id"])


async def get(service: Service, request: Request) -> Response:
    query = request.query_params
    for name in ("stream", "starting_after"):
        if query.get(name, "false") != "false":
            message = "a response that is kept is told whole; leave this out and ask until it is complete"
            raise Problem(400, f"{name}: {message}", param=name)
    refuse_more(query.getlist("include") + query.getlist("include[]"))
    return service.answer(asked_for(service, request).body)


async def items(service: Service, request: Request) -> Response:
    """A page of what a response was asked, the last item first unless ``order=asc``."""
    query = request.query_params
    order, limit, after = query.get("order", "desc"), query.get("limit", "20"), query.get("after")
    if order not in ("asc", "desc"):
        raise Problem(400, f"order={order!r:.80}; give asc or desc", param="order")
    if not re.fullmatch("[0-9]{1,3}", limit) or not 1 <= int(limit) <= MAX_PAGE_ITEMS:
        raise Problem(400, f"limit={limit!r:.80} is out of range: give 1 to {MAX_PAGE_ITEMS}", param="limit")
    refuse_more(query.getlist("include") + query.getlist("include[]"))
    data = asked_for(service, request).items[:: -1 if order == "desc" else 1]
    ids = [str(item["id"]) for item in data]
    if after is not None and after not in ids:
        raise Problem(400, f"after={after!r:.80} is the id of no item of this response", param="after")
    begin = 0 if after is None else ids.index(after) + 1
    end = begin + int(limit)
    shown = ids[begin:end]
    first, last = (shown[0], shown[-1]) if shown else (None, None)
    page = {"object": "list", "data": data[begin:end], "first_id": first, "last_id": last}
    return service.answer(page | {"has_more": end < len(data)})


async def delete(service: Service, request: Request) -> Response:
    stored = asked_for(service, request)
    service.responses.drop(stored.body["id"])
    if stored.task is not None:
        stored.task.cancel()
    return service.answer({"id": stored.body["id"], "object": "response", "deleted": True})


async def cancel(service: Service, request: Request) -> Response:
    stored = asked_for(service, request)
    if not stored.body["background"]:
        raise Problem(400, "only a response that is made in the background can be cancelled")
    if stored.task is not None:
        stored.task.cancel()
        await asyncio.wait([stored.task])
    return service.answer(stored.body)


async def take(batches: Batches, output: Output) -> None:
    async for _, deltas in batches:
        for delta in deltas:
            assert isinstance(delta, ChatDelta)
            output.add(delta)


def items_of(body: ResponseFields) -> list[dict[str, Any]]:
    """The input as items with ids, in the published form: a message that was given as a text has it as a part."""
    items = body.input
    if isinstance(items, str):
        items = [{"role": "user", "content": items}]
    return [{"id": new_id("msg"), "type": "message"} | item | part_of(item) for item in items]


def part_of(item: dict[str, Any]) -> dict[str, Any]:
    """What a message whose content is a text says in the published form."""
    text = item.get("content")
    if not isinstance(text, str) or item.get("type", "message") != "message":
        return {}
    if item.get("role") != "assistant":
        return {"content": [{"type": "input_text", "text": text}]}
    part = {"type": "output_text", "text": text, "annotations": []}
    return {"content": [part], "status": item.get("status") or "completed"}


def first_body(service: Service, request: Request, body: ResponseFields) -> dict[str, Any]:
    """The response before there is anything of it."""
    about = service.about(request, "resp", "response")
    text = msgspec.to_builtins(body.text) if body.text is not None else {}
    given = {name: getattr(body, name) for name in ("temperature", "top_p")}
    return {
        "id": about["id"].replace("resp-", "resp_", 1),
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "model": service.name_of(request),
        "output": [],
        "error": None,
        "incomplete_details": None,
        "usage": None,
        "background": bool(body.background),
        "previous_response_id": body.previous_response_id,
        "store": body.store is not False,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "reasoning": {"effort": None if body.reasoning is None else body.reasoning.effort, "summary": None},
        "temperature": 1.0 if given["temperature"] is None else given["temperature"],
        "text": {"format": {"type": "text"}}
        | {key: value for key, value in text.items() if value is not None},
        "tool_choice": body.tool_choice or "auto",
        "tools": [
            {
                key: value
                for key, value in ({"strict": None, "parameters": None} | tool).items()
                if value is not None or key in ("strict", "parameters")
            }
            for tool in body.tools or ()
        ],
        "top_p": 1.0 if given["top_p"] is None else given["top_p"],
        "truncation": "disabled",
        "user": body.user,
        "safety_identifier": body.safety_identifier,
        "prompt_cache_key": body.prompt_cache_key,
    }
