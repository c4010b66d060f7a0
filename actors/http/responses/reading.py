"""From the items of a response's input to the messages of a conversation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ....protocol.errors import InvalidRequest, brief
from ....protocol.formats.tools import PARAMETERS, Tool, ToolChoice, converted
from ....protocol.limits import MAX_MESSAGES, MAX_TOOLS
from ....protocol.sampling import counted
from ...text.prompts.chat_template import ChatTemplates
from ...text.prompts.conversation import call_arguments
from ..bodies.requests import ChatBody, ChatFields, Labels, ResponseFormat, Sampling
from ..errors import Problem
from .bodies import INCLUDED, OFFERED_NOWHERE, ResponseFields, ResponseTool, all_tools

Message = dict[str, Any]

WRITTEN = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "json_schema": "text.format.schema",
    "response_format.json_schema.schema": "text.format.schema",
    "response_format": "text.format",
    PARAMETERS: "tools[{}].parameters",
}
"""Names of a conversation's fields to those of this API."""

SHARED = tuple(name for name in Sampling.__struct_fields__ if name not in Labels.__struct_fields__)
"""Fields that mean the same in both."""


def conversation(
    body: ResponseFields, before: list[Message], templates: ChatTemplates | str, parameters: tuple[str, ...]
) -> ChatFields:
    """The request as a chat completion; ``before`` are the messages of the response that it goes on from."""
    for name in body.include or ():
        if name not in INCLUDED:
            raise Problem(
                400, f"include has {name!r:.80}, which is not served here; leave it out", param="include"
            )
    if getattr(body, "n", None) not in (None, 1):
        raise Problem(400, f"n={body.n}; a response is one answer: leave n out", param="n")  # type: ignore[attr-defined]
    messages = [{"role": "system", "content": body.instructions}] if body.instructions else []
    messages += before
    messages += (
        [{"role": "user", "content": body.input}] if isinstance(body.input, str) else messages_of(body.input)
    )
    given: dict[str, Any] = {
        name: getattr(body, name) for name in (*SHARED, "parallel_tool_calls", *parameters)
    }
    tools, choice = tools_of(body.tools or []), body.tool_choice
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        names = allowed_names(choice.get("tools"), {tool.function.name for tool in tools})
        tools, choice = [tool for tool in tools if tool.function.name in names], choice.get("mode", "auto")
    return ChatBody(
        **given,
        messages=messages,
        max_tokens=body.max_output_tokens,
        tools=tools or None,
        tool_choice=None if choice in ("auto", "none") and not tools else choice_of(choice),
        response_format=format_of(body),
        reasoning_effort=None if body.reasoning is None else body.reasoning.effort,
        verbosity=None if body.text is None else body.text.verbosity,
        chat_template_kwargs=template_arguments(body, templates) or None,
    )


def format_of(body: ResponseFields) -> Any:
    wanted = None if body.text is None else body.text.format
    if wanted is None or wanted.type == "text":
        return None
    schema = None
    if wanted.type == "json_schema":
        if wanted.schema is None:
            raise Problem(400, "text.format of type json_schema needs schema", param="text.format.schema")
        schema = {"name": wanted.name or "answer", "schema": wanted.schema}
    return converted("text.format", {"type": wanted.type, "json_schema": schema}, ResponseFormat)


def template_arguments(body: ResponseFields, templates: ChatTemplates | str) -> dict[str, Any]:
    """The arguments of the chat template: those of the caller, and not to think where that is asked for and the
    template can."""
    known = frozenset[str]() if isinstance(templates, str) else frozenset(templates.default.names)
    thinks = body.reasoning is None or body.reasoning.effort != "none" or "enable_thinking" not in known
    return ({} if thinks else {"enable_thinking": False}) | (body.chat_template_kwargs or {})


def tools_of(tools: list[ResponseTool]) -> list[Tool]:
    made: list[Any] = []
    names: set[str] = set()
    offered = list(all_tools(tools))
    counted("tools", len(offered), MAX_TOOLS, "tools")
    for where, _, tool in offered:
        if tool.type not in ("function", "custom"):
            raise Problem(
                400,
                f"{where}.type is {tool.type!r:.80}; this service has no tools of its own: give functions or custom"
                " tools, which the caller carries out",
                param=f"{where}.type",
            )
        if not tool.name or tool.name in names:
            what = f"{tool.name!r:.80}, which another tool has" if tool.name else "missing"
            raise Problem(400, f"{where}.name is {what}; give each a name of its own", param=f"{where}.name")
        names.add(tool.name)
        parameters, strict = tool.parameters, tool.strict
        if tool.type == "custom":
            if tool.format is not None and tool.format.get("type") != "text":
                kind = brief(tool.format.get("type"))
                raise Problem(
                    400, f"{where}.format.type is {kind}; custom tools take text", param=f"{where}.format"
                )
            strict = None
            parameters = {
                "type": "object",
                "properties": {"input": {"type": "string"}},
                "required": ["input"],
                "additionalProperties": False,
            }
        function = {
            "name": tool.name,
            "description": tool.description,
            "parameters": parameters,
            "strict": strict,
        }
        made.append({"type": "function", "function": function})
    return converted("tools", made, list[Tool])


