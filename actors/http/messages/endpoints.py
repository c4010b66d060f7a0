"""``/v1/messages`` and ``/v1/messages/count_tokens``."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from ....protocol.errors import InvalidRequest
from ....protocol.formats.reader import ChatDelta
from ....protocol.formats.tools import PARAMETERS, offer
from ..bodies.requests import ChatFields
from ..endpoints import chat
from ..endpoints.texts import finish
from ..errors import as_written
from ..service import Service
from ..transport.events import Batches, open_stream, unless_left
from .bodies import CountBody, MessagesBody
from .reading import WRITTEN, conversation
from .writing import Blocks, MessageEvents


async def create(service: Service, request: Request) -> Response:
    body = await service.read(request, MessagesBody)
    asked = conversation(body, service.prompts.chat_templates)
    id = service.about(request, "msg", "")["id"].replace("msg-", "msg_", 1)
    blocks = Blocks({"id": id, "type": "message", "role": "assistant", "model": service.name_of(request)})
    batches = chat.ask(service, request, asked, id, WRITTEN)
    if body.stream:
        return await open_stream(request, batches, MessageEvents(blocks))
    await unless_left(request.receive, take(batches, blocks))
    blocks.close()
    return service.answer(blocks.message(done=True))


async def take(batches: Batches, blocks: Blocks) -> None:
    async for _, deltas in batches:
        for delta in deltas:
            assert isinstance(delta, ChatDelta)
            blocks.add(delta)


async def count_tokens(service: Service, request: Request) -> Response:
    body = await service.read_apart(request, CountBody)
    asked = conversation(body, service.prompts.chat_templates)
    try:
        count = await service.beside(request, counted, service, asked)
    except InvalidRequest as error:
        raise as_written(error, WRITTEN) from None
    return service.answer({"input_tokens": count})


def counted(service: Service, asked: ChatFields) -> int:
    offered = offer(asked.tools, asked.tool_choice, asked.parallel_tool_calls, WRITTEN[PARAMETERS])
    given = chat.template_arguments(service, asked)
    if offered.tools:
        given["tools"] = offered.tools
    return len(finish(service.prompts.of_conversation(asked.messages, given), "messages"))
