"""From the request of a ``/v1/messages`` to a conversation."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from ....protocol.errors import brief
from ....protocol.formats.tools import PARAMETERS, FunctionName, NamedTool, Tool, converted
from ....protocol.limits import MAX_TOOLS
from ....protocol.sampling import counted
from ...text.prompts.chat_template import ChatTemplates
from ...text.prompts.keys import Keys, kept
from ..bodies.requests import ChatBody, ChatFields, JsonSchema, ResponseFormat
from ..errors import Problem
from .blocks import Message, content_of, plain
from .bodies import Choice, CountFields, MessagesFields

WRITTEN = {
    "stop": "stop_sequences",
    "json_schema": "output_config.format.schema",
    "response_format.json_schema.schema": "output_config.format.schema",
    "response_format": "output_config.format",
    "continue_final_message": "messages",
    PARAMETERS: "tools[{}].input_schema",
}
"""Names of a conversation's fields to those of this API."""

TOOL = Keys(
    "a tool",
    frozenset(("name", "input_schema", "description", "type", "strict")),
    frozenset(("cache_control", "eager_input_streaming")),
    {"allowed_callers": ["direct"], "defer_loading": False},
)


class CustomTool(Struct, kw_only=True):
    """A tool that the caller carries out."""

    name: Annotated[str, Meta(min_length=1, max_length=128)]
    input_schema: dict[str, Any] | None = None
    description: str | None = None
    type: str | None = None
    strict: bool | None = None


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
        continue_final_message=goes_on(messages[-1]) or None,
    )


def goes_on(last: Message) -> bool:
    """Whether the answer goes on with the last message, which is the assistant's: it is the beginning of it."""
    return last["role"] == "assistant" and "tool_calls" not in last and bool(last.get("content", "").strip())


def format_of(body: CountFields) -> ResponseFormat | None:
    inside = None if body.output_config is None else body.output_config.format
    if inside is not None and body.output_format is not None:
        message = "output_format is the older name of output_config.format, which is given too; leave it out"
        raise Problem(400, message, param="output_format")
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


def tools_of(tools: list[dict[str, Any]]) -> list[Tool]:
    counted("tools", len(tools), MAX_TOOLS, "tools")
    return converted(
        "tools", [tool_of(f"tools[{number}]", tool) for number, tool in enumerate(tools)], list[Tool]
    )


def tool_of(where: str, tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") not in (None, "custom"):
        raise Problem(
            400,
            f"{where}.type is {brief(tool['type'])}; this service has no tools of its own: give custom tools, which"
            " the caller carries out",
            param=f"{where}.type",
        )
    read = converted(where, kept(where, tool, TOOL), CustomTool)
    function = {
        "name": read.name,
        "description": read.description,
        "parameters": schema_of(read.input_schema),
        "strict": read.strict,
    }
    return {"type": "function", "function": function}


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
    if choice is None:
        return None
    if choice.name is not None and choice.type != "tool":
        message = f"tool_choice.name goes with type tool, not {choice.type}; leave it out"
        raise Problem(400, message, param="tool_choice.name")
    if choice.type in ("auto", "none") and not tools:
        return None
    if choice.type == "tool":
        if not choice.name:
            raise Problem(400, "tool_choice.name is missing", param="tool_choice.name")
        return NamedTool(type="function", function=FunctionName(name=choice.name))
    return "required" if choice.type == "any" else choice.type
