"""JSON Schemas made by a program: all keywords that structured output follows, nested at random.

Strings and arrays are bounded, so that an answer can end before its request does.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]

WORDS = ["name", "age", "city", "tags", "is open", "größe", "x", "unit price", "colour", 'a"b', "next"]
PATTERNS = ["^[a-z]{1,6}$", "^[A-Z]{3}-[0-9]{2}$", "^(north|south)$", "^[0-9a-f]{4}$"]
FORMATS = ["date", "time", "date-time", "uuid", "ipv4"]


def schemas(rng: random.Random, count: int) -> list[Schema]:
    """``count`` different ones. They take the kinds in turn, so that none is left to chance."""
    kinds = itertools.cycle([*LEAVES, *BRANCHES, *WHOLE, *BRANCHES, *WHOLE])
    made: dict[str, Schema] = {}
    while len(made) < count:
        schema = next(kinds)(rng, 2)
        made[json.dumps(schema)] = schema
    return list(made.values())


def any_schema(rng: random.Random, depth: int) -> Schema:
    kind = rng.choice([*LEAVES, *BRANCHES, *BRANCHES] if depth > 0 else LEAVES)
    return kind(rng, depth - 1)


def string(rng: random.Random, depth: int) -> Schema:
    low = rng.randrange(4)
    return {"type": "string", "minLength": low, "maxLength": low + rng.randrange(8)}


def pattern(rng: random.Random, depth: int) -> Schema:
    return {"type": "string", "pattern": rng.choice(PATTERNS)}


def formatted(rng: random.Random, depth: int) -> Schema:
    return {"type": "string", "format": rng.choice(FORMATS)}


def integer(rng: random.Random, depth: int) -> Schema:
    low = rng.randrange(-1000, 1000)
    bounds = {"minimum": low, "maximum": low + rng.randrange(5000)}
    if rng.random() < 0.3:
        bounds = {"exclusiveMinimum": low, "exclusiveMaximum": low + 2 + rng.randrange(5000)}
    return {"type": "integer"} | bounds


def multiple(rng: random.Random, depth: int) -> Schema:
    return {"type": "integer", "multipleOf": rng.choice([2, 3, 5, 10]), "minimum": 0, "maximum": 1000}


def number(rng: random.Random, depth: int) -> Schema:
    low = rng.randrange(-50, 50)
    return {"type": "number", "minimum": low, "maximum": low + rng.choice([1, 7.5, 300])}


def enum(rng: random.Random, depth: int) -> Schema:
    values = ["red", "green", "größte", 1, 2.5, True, None, ["a", 1], {"k": "v"}, "two words", ""]
    return {"enum": rng.sample(values, rng.randrange(1, 6))}


def constant(rng: random.Random, depth: int) -> Schema:
    return {"const": rng.choice(["fixed", 42, {"a": [1, "b"]}, None, -0.5])}


def simple(rng: random.Random, depth: int) -> Schema:
    return {"type": rng.choice(["boolean", "null", ["boolean", "null"]])}


def array(rng: random.Random, depth: int) -> Schema:
    low = rng.randrange(3)
    return {
        "type": "array",
        "items": any_schema(rng, depth),
        "minItems": low,
        "maxItems": low + rng.randrange(3),
    }


def tuple_of(rng: random.Random, depth: int) -> Schema:
    items = [any_schema(rng, depth - 1) for _ in range(rng.randrange(1, 4))]
    return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}


def closed_object(rng: random.Random, depth: int) -> Schema:
    names = rng.sample(WORDS, rng.randrange(1, 5))
    return {
        "type": "object",
        "properties": {name: any_schema(rng, depth - 1) for name in names},
        "required": rng.sample(names, rng.randrange(len(names) + 1)),
        "additionalProperties": False,
    }


def pattern_object(rng: random.Random, depth: int) -> Schema:
    return {
        "type": "object",
        "properties": {"id": {"type": "integer", "minimum": 0, "maximum": 99}},
        "patternProperties": {"^x-[a-z]{1,3}$": {"type": "boolean"}},
        "required": ["id"],
        "additionalProperties": False,
        "maxProperties": 3,
    }


def any_of(rng: random.Random, depth: int) -> Schema:
    return {"anyOf": [any_schema(rng, depth - 1) for _ in range(rng.randrange(2, 4))]}


def one_of(rng: random.Random, depth: int) -> Schema:
    return {"oneOf": [integer(rng, 0), string(rng, 0), {"type": "null"}]}


def all_of(rng: random.Random, depth: int) -> Schema:
    low = rng.randrange(100)
    return {"allOf": [{"type": "integer"}, {"minimum": low}, {"maximum": low + 500}]}


def referring(rng: random.Random, depth: int) -> Schema:
    return {
        "$defs": {"part": any_schema(rng, depth - 1)},
        "type": "object",
        "properties": {"first": {"$ref": "#/$defs/part"}, "second": {"$ref": "#/$defs/part"}},
        "required": ["first"],
        "additionalProperties": False,
    }


def recursive(rng: random.Random, depth: int) -> Schema:
    return {
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {
                    "value": integer(rng, 0),
                    "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 1},
                },
                "required": ["value"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/tree",
    }


Kind = Callable[[random.Random, int], Schema]
LEAVES: list[Kind] = [string, pattern, formatted, integer, multiple, number, enum, constant, simple]
BRANCHES: list[Kind] = [array, tuple_of, closed_object, pattern_object, any_of, one_of, all_of]
WHOLE: list[Kind] = [referring, recursive]
"""Not part of another: their references are from the root."""
