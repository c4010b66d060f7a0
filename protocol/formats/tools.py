"""Tools: what may be asked of them, and how a choice of them is put to the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from ..codec import complaint, convert, field_of
from ..errors import InvalidRequest, brief
from ..limits import MAX_GRAMMAR_BYTES, MAX_TOOLS
from ..sampling import SamplingParams, counted
from .moved_schemas import moved
from .schemas import Reserve, Schema, bare
from .strict_json import DECODER


class Function(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    name: Annotated[str, Meta(min_length=1, max_length=128)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """A JSON Schema of the arguments."""
    strict: bool | None = None
    cache_control: dict[str, Any] | None = None
    """Where another service would have a prefix cached. Here all are."""


class Tool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    type: Literal["function"]
    function: Function
    cache_control: dict[str, Any] | None = None


class FunctionName(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    name: str


class AllowedTool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    type: Literal["function"]
    function: FunctionName


class AllowedTools(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    mode: Literal["auto", "required"]
    tools: Annotated[list[AllowedTool], Meta(min_length=1)]


class NamedTool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The function that has to be called; or, as ``allowed_tools``, those that alone may be."""

    type: Literal["function", "allowed_tools"]
    function: FunctionName | None = None
    allowed_tools: AllowedTools | None = None

    def __post_init__(self) -> None:
        others = {"function": self.allowed_tools, "allowed_tools": self.function}
        if getattr(self, self.type) is None or others[self.type] is not None:
            raise ValueError(f"of type {self.type} has {self.type} and nothing else")


ToolChoice = Literal["none", "auto", "required"] | NamedTool


class Offer(msgspec.Struct, kw_only=True):
    """The tools that the model is shown, and the form that its answer must have."""

    tools: list[dict[str, Any]] | None = None
    """As the chat template takes them."""
    functions: dict[str, Function] = {}
    """The functions that may be called, by name."""
    forced: str | None = None
    """The one function whose arguments are the answer."""
    schema: dict[str, Any] | None = None
    """What the answer must match where a call is forced."""
    where: str = "tools"
    """Path of the field that the schema is made of."""
    places: dict[str, str] = {}
    """Paths of the fields that the parts of the schema, or the calls, are made of."""
    single: bool = False
    """Only the first call of an answer is one."""
    strict: dict[str, Schema] = {}
    """By function: what the arguments have to match where no schema forces them."""
    enforced: bool = False
    """A grammar holds calls between the format's marks to that, so that arguments can be emitted as they come."""

    @property
    def required(self) -> bool:
        """The answer is calls and nothing else."""
        return self.schema is not None and self.forced is None

    @property
    def calls(self) -> dict[str, dict[str, Any]]:
        """What the model's calls are held to, by function, if one of them is ``strict``; nothing where that would be
        more than a grammar may have."""
        if not self.strict:
            return {}
        found = {
            name: bare(self.strict[name].root) if name in self.strict else {"type": "object"}
            for name in self.functions
        }
        return found if len(json.dumps(found)) <= MAX_GRAMMAR_BYTES else {}

    def checks(self, name: str) -> bool:
        """Whether the arguments of a call are looked at before they are emitted."""
        return name in self.strict and not (self.enforced and self.strict[name].plain)

    def fits(self, name: str, arguments: str) -> bool:
        """Whether JSON text is what the function takes; only of a ``strict`` one that is known."""
        try:
            value = DECODER.decode(arguments)
        except (ValueError, RecursionError):
            return False
        schema = self.strict.get(name)
        return isinstance(value, dict) and (schema is None or schema.fits(value))


NO_OFFER = Offer()


def offer_of(tools: Any, choice: Any, parallel: bool | None) -> Offer:
    """``offer`` for plain values, in OpenAI's form; ``InvalidRequest`` names the place of what is wrong."""
    return offer(
        converted("tools", tools, list[Tool] | None),
        converted("tool_choice", choice, ToolChoice | None),
        parallel,
    )


def converted(name: str, value: Any, kind: Any) -> Any:
    try:
        return convert(value, kind)
    except msgspec.ValidationError as error:
        field = field_of(error) or ""
        where = name + (field if field[:1] in ("", "[") else f".{field}")
        said, _, given = complaint(error, value, kind)
        raise InvalidRequest(f"{where} is wrong: {said}{given}", param=where) from None


