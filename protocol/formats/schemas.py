"""Checks calls of functions against JSON Schemas of their arguments, and refuses a schema that it cannot check with.

A model that chooses for itself whether to call is not forced to keep to a ``strict`` function's schema, so that its
calls are checked afterwards. Clients choose both the schema and, as good as, the answer. So a check takes a bounded
number of steps, and knows no regular expressions, which could take for ever: to these a grammar holds the call while it
is written.
"""

from __future__ import annotations

import math
from typing import Any
from urllib.parse import unquote

from ..errors import InvalidRequest, brief
from ..limits import MAX_DEPTH
from .moved_schemas import NAMED, VALUES, is_another, own_id

CHECKS_PER_VALUE = 50
"""Checks of one schema against one value that a validation may make for each value in it: a value is held against a
handful of schemas unless choices are nested without bound."""

MAX_CHECKS = 100_000
"""Further checks that all validations of a request may make together, about 0.1 s. Its answers can have thousands of
calls, each of which takes as long as its schema asks for."""

SILENT = frozenset(
    {"$schema", "$id", "$anchor", "$comment", "title", "description", "default", "examples", "format"}
    | {
        "deprecated",
        "readOnly",
        "writeOnly",
        "strict",
        "contentEncoding",
        "contentMediaType",
        "contentSchema",
    }
    | {"discriminator", "example", "externalDocs", "nullable", "xml"}
)
"""Keywords that no value can offend, those that OpenAPI adds among them, as pydantic writes them."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "propertyNames": (True, {}, {"type": "string"}),
    "uniqueItems": (False,),
    "unevaluatedProperties": (True, {}),
    "unevaluatedItems": (True, {}),
    "additionalItems": (True, {}),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "not": (False,),
}
"""Keywords with the values that hold for whatever they are asked about, as generators of schemas write them: zod of
each record that its names are texts, others that an array may have an item twice."""

NUMBER = (int, float)

LOOSE = frozenset({"oneOf", "allOf", "minProperties", "maxProperties"})
"""Keywords that a grammar may follow in part alone."""

PATTERNS = frozenset({"pattern", "patternProperties"})
"""Keywords with regular expressions, which a grammar follows and no check does."""

CHECKED: dict[str, tuple[type, ...]] = {
    "$ref": (str,),
    "$defs": (dict,),
    "definitions": (dict,),
    "type": (str, list),
    "enum": (list,),
    "const": (object,),
    "anyOf": (list,),
    "oneOf": (list,),
    "allOf": (list,),
    "properties": (dict,),
    "patternProperties": (dict,),
    "required": (list,),
    "additionalProperties": (bool, dict),
    "items": (bool, dict),
    "prefixItems": (list,),
    "pattern": (str,),
    **dict.fromkeys(
        ("minProperties", "maxProperties", "minItems", "maxItems", "minLength", "maxLength"), NUMBER
    ),
    **dict.fromkeys(("minimum", "maximum", "multipleOf"), NUMBER),
    **dict.fromkeys(("exclusiveMinimum", "exclusiveMaximum"), (*NUMBER, bool)),
}
"""Keywords that ``Schema.fits`` knows, those of ``PATTERNS`` aside, and what each may be."""


def bare(schema: Any) -> Any:
    """A schema that was looked into, without the keywords that no value can offend."""
    if isinstance(schema, list):
        return [bare(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key in VALUES - SILENT:
            made[key] = value
        elif key in NAMED and isinstance(value, dict):
            made[key] = {name: bare(each) for name, each in value.items()}
        elif not asks_nothing(key, value):
            made[key] = bare(value)
    return made


def pattern_in(schema: Any) -> str:
    """The first of ``PATTERNS`` in a schema; empty: it has none."""
    if isinstance(schema, list):
        return next(filter(None, map(pattern_in, schema)), "")
    if not isinstance(schema, dict):
        return ""
    for key, value in schema.items():
        if key in PATTERNS:
            return str(key)
        named = key in NAMED and isinstance(value, dict)
        passed = key in VALUES or asks_nothing(key, value)
        found = "" if passed else pattern_in([*value.values()] if named else value)
        if found:
            return found
    return ""


def asks_nothing(key: str, value: Any) -> bool:
    """Whether a keyword of a schema can be offended by nothing, as those of a user's own that begin with ``x-``."""
    return key in SILENT or key.startswith("x-") or is_neutral(key, value)


def is_neutral(key: str, value: Any) -> bool:
    """Whether a keyword has a value that asks for nothing, though others do."""
    return any(same(neutral, value) for neutral in NEUTRAL.get(key, ()))


