"""Tools: how a choice of them is put to the model, and how its calls are read from its text.

Models write calls as text, each family in its own way. Read are the common ones:

    <tool_call>{"name": …, "arguments": {…}}</tool_call>                       Hermes, Qwen, and many more
    <tool_call><function=NAME><parameter=KEY>VALUE</parameter></function></tool_call>       Qwen3-Coder
    {"name": …, "parameters": {…}}                                                          Llama 3
    [{"name": …, "arguments": {…}}]                                                         Mistral

The last two only where they are the whole answer. What looks like a call, but is none of a function that
was offered, stays text.
"""

from __future__ import annotations

import json
import re
import uuid
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from .errors import Problem

OPEN, CLOSE = "<tool_call>", "</tool_call>"

MARKS = ("[TOOL_CALLS]", "<|python_tag|>")
"""What may stand before calls that are the whole answer; most vocabularies have it as a special token."""

XML = re.compile(r"<function=([^>\s]+)>(.*?)</function>", re.DOTALL)
XML_PARAMETER = re.compile(r"<parameter=([^>\s]+)>\n?(.*?)\n?</parameter>", re.DOTALL)


# --- what is asked ------------------------------------------------------------------------------


class Function(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    name: Annotated[str, Meta(min_length=1, max_length=128)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """A JSON Schema of the arguments."""
    strict: bool | None = None


class Tool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    type: Literal["function"]
    function: Function


class FunctionName(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    name: str


class NamedTool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    type: Literal["function"]
    function: FunctionName


ToolChoice = Literal["none", "auto", "required"] | NamedTool


class Offer(msgspec.Struct, kw_only=True):
    """Which tools the model is told of, and what its answer has to be."""

    tools: list[dict[str, Any]] | None = None
    """As the chat template takes them."""
    names: frozenset[str] = frozenset()
    forced: str | None = None
    """The one function whose arguments are the answer."""
    schema: dict[str, Any] | None = None
    """What the answer must match where a call is forced."""
    where: str = "tools"
    """Path of the field that the schema is made of."""


def offer(tools: list[Tool] | None, choice: ToolChoice | None, parallel: bool | None) -> Offer:
    if not tools:
        if choice not in (None, "none") and not (choice == "auto" and tools == []):
            raise Problem(400, "tool_choice is of no use without tools", param="tool_choice")
        return Offer()
    if choice == "none":
        return Offer()
    plain = [msgspec.to_builtins(tool) for tool in tools]
    functions = {tool.function.name: tool.function for tool in tools}
    told = Offer(tools=plain, names=frozenset(functions))
    if isinstance(choice, NamedTool):
        told.forced = name = choice.function.name
        if name not in functions:
            raise Problem(400, f"tool_choice names {name!r:.80}, which is not in tools", param="tool_choice")
        told.schema = arguments_of(functions[name])
        told.where = f"tools[{list(functions).index(name)}].function.parameters"
    elif choice == "required":
        calls = [
            {
                "type": "object",
                "properties": {"name": {"const": name}, "arguments": arguments_of(function)},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for name, function in functions.items()
        ]
        told.schema = {"type": "array", "items": {"anyOf": calls}, "minItems": 1}
        if parallel is False:
            told.schema["maxItems"] = 1
    elif parallel is False:
        message = "parallel_tool_calls=false needs tool_choice=required or a named function"
        raise Problem(400, message, param="parallel_tool_calls")
    elif any(function.strict for function in functions.values()):
        message = "strict=true of a function needs tool_choice=required or a named function"
        raise Problem(400, message, param="tools")
    return told


def arguments_of(function: Function) -> dict[str, Any]:
    return function.parameters or {"type": "object"}


# --- what is answered ---------------------------------------------------------------------------


class Call(msgspec.Struct, kw_only=True):
    name: str
    arguments: str
    """JSON text."""
    id: str = msgspec.field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}")

    def told(self) -> dict[str, Any]:
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


class CallReader:
    """Parts the text of one answer, as it comes, into calls and the rest. Nothing of it is lost."""

    def __init__(self, names: frozenset[str]) -> None:
        self.names = names
        self.held = ""
        """Text that may be, or may become, part of a call."""
        self.where = "start"
        """``start``: only space has come; ``whole``: all of it may be calls; ``text``; ``call``: inside of one."""
        self.calls = 0

    def feed(self, text: str) -> tuple[str, list[Call]]:
        """What of the text can be told now, and the calls that are complete."""
        self.held += text
        if self.where == "start":
            begun = self.held.lstrip()
            if not begun or any(mark.startswith(begun) for mark in MARKS):
                return "", []
            self.where = "whole" if begun[0] in "{[" or begun.startswith(MARKS) else "text"
        if self.where == "whole":
            return "", []
        return self.cut()

    def cut(self) -> tuple[str, list[Call]]:
        texts: list[str] = []
        calls: list[Call] = []
        while True:
            if self.where == "text":
                before, found, after = self.held.partition(OPEN)
                if not found:
                    kept = len(self.held) - beginning_of(OPEN, self.held)
                    texts.append(self.held[:kept])
                    self.held = self.held[kept:]
                    break
                texts.append(before)
                self.held, self.where = after, "call"
            inside, found, after = self.held.partition(CLOSE)
            if not found:
                break
            made = read_call(inside, self.names)
            if made:
                calls += made
            else:
                texts.append(OPEN + inside + CLOSE)
            self.held, self.where = after, "text"
        self.calls += len(calls)
        text = "".join(texts)
        if self.calls and not text.strip():
            text = ""  # between two calls
        return text, calls

    def end(self) -> tuple[str, list[Call]]:
        """The rest, when no more text comes."""
        held, self.held = self.held, ""
        if self.where == "whole":
            calls = read_whole(held, self.names)
            self.calls += len(calls)
            return ("", calls) if calls else (held, [])
        if self.where == "call":
            return OPEN + held, []
        return ("", []) if self.calls and not held.strip() else (held, [])


def beginning_of(mark: str, text: str) -> int:
    """How long the end of ``text`` is that could be the beginning of ``mark``."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)


def read_call(inside: str, names: frozenset[str]) -> list[Call]:
    """The call between the marks; none if it is not one."""
    found = XML.fullmatch(inside.strip())
    if found is not None and found[1] in names:
        values = {key: read_value(value) for key, value in XML_PARAMETER.findall(found[2])}
        return [Call(name=found[1], arguments=json.dumps(values, ensure_ascii=False))]
    return read_whole(inside, names)


def read_value(text: str) -> Any:
    """A value that is written without quotes: JSON if it is any, or else a text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def read_whole(text: str, names: frozenset[str]) -> list[Call]:
    """The calls of an answer that is nothing else, one or several, in a list or in a row."""
    rest = text.strip()
    for mark in MARKS:
        rest = rest.removeprefix(mark).lstrip()
    found: list[Any] = []
    decoder = json.JSONDecoder()
    try:
        while rest:
            value, end = decoder.raw_decode(rest)
            found += value if isinstance(value, list) else [value]
            rest = rest[end:].lstrip().removeprefix(";").lstrip()
    except (ValueError, RecursionError):
        return []
    calls = [made for value in found if (made := as_call(value, names)) is not None]
    return calls if len(calls) == len(found) else []


def as_call(value: Any, names: frozenset[str]) -> Call | None:
    if not isinstance(value, dict) or value.get("name") not in names:
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        return Call(name=value["name"], arguments=arguments)
    if not isinstance(arguments, dict):
        return None
    return Call(name=value["name"], arguments=json.dumps(arguments, ensure_ascii=False))
