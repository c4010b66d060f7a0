"""Grammars within all limits of size that ask for as much work as they can."""

from __future__ import annotations

import json
import time
from typing import Any

from slipstream.actors.text.grammars.grammar import GrammarCompiler
from slipstream.protocol.errors import InvalidRequest
from slipstream.protocol.sampling import Grammar

NESTED: dict[str, Any] = {
    "$defs": {
        "n": {
            "anyOf": [
                {"type": "array", "items": {"$ref": "#/$defs/n"}},
                {"type": "object", "additionalProperties": {"$ref": "#/$defs/n"}},
            ]
        }
    },
    "$ref": "#/$defs/n",
}

REGEXES = [
    "(x+x+)+y",
    "(.*)*(.*)*(.*)*z",
    "a{30000}",
    "(a|b|ab){2000}c",
    "|".join(f"{number:05}" for number in range(5000)),
    r"[\s\S]{1,20000}",
    r"(\p{L}|\p{N}|\p{P}){1,5000}",
    "((a?){200}){200}b",
    "(a|aa|aaa)*(b|bb)*" * 1000,
    ".*a.{14}",
    "(.*a.{12}|.*b.{12})",
]

SCHEMAS: list[dict[str, Any]] = [
    NESTED,
    {"type": "array", "items": {"type": "array"}, "minItems": 1000, "maxItems": 5000},
    {"enum": [f"{'x' * 20}{number}" for number in range(1200)]},
    {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(1200)}},
    {"anyOf": [{"properties": {f"p{i}": {"const": j} for i in range(20)}} for j in range(60)]},
    {"type": "string", "pattern": "^(a+)+$"},
    {"type": "string", "minLength": 5000, "maxLength": 100_000},
    {"oneOf": [{"type": "number", "multipleOf": step} for step in range(1, 200)]},
    {"allOf": [{"type": "string", "pattern": chr(97 + number)} for number in range(20)]},
    {"allOf": [{"anyOf": [{"required": [f"{i}{j}"]} for j in range(4)]} for i in range(125)]},
    {"type": "integer", "multipleOf": 999_983, "minimum": 1, "maximum": 10**1000},
]

AMBIGUOUS = [
    'start: e\ne: e e | "a"',
    'start: e\ne: e e | e e e | "a"',
    'start: e\ne: e e | e e e | e e e e | "a" | "aa"',
    "start: e\ne: " + " | ".join(" ".join("e" * count) for count in range(2, 12)) + ' | "a"',
    'start: e\ne: e? e? e? "a" e? e?',
]
"""In Lark's notation: rules that part a text in ever more ways. Each matches any number of ``a``."""

HOSTILE_GRAMMARS = [Grammar("regex", regex) for regex in REGEXES]
HOSTILE_GRAMMARS += [Grammar("json_schema", json.dumps(schema)) for schema in SCHEMAS]


def longest_times(compiler: GrammarCompiler, grammar: Grammar, steps: int = 30) -> tuple[float, float]:
    """Seconds of processor time to check it, and of the longest of some steps: a mask and the token after it."""
    begun = time.process_time()
    try:
        compiler.check(grammar)
    except InvalidRequest:
        return time.process_time() - begun, 0.0
    checked = time.process_time() - begun
    matcher, longest = compiler.compile(grammar), 0.0
    for step in range(steps):
        begun = time.process_time()
        allowed = int.from_bytes(matcher.compute_bitmask(), "little") & ~compiler.barred(())
        if matcher.is_error() or not allowed:
            return checked, max(longest, time.process_time() - begun)
        token = (allowed & -allowed).bit_length() - 1 if step % 2 else allowed.bit_length() - 1
        matcher.consume_token(token)
        longest = max(longest, time.process_time() - begun)
    return checked, longest