def types_of(value: Any) -> frozenset[str]:
    """JSON Schema's names of the type of a plain value; a whole number has two."""
    if isinstance(value, bool):
        return frozenset({"boolean"})
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return frozenset({"integer", "number"})
    kinds = {float: "number", str: "string", list: "array", dict: "object", type(None): "null"}
    return frozenset({kinds[type(value)]})


class Schema:
    """The schema of a function's arguments."""

    def __init__(self, root: dict[str, Any], where: str, reserve: Reserve | None = None) -> None:
        """``where`` is the field of the request that it is; ``reserve`` is what its request has for all of them."""
        self.root = root
        self.own = own_id(root)
        self.where = where
        self.reserve = reserve or Reserve()
        self.checks_left = 0
        """Checks, of one schema against one value, that are left to the validation under way."""
        self.known: dict[tuple[int, int], bool] = {}
        """What that has found of a schema and a value, by their addresses. Without it, schemas that refer to themselves
        in several ways would have the same looked at exponentially often."""
        self.plain = True
        """None of its keywords is ``LOOSE``; known when it was looked into."""
        self.pattern = ""
        """One of ``PATTERNS`` that it has; known then, too."""

    # --- looked into --------------------------------------------------------------------------

    def types_of(self, name: str) -> frozenset[str]:
        """The types that the argument ``name`` may have; empty if the schema does not say."""
        properties = self.root.get("properties")
        return self.types(properties.get(name) if isinstance(properties, dict) else None)

    def types(self, schema: Any, depth: int = 0) -> frozenset[str]:
        if not isinstance(schema, dict) or depth > MAX_DEPTH:
            return frozenset()
        if isinstance(schema.get("$ref"), str):
            return self.types(self.target(schema["$ref"]), depth + 1)
        kinds = schema.get("type")
        if isinstance(kinds, str):
            return frozenset({kinds})
        if isinstance(kinds, list):
            return frozenset(kind for kind in kinds if isinstance(kind, str))
        values = schema["enum"] if isinstance(schema.get("enum"), list) else []
        values = values + ([schema["const"]] if "const" in schema else [])
        ways = [way for key in ("anyOf", "oneOf") if isinstance(schema.get(key), list) for way in schema[key]]
        found = [types_of(value) for value in values]
        found += [self.types(way, depth + 1) for way in ways[:MAX_DEPTH]]
        return frozenset().union(*found)

    def target(self, reference: str) -> Any:
        """The schema that a reference leads to; None if it is not here."""
        reference = reference.removeprefix(self.own)
        if reference[:2] not in ("", "#", "#/"):
            return None
        found: Any = self.root
        for part in reference.split("/")[1:]:
            name = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and name.isdecimal() and int(name) < len(found):
                found = found[int(name)]
            elif isinstance(found, dict) and name in found:
                found = found[name]
            else:
                return None
        return found

    def check(self) -> Schema:
        """Refuse a schema that no call can be held against."""
        self.look(self.root, 0)
        self.pattern = pattern_in(self.root)
        if self.pattern and not self.plain:
            raise self.not_held(f"{self.pattern!r} beside {', '.join(sorted(LOOSE))}")
        return self

    def look(self, schema: Any, depth: int, *, another: bool = False) -> None:
        """``another``: it is inside of a schema with an ``$id``."""
        if depth > MAX_DEPTH:
            raise self.problem(f"is nested deeper than {MAX_DEPTH} lists and maps")
        if isinstance(schema, list):
            for item in schema:
                self.look(item, depth + 1, another=another)
        if not isinstance(schema, dict):
            return
        another = another or (depth > 0 and is_another(schema))
        for key, value in schema.items():
            if asks_nothing(key, value):
                continue
            if key not in CHECKED:
                raise self.not_held(f"{key!r:.80}")
            self.plain = self.plain and key not in LOOSE
            names = value if key == "required" or (key == "type" and isinstance(value, list)) else ()
            flag = isinstance(value, bool) and CHECKED[key] is NUMBER
            if (
                flag
                or not isinstance(value, CHECKED[key])
                or not all(isinstance(name, str) for name in names)
            ):
                raise self.problem(f"has {key}={brief(value)}, which is no JSON Schema")
            if key == "$ref" and isinstance(value, str) and (another or self.target(value) is None):
                raise self.problem(
                    f"has a $ref to {brief(value)}, which leads to nothing that calls could be held to; put what it"
                    " means into its $defs"
                )
            if key in NAMED and isinstance(value, dict):
                for each in value.values():
                    self.look(each, depth + 2, another=another)
            elif key not in VALUES:
                self.look(value, depth + 1, another=another)

    def not_held(self, what: str) -> InvalidRequest:
        return self.problem(
            f"has {what}, which calls that a model chooses to make are not held to; leave out strict, or"
            " set tool_choice to required or to the function"
        )

    def problem(self, what: str) -> InvalidRequest:
        return InvalidRequest(f"{self.where} {what}", param=self.where)

    # --- held against a value -----------------------------------------------------------------

    def fits(self, value: Any) -> bool:
        """Whether ``value`` is valid; one that takes too many checks counts as invalid, and so does any where
        the schema has regular expressions."""
        if self.pattern:
            return False
        try:
            self.checks_left = CHECKS_PER_VALUE * count(value) + self.reserve.checks_left
            return self.holds(self.root, value)
        except (
            OutOfChecks,
            RecursionError,
            ArithmeticError,
            ValueError,
        ):  # the last two of numbers beyond all bounds
            return False
        finally:
            self.known.clear()
            self.reserve.checks_left = min(self.reserve.checks_left, max(self.checks_left, 0))

    def holds(self, schema: Any, value: Any) -> bool:
        if not isinstance(schema, dict):
            return schema is not False
        self.checks_left -= 1
        if self.checks_left < 0:
            raise OutOfChecks
        place = id(schema), id(value)
        found = self.known.get(place)
        if found is None:
            found = self.known[place] = self.holds_here(schema, value)
        return found

    def holds_here(self, schema: dict[str, Any], value: Any) -> bool:
        self.checks_left -= (
            len(schema.get("enum", ())) + len(schema.get("required", ()))
        ) // PLAIN_VALUES_PER_CHECK
        if "$ref" in schema and not self.holds(self.target(schema["$ref"]), value):
            return False
        kinds = schema.get("type")
        if kinds is not None and not types_of(value) & set([kinds] if isinstance(kinds, str) else kinds):
            return False
        if "const" in schema and not same(schema["const"], value):
            return False
        if "enum" in schema and not (
            value in schema["enum"] and any(same(each, value) for each in schema["enum"])
        ):
            return False
        if "anyOf" in schema and not any(self.holds(way, value) for way in schema["anyOf"]):
            return False
        if "oneOf" in schema and sum(self.holds(way, value) for way in schema["oneOf"]) != 1:
            return False
        if not all(self.holds(way, value) for way in schema.get("allOf", ())):
            return False
        if isinstance(value, dict):
            return self.holds_object(schema, value)
        if isinstance(value, list):
            return self.holds_array(schema, value)
        if isinstance(value, str):
            return within(schema, "minLength", "maxLength", len(value))
        return isinstance(value, bool) or value is None or holds_number(schema, value)

    def holds_object(self, schema: dict[str, Any], value: dict[str, Any]) -> bool:
        properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        return (
            all(name in value for name in schema.get("required", ()))
            and within(schema, "minProperties", "maxProperties", len(value))
            and all(self.holds(properties.get(name, others), each) for name, each in value.items())
        )

    def holds_array(self, schema: dict[str, Any], value: list[Any]) -> bool:
        first, others = schema.get("prefixItems", []), schema.get("items", True)
        return within(schema, "minItems", "maxItems", len(value)) and all(
            self.holds(first[place] if place < len(first) else others, each)
            for place, each in enumerate(value)
        )


