"""Moves a JSON Schema to a place inside of a larger one, where its references have to lead to the new place."""

from __future__ import annotations

from typing import Any

from ..errors import InvalidRequest
from ..limits import MAX_DEPTH

NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions"})
"""Keywords whose value has schemas by names of the user's."""

VALUES = frozenset({"const", "enum", "default", "examples"})
"""Keywords whose value is none or several plain values, whatever they look like."""


def moved(schema: dict[str, Any], root: str, where: str) -> dict[str, Any]:
    """A schema as it has to be at the place ``root`` of a larger one: its references lead there, and it has no ``$id``,
    to which they would be relative. ``where`` is the field of the request that it is."""
    made: dict[str, Any] = move(
        {key: value for key, value in schema.items() if key != "$id"}, root, own_id(schema), where
    )
    return made


def own_id(schema: dict[str, Any]) -> str:
    """The URI with which references into the schema itself may begin; empty if it has no ``$id``."""
    own = schema.get("$id")
    return own.removesuffix("#") if isinstance(own, str) else ""


def is_another(schema: dict[str, Any]) -> bool:
    """Whether a schema inside of one is another, into which its references lead."""
    return isinstance(schema.get("$id"), str) and not schema["$id"].startswith("#")


def move(schema: Any, root: str, own: str, where: str, depth: int = 0) -> Any:
    if depth > MAX_DEPTH:
        raise InvalidRequest(f"{where} is nested deeper than {MAX_DEPTH} lists and maps", param=where)
    if isinstance(schema, list):
        return [move(item, root, own, where, depth + 1) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if is_another(schema):
        return schema
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key in VALUES:
            made[key] = value
        elif key in NAMED and isinstance(value, dict):
            made[key] = {name: move(each, root, own, where, depth + 2) for name, each in value.items()}
        elif key == "$ref" and isinstance(value, str):
            made[key] = root + value.removeprefix(own)[1:] if leads_into(value, own) else value
        else:
            made[key] = move(value, root, own, where, depth + 1)
    return made


def leads_into(reference: str, own: str) -> bool:
    """Whether a reference leads into the schema that has it, whose ``$id`` is ``own``."""
    path = reference.removeprefix(own)
    return path in ("", "#") or path.startswith("#/")
