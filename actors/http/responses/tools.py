"""The tools of a response: functions, custom tools, whose input is a text, and namespaces of either."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from msgspec import Meta, Struct

from ....protocol.errors import brief
from ....protocol.formats.tools import Tool, ToolChoice, converted
from ....protocol.limits import MAX_TOOLS
from ....protocol.sampling import counted
from ...text.prompts.keys import Keys, kept
from ..errors import Problem

DESCRIBED = frozenset(("type", "name", "description"))

AT_ONCE: dict[str, Any] = {"allowed_callers": ["direct"], "async": False, "defer_loading": False}
"""The model is shown every tool, and calls it itself."""

TOOLS = {
    "function": Keys("a function", DESCRIBED | {"parameters", "strict"}, fixed=AT_ONCE),
    "custom": Keys("a custom tool", DESCRIBED | {"format"}, fixed=AT_ONCE),
    "namespace": Keys("a namespace", frozenset(("type", "name", "tools")), frozenset(("description",))),
    "web_search": Keys(
        "web_search",
        frozenset(("type",)),
        frozenset(
            ("external_web_access", "filters", "search_content_types", "search_context_size", "user_location")
        ),
    ),
}
"""The keys of tools, by their type."""

OFFERED_NOWHERE = frozenset({"web_search"})
"""Tools of OpenAI's own that agents send unasked. The model is not told of them, and so does not use them."""

FORMAT = Keys("the format of a custom tool", frozenset(("type",)))
CHOSEN = Keys("a chosen tool", frozenset(("type", "name")))
ALLOWED = Keys("a choice of allowed_tools", frozenset(("type", "mode", "tools")))


class ResponseTool(Struct, kw_only=True):
    """One that the caller carries out."""

    type: str
    name: Annotated[str, Meta(max_length=128)] | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    format: dict[str, Any] | None = None
    """The form of a custom tool's text: only ``{"type": "text"}`` is kept to."""


class Namespace(Struct, kw_only=True):
    """Tools whose calls name it."""

    type: str
    name: str | None = None
    tools: list[Any] = []


def all_tools(tools: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str | None, ResponseTool]]:
    """Each tool that can be called, with its place in the body and its namespace."""
    for number, tool in enumerate(tools):
        where = f"tools[{number}]"
        kind = str(tool.get("type"))
        if kind == "namespace" or kind in OFFERED_NOWHERE:
            tool = kept(where, tool, TOOLS[kind])
        if kind == "namespace":
            space = converted(where, tool, Namespace)
            for index, one in enumerate(space.tools):
                place = f"{where}.tools[{index}]"
                yield place, space.name, callable_tool(place, one)
        elif kind not in OFFERED_NOWHERE:
            yield where, None, callable_tool(where, tool)


def callable_tool(where: str, tool: Any) -> ResponseTool:
    kind = tool.get("type") if isinstance(tool, dict) else None
    if kind not in ("function", "custom"):
        raise Problem(
            400,
            f"{where}.type is {brief(kind)}; this service has no tools of its own: give functions or custom tools,"
            " which the caller carries out",
            param=f"{where}.type",
        )
    tool = kept(where, tool, TOOLS[kind])
    return converted(where, tool, ResponseTool)


def tools_of(tools: Sequence[dict[str, Any]]) -> list[Tool]:
    made: list[Any] = []
    names: set[str] = set()
    offered = list(all_tools(tools))
    counted("tools", len(offered), MAX_TOOLS, "tools")
    for where, _, tool in offered:
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
            kept(f"{where}.format", tool.format or {}, FORMAT)
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


Kinds = dict[str, str]
"""The type of each tool that is offered, by its name."""


def kinds_of(tools: Sequence[dict[str, Any]]) -> Kinds:
    return {tool.name or "": tool.type for _, _, tool in all_tools(tools)}


def allowed_names(choice: dict[str, Any], offered: Kinds) -> set[str]:
    """The functions and custom tools that a choice allows, each of which is offered."""
    allowed = kept("tool_choice", choice, ALLOWED).get("tools")
    where, names = "tool_choice.tools", set[str]()
    if not isinstance(allowed, list):
        raise Problem(400, f"{where} is {brief(allowed)}; give a list of tools", param=where)
    for number, tool in enumerate(allowed):
        if isinstance(tool, dict) and str(tool.get("type")) in OFFERED_NOWHERE:
            continue
        name = tool.get("name") if isinstance(tool, dict) else None
        known = isinstance(name, str) and name in offered and tool.get("type") in (None, offered[name])
        if not isinstance(name, str) or not known:
            place = f"{where}[{number}]"
            raise Problem(
                400, f"{place} is {brief(tool)}, which is none of tools; name one of them", param=place
            )
        kept(f"{where}[{number}]", tool, CHOSEN)
        names.add(name)
    return names


def choice_of(choice: str | dict[str, Any] | None, offered: Kinds) -> Any:
    if isinstance(choice, dict) and choice.get("type") in ("function", "custom") and "name" in choice:
        choice = kept("tool_choice", choice, CHOSEN)
        kind, name = choice["type"], choice.get("name")
        if offered.get(str(name), kind) != kind:
            message = f"tool_choice.type is {kind}, and {brief(name)} is offered as {offered[str(name)]}"
            raise Problem(400, message, param="tool_choice.type")
        choice = {"type": "function", "function": {"name": name}}
    return converted("tool_choice", choice, ToolChoice | None)