def allowed_names(allowed: Any, offered: set[str]) -> set[str]:
    """The functions and custom tools among ``allowed``, each of which is offered."""
    where, names = "tool_choice.tools", set[str]()
    if not isinstance(allowed, list):
        raise Problem(400, f"{where} is {brief(allowed)}; give a list of tools", param=where)
    for number, tool in enumerate(allowed):
        if isinstance(tool, dict) and str(tool.get("type")) in OFFERED_NOWHERE:
            continue
        name = tool.get("name") if isinstance(tool, dict) else None
        if not isinstance(name, str) or name not in offered:
            place = f"{where}[{number}]"
            raise Problem(
                400, f"{place} is {brief(tool)}, which is none of tools; name one of them", param=place
            )
        names.add(name)
    return names


def choice_of(choice: str | dict[str, Any] | None) -> Any:
    if isinstance(choice, dict) and choice.get("type") in ("function", "custom") and "name" in choice:
        choice = {"type": "function", "function": {"name": choice["name"]}}
    return converted("tool_choice", choice, ToolChoice | None)


# --- items ----------------------------------------------------------------------------------------


def messages_of(items: list[dict[str, Any]]) -> list[Message]:
    """Thoughts, text and calls in a row are one message of the assistant."""
    messages: list[Message] = []
    for number, item in enumerate(items):
        for message in item_messages(f"input[{number}]", item):
            last = messages[-1] if messages else {}
            if message["role"] == "assistant" == last.get("role") and joins(last, message):
                last |= {key: value for key, value in message.items() if key != "tool_calls"}
                if "tool_calls" in message:
                    last["tool_calls"] = [*last.get("tool_calls", []), *message["tool_calls"]]
            else:
                messages.append(message)
        if len(messages) > MAX_MESSAGES:
            raise InvalidRequest(
                f"input has more than {MAX_MESSAGES} messages, the limit: send fewer", param="input"
            )
    return messages


def joins(last: Message, message: Message) -> bool:
    """Whether two messages of the assistant are parts of one."""
    if "reasoning" in message:
        return False
    return "tool_calls" in message or not ("content" in last or "tool_calls" in last)


def item_messages(where: str, item: dict[str, Any]) -> Iterator[Message]:
    kind = item.get("type", "message")
    if kind == "message":
        role = item.get("role")
        if not isinstance(role, str) or not role:
            raise Problem(
                400, f"{where}.role is {brief(role)}; give user, for example", param=f"{where}.role"
            )
        yield {"role": role, "content": text_of(f"{where}.content", item.get("content"))}
    elif kind in ("function_call", "custom_tool_call"):
        given = item.get("arguments")
        arguments = call_arguments(f"{where}.arguments", {} if given is None else given)
        if kind == "custom_tool_call":
            arguments = {"input": item.get("input", "")}
        function = {"name": item.get("name"), "arguments": arguments}
        yield {
            "role": "assistant",
            "tool_calls": [{"id": item.get("call_id"), "type": "function", "function": function}],
        }
    elif kind in ("function_call_output", "custom_tool_call_output"):
        content = text_of(f"{where}.output", item.get("output"))
        yield {"role": "tool", "tool_call_id": item.get("call_id"), "content": content}
    elif kind == "reasoning":
        thoughts = thoughts_of(where, item)
        if thoughts:
            yield {"role": "assistant", "reasoning": thoughts}
    else:
        raise Problem(
            400,
            f"{where}.type is {brief(kind)}; give message, function_call, function_call_output, reasoning or"
            " item_reference",
            param=f"{where}.type",
        )


def thoughts_of(where: str, item: dict[str, Any]) -> str:
    """The thoughts of an item, or else their summary; empty where they are encrypted."""
    name = "content" if item.get("content") else "summary"
    parts = item.get(name) or []
    place = f"{where}.{name}"
    if not isinstance(parts, list):
        raise Problem(400, f"{place} is {brief(parts)}; give a list of parts", param=place)
    texts = [part.get("text") if isinstance(part, dict) else None for part in parts]
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            place = f"{place}[{number}]"
            raise Problem(400, f"{place} is {brief(parts[number])}; expected a part with text", param=place)
    return "\n".join(map(str, texts))


def text_of(where: str, content: Any) -> Any:
    """A content with the names that conversations have for its parts."""
    if not isinstance(content, list):
        return content
    parts: list[Any] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("input_text", "output_text", "text", "refusal"):
            parts.append({"type": "text", "text": part.get("refusal" if kind == "refusal" else "text")})
        else:
            place = f"{where}[{len(parts)}]"
            raise Problem(
                400, f"{place} is {brief(part)}; expected a text part: this service reads text", param=place
            )
    if len(parts) == 1:
        return parts[0]["text"]
    return parts