def with_schema(params: SamplingParams, offered: Offer) -> SamplingParams:
    """The parameters with what a forced call has to match."""
    if offered.schema is None:
        return params
    if params.grammar is not None:
        raise InvalidRequest(
            f"{params.grammar.kind} cannot be kept where tool_choice makes the answer a call; leave one out",
            param=params.grammar.kind,
        )
    return msgspec.structs.replace(params, json_schema=offered.schema)


PARAMETERS = "tools[{}].function.parameters"
"""Where the schema of a function's arguments stands, by its number."""


def offer(
    tools: list[Tool] | None, choice: ToolChoice | None, parallel: bool | None, where: str = PARAMETERS
) -> Offer:
    """Combine ``tools``, ``tool_choice`` and ``parallel_tool_calls``; errors name ``where`` the caller wrote the
    schemas."""
    if not tools:
        if choice not in (None, "none") and not (choice == "auto" and tools == []):
            raise InvalidRequest("tool_choice is of no use without tools", param="tool_choice")
        return Offer()
    if choice == "none":
        return Offer()
    counted("tools", len(tools), MAX_TOOLS, "tools")
    functions: dict[str, Function] = {}
    for number, tool in enumerate(tools):
        if functions.setdefault(tool.function.name, tool.function) != tool.function:
            place = f"{where.format(number).rpartition('.')[0]}.name"
            message = (
                f"{place} is {tool.function.name!r:.80}, which another tool has; give each a name of its own"
            )
            raise InvalidRequest(message, param=place)
    places = {tool.function.name: where.format(number) for number, tool in enumerate(tools)}
    for name, function in functions.items():
        check_type(function, places[name])
    for name in names_of(choice):
        if name not in functions:
            raise InvalidRequest(
                f"tool_choice names {name!r:.80}, which is not in tools", param="tool_choice"
            )
    if isinstance(choice, NamedTool) and choice.allowed_tools is not None:
        functions = {name: functions[name] for name in names_of(choice)}
        places = {name: places[name] for name in functions}
        choice = choice.allowed_tools.mode
    offered = Offer(tools=[msgspec.to_builtins(tool) for tool in tools], functions=functions)
    if isinstance(choice, NamedTool):
        [name] = names_of(choice)
        offered.forced = name
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
        offered.places = {f"calls.{name}": place for name, place in places.items()}
        reserve = Reserve()
        offered.strict = {
            name: Schema(moved(arguments_of(function), "#", places[name]), places[name], reserve).check()
            for name, function in functions.items()
            if function.strict
        }
        schema = next((schema for schema in offered.strict.values() if schema.pattern), None)
        if schema is not None and not offered.calls:
            raise schema.not_held(
                f"{schema.pattern!r}, with more than {MAX_GRAMMAR_BYTES} bytes in all strict schemas"
            )
    return offered


def names_of(choice: ToolChoice | None) -> list[str]:
    """The functions that a choice names."""
    if not isinstance(choice, NamedTool):
        return []
    if choice.allowed_tools is not None:
        return [tool.function.name for tool in choice.allowed_tools.tools]
    return [] if choice.function is None else [choice.function.name]


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


def check_type(function: Function, where: str) -> None:
    """Refuse a schema that no arguments fit, which always are an object."""
    kinds = (function.parameters or {}).get("type", "object")
    if kinds != "object" and not (isinstance(kinds, list) and "object" in kinds):
        raise InvalidRequest(
            f"{where} is of the type {brief(kinds)}; the arguments of a function are an object", param=where
        )


SAYS_WHAT = frozenset({"type", "$ref", "anyOf", "oneOf", "allOf", "const", "enum"})
"""Keywords by which a schema says what a value is."""


NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


def arguments_of(function: Function) -> dict[str, Any]:
    """The schema of its arguments, which are an object whatever else it allows. A function without ``parameters`` has
    none, as OpenAI's API has it."""
    if function.parameters is None:
        return NO_ARGUMENTS
    given = function.parameters
    among_others = isinstance(given.get("type"), list) and "object" in given["type"]
    return given | {"type": "object"} if among_others or not SAYS_WHAT.intersection(given) else given