PLAIN_VALUES_PER_CHECK = 50
"""Plain values, as in ``enum``, that are compared in the time of one check."""


class Reserve:
    """The checks that all validations of one request share beyond those that each is granted."""

    def __init__(self) -> None:
        self.checks_left = MAX_CHECKS


class OutOfChecks(Exception):
    """A validation has taken too long."""


def count(value: Any) -> int:
    """Values in a value, itself included."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(map(count, inside))


def same(one: Any, other: Any) -> bool:
    """Whether two plain values are the same JSON: true is not 1, and 1.0 is."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def within(schema: dict[str, Any], low: str, high: str, size: float) -> bool:
    return schema.get(low, 0) <= size <= schema.get(high, math.inf)


def holds_number(schema: dict[str, Any], value: float) -> bool:
    step = schema.get("multipleOf")
    low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
    return (
        low <= value <= high
        and exclusive(schema, "exclusiveMinimum", low, -math.inf) < value
        and value < exclusive(schema, "exclusiveMaximum", high, math.inf)
        and (not step or math.isclose(value / step, round(value / step), abs_tol=1e-9))
    )


def exclusive(schema: dict[str, Any], key: str, bound: float, none: float) -> float:
    """What a number must not reach. In OpenAPI 3.0, as in draft 4, the keyword says of ``bound`` whether it is so."""
    given: float = schema.get(key, none)
    if isinstance(given, bool):
        return bound if given else none
    return given
