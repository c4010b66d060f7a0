"""The protocol for those who write a client: its tables in Markdown and its JSON Schema, made from the code.

What they say comes from the types, the docstrings and the limits themselves, so it cannot be anything else
than what the service does. ``slipstream protocol`` prints them; ``docs/protocol.md`` holds the tables, and a test
holds that they are of this code.
"""

from __future__ import annotations

import ast
import inspect
import json
import types
import typing
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import import_module
from typing import Any

import msgspec

from ..protocol import errors, limits
from ..protocol.limits import PROTOCOL
from ..protocol.messages import PublicIn, PublicOut
from ..protocol.sampling import RANGES, SamplingParams

FROM_CLIENT: tuple[type[msgspec.Struct], ...] = typing.get_args(PublicIn)
TO_CLIENT: tuple[type[msgspec.Struct], ...] = typing.get_args(PublicOut)
MESSAGES = (*FROM_CLIENT, *TO_CLIENT)

SCALARS: dict[Any, str] = {
    str: "str",
    int: "int",
    float: "float",
    bool: "bool",
    bytes: "bin",
    Any: "any",
    types.NoneType: "nil",
}
"""MessagePack's words."""

INSIDE = ("MAX_INTERNAL_FRAME_BYTES", "MAX_IPC_PATH_BYTES")
"""Limits that no message of a client can meet."""


def parts_of(kinds: Iterable[type[msgspec.Struct]]) -> list[type[msgspec.Struct]]:
    """The types that occur inside messages and are no messages themselves, in the order in which they are met."""
    found: list[type[msgspec.Struct]] = []

    def look(hint: Any) -> None:
        for inner in typing.get_args(hint):
            look(inner)
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct) and hint not in found:
            found.append(hint)
            meet(hint)

    def meet(kind: type[msgspec.Struct]) -> None:
        for field in msgspec.structs.fields(kind):
            look(field.type)

    for kind in kinds:
        meet(kind)
    return found


PARTS = tuple(part for part in parts_of(MESSAGES) if part is not SamplingParams)

# --- docstrings ---------------------------------------------------------------------------------


def notes(body: Iterable[ast.stmt]) -> dict[str, str]:
    """The text under each assignment of a module or a class, by the assigned name."""
    found: dict[str, str] = {}
    name = None
    for statement in body:
        if name is not None and isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            found[name] = inspect.cleandoc(str(statement.value.value))
        target = None
        if isinstance(statement, ast.AnnAssign):
            target = statement.target
        elif isinstance(statement, ast.Assign):
            target = statement.targets[0]
        name = target.id if isinstance(target, ast.Name) else None
    return found


@cache
def module_notes(module: str) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """The notes of a module, and those of each of its classes."""
    body = ast.parse(inspect.getsource(import_module(module))).body
    return notes(body), {node.name: notes(node.body) for node in body if isinstance(node, ast.ClassDef)}


def field_notes(kind: type) -> dict[str, str]:
    return module_notes(kind.__module__)[1][kind.__name__]


def about(kind: type) -> str:
    return inspect.cleandoc(kind.__doc__ or "")


def markdown(text: str) -> str:
    """A docstring on one line, with code as Markdown has it and messages by the names that they have on the wire."""
    for kind in MESSAGES:
        text = text.replace(f"``{kind.__name__}``", f"``{kind.__struct_config__.tag}``")
    return " ".join(text.split()).replace("``", "`").replace("|", "\\|")


# --- tables -------------------------------------------------------------------------------------


def type_name(hint: Any) -> str:
    """A type in MessagePack's words, without ``nil``: a field that is left out is the same."""
    if hint in SCALARS:
        return SCALARS[hint]
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_name(one) for one in inner if one is not types.NoneType)
    if origin is list:
        return f"array of {type_name(inner[0])}"
    if origin is tuple:
        return f"array ({', '.join(map(type_name, inner))})"
    if origin is dict:
        return f"map of {type_name(inner[1])}"
    return f"[{hint.__name__}](#{hint.__name__.lower()})"


