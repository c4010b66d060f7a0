"""Tools: how a choice of them is put to the model, and how its calls are read from its text.

Models write calls as text, each family in its own way. Read are the common ones:

    <tool_call>{"name": …, "arguments": {…}}</tool_call>                       Hermes, Qwen, and many more
    <tool_call><function=NAME><parameter=KEY>VALUE</parameter></function></tool_call>       Qwen3-Coder
    {"name": …, "parameters": {…}}                                                          Llama 3
    [{"name": …, "arguments": {…}}]                                                         Mistral

The last two only where they are the whole answer. What looks like a call, but is none of a function that
was offered, or one whose arguments are not what a ``strict`` function takes, stays text.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from ..text.conversation import CALL_ID_CHARACTERS
from ..text.marks import beginning_of
from .errors import Names, Problem
from .schemas import Schema, moved, types_of

OPEN, CLOSE = "<tool_call>", "</tool_call>"

MARKS = ("[TOOL_CALLS]", "<|python_tag|>")
"""What may stand before calls that are the whole answer; most vocabularies have it as a special token."""

PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"


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
    """Which tools the model is shown, and what its answer has to be."""

    tools: list[dict[str, Any]] | None = None
    """As the chat template takes them."""
    functions: dict[str, Function] = {}
    """Those that a call may be of, by name."""
    forced: str | None = None
    """The one function whose arguments are the answer."""
    schema: dict[str, Any] | None = None
    """What the answer must match where a call is forced."""
    where: str = "tools"
    """Path of the field that the schema is made of."""
    places: Names = {}
    """Paths of the fields that the parts of the schema are made of."""
    single: bool = False
    """Only the first call of an answer is one."""
    strict: dict[str, Schema] = {}
    """By function: what the arguments have to match where no schema forces them."""

    @property
    def required(self) -> bool:
        """The answer is calls and nothing else."""
        return self.schema is not None and self.forced is None


def offer(tools: list[Tool] | None, choice: ToolChoice | None, parallel: bool | None) -> Offer:
    """What ``tools``, ``tool_choice`` and ``parallel_tool_calls`` ask for together."""
    if not tools:
        if choice not in (None, "none") and not (choice == "auto" and tools == []):
            raise Problem(400, "tool_choice is of no use without tools", param="tool_choice")
        return Offer()
    if choice == "none":
        return Offer()
    functions = {tool.function.name: tool.function for tool in tools}
    offered = Offer(tools=[msgspec.to_builtins(tool) for tool in tools], functions=functions)
    places = {tool.function.name: f"tools[{number}].function.parameters" for number, tool in enumerate(tools)}
    if isinstance(choice, NamedTool):
        offered.forced = name = choice.function.name
        if name not in functions:
            raise Problem(400, f"tool_choice names {name!r:.80}, which is not in tools", param="tool_choice")
        offered.schema = arguments_of(functions[name])
        offered.where = places[name]
        return offered
    offered.single = parallel is False
    if choice == "required":
        offered.schema = any_call_of(functions, places, 1 if offered.single else None)
        offered.places = {
            f"json_schema.$defs.{number}": place for number, place in enumerate(places.values())
        }
    else:
        offered.strict = {
            name: Schema(arguments_of(function), places[name]).check()
            for name, function in functions.items()
            if function.strict
        }
    return offered


def any_call_of(
    functions: Mapping[str, Function], places: Mapping[str, str], most: int | None
) -> dict[str, Any]:
    """A schema of a list of calls. Each function's own has a place in ``$defs``, where its references lead."""
    calls: list[dict[str, Any]] = []
    definitions: dict[str, Any] = {}
    for number, (name, function) in enumerate(functions.items()):
        root = f"#/$defs/{number}"
        definitions[str(number)] = moved(arguments_of(function), root, places[name])
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": name}, "arguments": {"$ref": root}},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    schema: dict[str, Any] = {"type": "array", "items": {"anyOf": calls}, "minItems": 1, "$defs": definitions}
    return schema if most is None else schema | {"maxItems": most}


def arguments_of(function: Function) -> dict[str, Any]:
    return function.parameters or {"type": "object"}


# --- what is answered ---------------------------------------------------------------------------


class Call(msgspec.Struct, kw_only=True):
    name: str
    arguments: str
    """JSON text."""
    id: str = msgspec.field(default_factory=lambda: uuid.uuid4().hex[:CALL_ID_CHARACTERS])
    """Letters and digits: the templates of some models take no other when the call is sent back to them."""

    def as_answer(self) -> dict[str, Any]:
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


