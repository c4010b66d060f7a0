"""Grammars of calls whose arguments stand between tags, as texts without quotes: Qwen3-Coder and GLM."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from ....protocol.formats.calls import (
    CLOSE,
    FUNCTION,
    FUNCTION_END,
    KEY,
    KEY_END,
    OPEN,
    PARAMETER,
    PARAMETER_END,
    VALUE,
    VALUE_END,
)
from ....protocol.formats.moved_schemas import moved
from ....protocol.formats.schemas import Schema
from .call_rules import GAP, Rules, Schemas, Ways, arguments, behind_marks, one_of, other_than
from .notation import literal

ANY = "(?s:.*)"

DEEPEST = 8
"""References and choices that are followed to learn whether a value may be any text: deeper ones are treated as if it
may not."""

WORDS = {"null": "null", "boolean": "true|false", "integer": "-?[0-9]+"}
"""How values are written that are no texts, where one might stand instead."""


class Tags(NamedTuple):
    """``opening`` KEY ``named`` VALUE ``closing``, of which the first two are rules and the last is a mark."""

    opening: str
    named: str
    closing: str


def qwen3_coder(rules: Rules, functions: Schemas) -> Ways:
    """``<function=NAME><parameter=KEY>VALUE</parameter></function>``, with a mark before it that is often left out."""
    tags = Tags(json.dumps(PARAMETER), '">\\n"', f"\n{PARAMETER_END}")
    calls = rules.rule(
        one_of(
            f"{json.dumps(f'{name}>')} {GAP} {in_tags(rules, tags, schema)} {json.dumps(FUNCTION_END)}"
            for name, schema in functions.items()
        )
    )
    close = rules.mark(CLOSE)
    return behind_marks(
        rules,
        {
            OPEN: f"{GAP} {json.dumps(FUNCTION)} {calls} {GAP} {close}",
            FUNCTION: f"{calls} ({GAP} {close})?",
        },
    )


def glm45(rules: Rules, functions: Schemas) -> Ways:
    """``NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value>``."""
    key, key_end, value, close = map(rules.mark, (KEY, KEY_END, VALUE, CLOSE))
    tags = Tags(key, f"{key_end} {GAP} {value}", VALUE_END)
    calls = one_of(
        f"{json.dumps(name)} {GAP} {in_tags(rules, tags, schema)}" for name, schema in functions.items()
    )
    return behind_marks(rules, {OPEN: f"{calls} {close}"})


def in_tags(rules: Rules, tags: Tags, schema: dict[str, Any]) -> str:
    """The arguments of one function, in the order of its schema, and others behind them where it takes others."""
    root = Schema(schema, "")
    properties, required = schema.get("properties", {}), schema.get("required", ())
    parts: list[str] = []
    for name, each in properties.items():
        given = value(rules, root, each, f"properties/{pointed(name)}", tags.closing)
        one = f"{tags.opening} {json.dumps(name, ensure_ascii=False)} {tags.named} {given} {GAP}"
        parts.append(one if name in required else f"({one})?")
    others = schema.get("additionalProperties", True)
    if others is not False:
        name = rules.terminal(other_than(r"[^<>\s]+", properties))
        given = value(rules, root, others, "additionalProperties", tags.closing)
        parts.append(f"({tags.opening} {name} {tags.named} {given} {GAP})*")
    return " ".join(parts)


def pointed(name: str) -> str:
    """A name as part of a reference."""
    return name.replace("~", "~0").replace("/", "~1")


def value(rules: Rules, root: Schema, schema: Any, place: str, closing: str) -> str:
    """The value at a place of the schema ``root`` of a function, with the mark behind it: JSON, unless it may be a
    text. What is read is looked at again, so that this may allow more than the schema does."""
    kinds = root.types(schema)
    if not kinds or "string" in kinds:
        return rules.up_to(f"/{pattern(root, schema)}/", closing)
    if '"$ref"' in json.dumps(schema):
        schema = {"$ref": f"#/$defs/0/{place}", "$defs": {"0": moved(root.root, "#/$defs/0", "")}}
    return f"{arguments(schema)} {rules.mark(closing)}"


def pattern(root: Schema, schema: Any, depth: int = 0) -> str:
    """A regular expression of the texts that are read as a value that may be a text."""
    if not isinstance(schema, dict) or depth > DEEPEST:
        return ANY
    if "$ref" in schema:
        return pattern(root, root.target(schema["$ref"]), depth + 1)
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if values is not None:
        return "|".join(literal(each if isinstance(each, str) else json.dumps(each)) for each in values)
    ways = schema.get("anyOf", schema.get("oneOf"))
    if ways is not None:
        return "|".join(pattern(root, way, depth + 1) for way in ways)
    kinds = schema.get("type")
    if isinstance(kinds, list):
        return "|".join(pattern(root, schema | {"type": kind}, depth + 1) for kind in kinds)
    if kinds != "string":
        return WORDS.get(str(kinds), ANY)
    most = schema.get("maxLength")
    return f"(?s:.{{{int(schema.get('minLength', 0))},{'' if most is None else int(most)}}})"