def default_of(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "required"
    default = field.default
    if default is msgspec.NODEFAULT:
        default = field.default_factory()
    if default is None or isinstance(default, msgspec.Struct):
        return ""
    return f"`{json.dumps(msgspec.to_builtins(default))}`"


def range_of(name: str) -> str:
    if name not in RANGES:
        return ""
    low, high, above = RANGES[name]
    return f"{'above' if above else 'at least'} {low:,}, at most {high if isinstance(high, str) else f'{high:,}'}"


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fields_table(kind: type[msgspec.Struct]) -> str:
    notes = field_notes(kind)
    ranges = kind is SamplingParams
    rows: list[tuple[str, ...]] = []
    for field in msgspec.structs.fields(kind):
        row = (f"`{field.name}`", type_name(field.type), default_of(field))
        rows.append((*row, *((range_of(field.name),) if ranges else ()), markdown(notes.get(field.name, ""))))
    return table(("field", "type", "default", *(("range",) if ranges else ()), "meaning"), rows)


def chapter(kind: type[msgspec.Struct]) -> str:
    """One message or part: heading, purpose, fields."""
    tag = kind.__struct_config__.tag
    says = "The client says" if kind in FROM_CLIENT else "The service says"
    title = f"{says} `{tag}`" if kind in MESSAGES else kind.__name__
    fields = [fields_table(kind)] if kind.__struct_fields__ else []
    return "\n\n".join([f"#### {title}", paragraphs(about(kind)), *fields])


def paragraphs(text: str) -> str:
    return "\n\n".join(markdown(paragraph) for paragraph in text.split("\n\n"))


def chapters(kinds: Iterable[type[msgspec.Struct]]) -> str:
    return "\n\n".join(chapter(kind) for kind in kinds)


def errors_table() -> str:
    notes = {code: meaning for code, (_, meaning) in errors.EXACT_CODES.items()}
    rows = [
        (f"`{code}`", f"`{kind.__name__}`", markdown(notes.get(code) or about(kind)))
        for code, kind in errors.BY_CODE.items()
    ]
    return table(("code", "in Python", "meaning"), rows)


def limits_table() -> str:
    notes = module_notes(limits.__name__)[0]
    names = [name for name in vars(limits) if name.startswith("MAX_") and name not in INSIDE]
    rows = [(f"`{name}`", f"{getattr(limits, name):,}", markdown(notes.get(name, ""))) for name in names]
    return table(("limit", "value", "of what"), rows)


def tables() -> Mapping[str, str]:
    """Every generated part of the document by the name that its markers have."""
    return {
        "from-client": chapters(FROM_CLIENT),
        "sampling": f"{paragraphs(about(SamplingParams))}\n\n{fields_table(SamplingParams)}",
        "to-client": chapters(TO_CLIENT),
        "parts": chapters(PARTS),
        "errors": errors_table(),
        "limits": limits_table(),
    }


def document() -> str:
    """The tables alone, for a reader who has the program and not its documents."""
    titles = {
        "from-client": "From a client",
        "sampling": "SamplingParams",
        "to-client": "To a client",
        "parts": "Parts of messages",
        "errors": "Errors",
        "limits": "Limits",
    }
    body = "\n\n".join(f"## {titles[name]}\n\n{text}" for name, text in tables().items())
    return f"# Slipstream's protocol {PROTOCOL[0]}.{PROTOCOL[1]}\n\n{body}\n"


# --- JSON Schema --------------------------------------------------------------------------------


def schema() -> dict[str, Any]:
    """A schema of every public message as its maps read in JSON; ``FromClient`` and ``ToClient`` divide them."""
    divided, parts = msgspec.json.schema_components((PublicIn, PublicOut), ref_template="#/$defs/{name}")
    for kind in (*MESSAGES, *PARTS, SamplingParams):
        part = parts[kind.__name__]
        part["description"] = " ".join(about(kind).split())
        for name, notes in field_notes(kind).items():
            part["properties"][name] |= {"description": " ".join(notes.split())}
    bound(parts["SamplingParams"]["properties"])
    for one in divided:
        one.pop("discriminator")  # OpenAPI's word; each message has its ``t``
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Slipstream's protocol {PROTOCOL[0]}.{PROTOCOL[1]}",
        "anyOf": [{"$ref": "#/$defs/FromClient"}, {"$ref": "#/$defs/ToClient"}],
        "$defs": {"FromClient": divided[0], "ToClient": divided[1], **parts},
    }


def bound(properties: dict[str, Any]) -> None:
    """Write the ranges of the sampling parameters into their schema; what a service limits itself stays open."""
    for name, (low, high, above) in RANGES.items():
        edges = {"exclusiveMinimum" if above else "minimum": low}
        if not isinstance(high, str):
            edges["maximum"] = high
        property = properties[name]
        for one in property.get("anyOf", [property]):
            if one.get("type") in ("integer", "number"):
                one |= edges


def schema_text() -> str:
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"