class CallReader:
    """Parts the text of one answer, as it comes, into calls and the rest. Nothing of it is lost, but for a call that
    the end of the answer cuts off, and those after the first where one alone is asked for."""

    def __init__(self, offered: Offer) -> None:
        self.offered = offered
        self.held = ""
        """Text that may be, or may become, part of a call."""
        self.where = "start"
        """``start``: only space has come; ``whole``: all of it may be calls; ``text``; ``call``: inside of one."""
        self.calls = 0
        self.after_call = False
        """Nothing but space has come since a call: if another one follows, it is dropped."""

    def feed(self, text: str) -> tuple[str, list[Call]]:
        """What of the text can be sent now, and the calls that are complete."""
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
                    before = self.held[: len(self.held) - beginning_of(OPEN, self.held)]
                if before.strip() or not self.after_call:
                    texts.append(before)
                    self.after_call = self.after_call and not before.strip()
                elif not found:
                    break  # what follows decides
                if not found:
                    self.held = self.held[len(before) :]
                    break
                self.held, self.where = after, "call"
            inside, found, after = self.held.partition(CLOSE)
            if not found:
                break
            made = read_call(inside, self.offered)
            if made:
                calls += self.counted(made)
            else:
                texts.append(OPEN + inside + CLOSE)
            self.after_call = bool(made)
            self.held, self.where = after, "text"
        return "".join(texts), calls

    def end(self, *, at_limit: bool = False) -> tuple[str, list[Call]]:
        """The rest, when no more text comes; ``at_limit``: there would have been more."""
        held, self.held = self.held, ""
        if self.where in ("start", "whole"):
            calls = self.counted(read_whole(held, self.offered, at_limit=at_limit))
            return ("", calls) if calls or (at_limit and self.offered.required) else (held, [])
        if self.where == "call":
            calls = self.counted(read_call(held, self.offered))
            return ("", calls) if calls or at_limit else (OPEN + held, [])
        return ("", []) if self.after_call and not held.strip() else (held, [])

    def counted(self, calls: list[Call]) -> list[Call]:
        """Those of the calls that are handed over."""
        if self.offered.single:
            calls = calls[: max(0, 1 - self.calls)]
        self.calls += len(calls)
        return calls


def read_call(inside: str, offered: Offer) -> list[Call]:
    """The call between the marks; none if it is not one."""
    text = inside.strip()
    if text.startswith("<function=") and text.endswith("</function>"):
        name, found, rest = text.removeprefix("<function=").removesuffix("</function>").partition(">")
        if found and name in offered.functions:
            return as_calls(
                [{"name": name, "arguments": read_parameters(rest, offered.functions[name])}], offered
            )
    return read_whole(inside, offered)


def read_parameters(text: str, function: Function) -> dict[str, Any]:
    """The arguments of a call that is written without quotes."""
    schema = Schema(arguments_of(function), "")
    values: dict[str, Any] = {}
    while True:
        _, found, rest = text.partition(PARAMETER)
        name, named, rest = rest.partition(">")
        value, ended, text = rest.partition(PARAMETER_END)
        if not (found and named and ended):
            return values
        values[name] = read_value(value.removeprefix("\n").removesuffix("\n"), schema.types_of(name))


def read_value(text: str, types: frozenset[str]) -> Any:
    """A value that is written without quotes: JSON of one of these types, or else a text. ``types`` is empty where
    the function does not say."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if "string" in types and not types & types_of(value):
        return text
    return value


def read_whole(text: str, offered: Offer, *, at_limit: bool = False) -> list[Call]:
    """The calls of an answer that is nothing else, one or several, in a list or in a row; with ``at_limit`` the last
    one may be incomplete, and is then none."""
    rest = text.strip()
    for mark in MARKS:
        rest = rest.removeprefix(mark).lstrip()
    found: list[Any] = []
    decoder = json.JSONDecoder()
    inside = at_limit and rest.startswith("[")
    if inside:
        rest = rest[1:].lstrip()
    try:
        while rest:
            value, end = decoder.raw_decode(rest)
            found += value if isinstance(value, list) else [value]
            rest = rest[end:].lstrip()
            rest = rest.removeprefix("," if inside else ";").lstrip()
    except (ValueError, RecursionError):
        if not at_limit:
            return []
    return as_calls(found, offered)


def as_calls(values: list[Any], offered: Offer) -> list[Call]:
    """The values as calls; none if one of them is not."""
    calls = [made for value in values if (made := as_call(value, offered)) is not None]
    return calls if len(calls) == len(values) else []


def as_call(value: Any, offered: Offer) -> Call | None:
    if not isinstance(value, dict) or value.get("name") not in offered.functions:
        return None
    name, arguments = value["name"], value.get("arguments", value.get("parameters", {}))
    schema = offered.strict.get(name)
    if isinstance(arguments, str):
        try:
            plain = json.loads(arguments) if schema is not None else {}
        except (ValueError, RecursionError):
            return None
        text = arguments
    else:
        plain, text = arguments, json.dumps(arguments, ensure_ascii=False)
    if not isinstance(plain, dict) or (schema is not None and not schema.fits(plain)):
        return None
    return Call(name=name, arguments=text)
