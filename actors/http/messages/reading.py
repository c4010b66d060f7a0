"""From the blocks of a ``/v1/messages`` to the messages of a conversation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ....protocol.errors import brief
from ....protocol.formats.tools import PARAMETERS, FunctionName, NamedTool, Tool, converted
from ....protocol.limits import MAX_TOOLS
from ....protocol.sampling import counted
from ...text.prompts.chat_template import ChatTemplates
from ...text.prompts.conversation import call_arguments
from ..bodies.requests import ChatBody, ChatFields, JsonSchema, ResponseFormat
from ..errors import Problem
from .bodies import Choice, CountFields, MessagesFields, MessagesTool

Message = dict[str, Any]

WRITTEN = {
    "stop": "stop_sequences",
    "json_schema": "output_config.format.schema",
    "response_format.json_schema.schema": "output_config.format.schema",
    "response_format": "output_config.format",
    PARAMETERS: "tools[{}].input_schema",
}
"""Names of a conversation's fields to those of this API."""


def conversation(body: CountFields, templates: ChatTemplates | str) -> ChatFields:
    """The request as a chat completion."""
    messages: list[Message] = []
    if body.system:
        texts = [body.system] if isinstance(body.system, str) else [part.text for part in body.system]
        messages.append({"role": "system", "content": content_of(texts)})
    for number, message in enumerate(body.messages):
        messages += plain(f"messages[{number}]", message.role, message.content)
    choice = body.tool_choice
    fields: dict[str, Any] = {}
    if isinstance(body, MessagesFields):
        fields = {
            name: getattr(body, name) for name in ("stream", "temperature", "top_k", "top_p", "max_tokens")
        }
        fields["stop"] = body.stop_sequences
    return ChatBody(
        **fields,
        model=body.model,
        messages=messages,
        tools=tools_of(body.tools or []) or None,
        tool_choice=choice_of(choice, bool(body.tools)),
        parallel_tool_calls=False if choice is not None and choice.disable_parallel_tool_use else None,
        response_format=format_of(body),
        reasoning_effort=None if body.output_config is None else body.output_config.effort,
        chat_template_kwargs=template_arguments(body, templates) or None,
    )


def format_of(body: CountFields) -> ResponseFormat | None:
    inside = None if body.output_config is None else body.output_config.format
    wanted = inside or body.output_format
    if wanted is None:
        return None
    return ResponseFormat(type="json_schema", json_schema=JsonSchema(name="answer", schema=wanted.schema))


def template_arguments(body: CountFields, templates: ChatTemplates | str) -> dict[str, Any]:
    """The arguments of the chat template: whether to think, if it takes that."""
    known = frozenset[str]() if isinstance(templates, str) else frozenset(templates.default.names)
    given: dict[str, Any] = {}
    if body.thinking is not None and body.thinking.type != "adaptive" and "enable_thinking" in known:
        given["enable_thinking"] = body.thinking.type == "enabled"
    return given


def tools_of(tools: list[MessagesTool]) -> list[Tool]:
    counted("tools", len(tools), MAX_TOOLS, "tools")
    made: list[Any] = []
    for number, tool in enumerate(tools):
        if tool.type not in (None, "custom"):
            where = f"tools[{number}].type"
            raise Problem(
                400,
                f"{where} is {tool.type!r:.80}; this service has no tools of its own: give custom tools, which the"
                " caller carries out",
                param=where,
            )
        function = {
            "name": tool.name,
            "description": tool.description,
            "parameters": schema_of(tool.input_schema),
            "strict": tool.strict,
        }
        made.append({"type": "function", "function": function})
    return converted("tools", made, list[Tool])


def schema_of(given: dict[str, Any] | None) -> dict[str, Any] | None:
    """The schema of a tool's arguments: these two may be null in the published API, and in no JSON Schema."""
    if given is None:
        return None
    return {
        key: value
        for key, value in given.items()
        if value is not None or key not in ("properties", "required")
    }


def choice_of(choice: Choice | None, tools: bool) -> Any:
    if choice is None or (choice.type in ("auto", "none") and not tools):
        return None
    if choice.type == "tool":
        if not choice.name:
            raise Problem(400, "tool_choice.name is missing", param="tool_choice.name")
        return NamedTool(type="function", function=FunctionName(name=choice.name))
    return "required" if choice.type == "any" else choice.type


# --- blocks ---------------------------------------------------------------------------------------


def plain(where: str, role: str, content: str | list[dict[str, Any]]) -> list[Message]:
    """One message of several blocks: results of calls are messages of their own, before what the user says."""
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    results: list[Message] = []
    message: Message = {"role": role}
    texts: list[str] = []
    for number, block in enumerate(content):
        place = f"{where}.content[{number}]"
        kind = block.get("type")
        if kind == "text":
            texts.append(text_in(place, block))
        elif kind == "thinking" and role == "assistant":
            message["reasoning"] = message.get("reasoning", "") + str(block.get("thinking", ""))
        elif kind == "redacted_thinking" and role == "assistant":
            continue  # nobody but who encrypted it can read it
        elif kind == "tool_use" and role == "assistant":
            given = block.get("input")
            arguments = call_arguments(f"{place}.input", {} if given is None else given)
            function = {"name": block.get("name"), "arguments": arguments}
            call = {"id": block.get("id"), "type": "function", "function": function}
            message.setdefault("tool_calls", []).append(call)
        elif kind == "tool_result" and role == "user":
            told = list(result_texts(place, block.get("content")))
            results.append(
                {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": content_of(told)}
            )
        else:
            raise Problem(
                400,
                f"{place} is {brief(block)}; expected a block of type text, or tool_result of a user, or tool_use or"
                " thinking of an assistant: this service reads and writes text",
                param=place,
            )
    if texts or not results:
        # What a model wrote is one text, between whose blocks calls and sources may have stood.
        message["content"] = content_of(texts) if role != "assistant" else "".join(texts)
    return [*results, message] if len(message) > 1 else results


def content_of(texts: list[str]) -> str | list[dict[str, str]]:
    """Several texts are parts, as in any other conversation: the chat template decides how they are put together."""
    if len(texts) > 1:
        return [{"type": "text", "text": text} for text in texts]
    return "".join(texts)


def text_in(place: str, block: dict[str, Any]) -> str:
    text = block.get("text")
    if not isinstance(text, str):
        raise Problem(400, f"{place}.text is {brief(text)}; give a text", param=f"{place}.text")
    return text


def result_texts(place: str, content: Any) -> Iterator[str]:
    """The texts of a tool's result."""
    if content is None:
        return
    if isinstance(content, str):
        yield content
        return
    for number, part in enumerate(content if isinstance(content, list) else [content]):
        if not isinstance(part, dict) or part.get("type") != "text":
            where = f"{place}.content[{number}]"
            raise Problem(400, f"{where} is {brief(part)}; expected a text block", param=where)
        yield text_in(f"{place}.content[{number}]", part)
