"""Grammars of calls that are written in Python, ``[weather(city="Rome", days=3)]``."""

from __future__ import annotations

import json
import keyword
from typing import Any

from ....protocol.errors import InvalidRequest
from ....protocol.formats.pythonic import CLOSING, OPENING
from ....protocol.formats.schemas import Schema
from .call_rules import SPACE, WIDE_GAP, Rules, Schemas, Ways, arguments, as_a_whole, one_of, other_than
from .notation import literal

COMMA = f'"," {WIDE_GAP}'

NUMBER = r"/-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,2})?/"

WORDS = {"null": '("None" | "null")', "boolean": '("True" | "False" | "true" | "false")'}
"""Values of one word. Models mix up Python's names and JSON's, and both are read."""

NUMERIC = ("type", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")

Item = tuple[str, bool]
"""A rule, and whether it has to be there."""


def pythonic(rules: Rules, functions: Schemas) -> Ways:
    """A list of calls that is the whole answer. What has no name in Python cannot be called."""
    made: dict[str, str] = {}
    for name, schema in functions.items():
        if all(map(is_name, [*name.split("."), *schema.get("required", ())])):
            made[name] = f'{Arguments(rules, name, schema).keywords()} ")"'
    if not made:
        raise InvalidRequest(
            "calls cannot be followed: this model writes calls as Python does, which has no names for"
            f" {', '.join(functions)} or for what they require"
        )
    call = rules.rule(one_of(f"{json.dumps(f'{name}(')} {each}" for name, each in made.items()))
    closing = one_of(map(rules.mark, CLOSING))
    tail = f'({COMMA} {call})* "]" {closing}?'
    named = {rf"{literal(name)}{SPACE}\(": f"{each} {tail}" for name, each in made.items()}
    return as_a_whole(rules, OPENING, {rf"\[{SPACE}": named}, f'"[" {call} {tail}')


def is_name(text: str) -> bool:
    """Whether Python takes it for the name of something."""
    return text.isidentifier() and not keyword.iskeyword(text)


class Arguments:
    """The rules of one function's arguments. What is read is looked at again, so that they may allow more than the
    schema does."""

    def __init__(self, rules: Rules, function: str, schema: dict[str, Any]) -> None:
        self.rules = rules
        self.function = function
        self.schema = Schema(schema, "")

    def keywords(self) -> str:
        """Arguments by name, in the order of the schema, and others behind them where it takes others."""
        schema = self.schema.root
        properties = {name: each for name, each in schema.get("properties", {}).items() if is_name(name)}
        items = [
            (f'"{name}=" {self.value(each)}', name in schema.get("required", ()))
            for name, each in properties.items()
        ]
        other = self.rules.terminal(other_than("[a-zA-Z_][a-zA-Z0-9_]*", properties))
        return self.in_order(items, schema, f'{other} "="')

    def in_order(self, items: list[Item], schema: dict[str, Any], other: str) -> str:
        """Items with commas between them, and behind them what ``other`` begins, if the schema takes more."""
        others = schema.get("additionalProperties", True)
        more = "" if others is False else f"{other} {self.value(others)}"
        first = f"({more} ({COMMA} {more})*)?" if more else '""'
        rest = f"({COMMA} {more})*" if more else ""
        for item, needed in reversed(items):
            first = self.rules.rule(f"{item} {rest}" if needed else f"{item} {rest} | {first}")
            another = f"{COMMA} {item}" if needed else f"({COMMA} {item})?"
            rest = self.rules.rule(f"{another} {rest}")
        return first

    def value(self, schema: Any) -> str:
        """A value that is valid under part of the schema."""
        if not isinstance(schema, dict):
            return any_value(self.rules)
        if "$ref" in schema:
            place: str = schema["$ref"]
            return self.rules.named(f"{self.function} {place}", lambda: self.value(self.schema.target(place)))
        if "enum" in schema or "const" in schema:
            return one_of(map(written, schema.get("enum", [schema.get("const")])))
        ways = schema.get("anyOf", schema.get("oneOf"))
        if ways is not None:
            return one_of(map(self.value, ways))
        kinds = schema.get("type")
        if isinstance(kinds, list):
            return one_of(self.value(schema | {"type": kind}) for kind in kinds)
        kind = str(kinds)
        if kind in ("integer", "number"):
            return arguments({name: schema[name] for name in NUMERIC if name in schema})
        if kind == "string":
            return text(schema.get("minLength", 0), schema.get("maxLength"))
        if kind == "array" and "prefixItems" not in schema:
            return self.list_of(schema)
        if kind == "object":
            return self.map_of(schema)
        return WORDS.get(kind) or any_value(self.rules)

    def list_of(self, schema: dict[str, Any]) -> str:
        item = self.value(schema.get("items", True))
        least, most = int(schema.get("minItems", 0)), schema.get("maxItems")
        if most is not None and most < 1:
            return '"[]"'
        further = f"{max(least - 1, 0)},{'' if most is None else int(most) - 1}"
        items = f"{item} ({COMMA} {item}){{{further}}}"
        return f'("[" {items if least else f"({items})?"} "]")'

    def map_of(self, schema: dict[str, Any]) -> str:
        required = schema.get("required", ())
        items = [
            (f'{written(name)} ":" {WIDE_GAP} {self.value(each)}', name in required)
            for name, each in schema.get("properties", {}).items()
        ]
        pairs = self.in_order(items, schema, f'{text(0, None)} ":" {WIDE_GAP}')
        return f'("{{" {pairs} "}}")'


def text(least: float, most: float | None) -> str:
    """A text with a number of characters within bounds, in quotes of either kind."""
    many = f"{int(least)},{'' if most is None else int(most)}"
    return one_of(
        rf"/{quote}([^{quote}\\\x00-\x1f]|\\[\\'\x22nrt]){{{many}}}{quote}/" for quote in (r"\x22", "'")
    )


def written(value: Any) -> str:
    """One value, as Python and as JSON have it."""
    return one_of(sorted({json.dumps(repr(value)), json.dumps(json.dumps(value, ensure_ascii=False))}))


def any_value(rules: Rules) -> str:
    def body() -> str:
        each, name = rules.names["any value"], text(0, None)
        listed = f'"[" ({each} ({COMMA} {each})*)? "]"'
        pair = f'{name} ":" {WIDE_GAP} {each}'
        return f'{name} | {NUMBER} | {" | ".join(WORDS.values())} | {listed} | "{{" ({pair} ({COMMA} {pair})*)? "}}"'

    return rules.named("any value", body)
