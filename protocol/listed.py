"""Lists the values that a field may have, for an error: msgspec says only that a value is none of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

from msgspec import inspect

UNLISTED = "Invalid enum value "
"""How msgspec says that a value is none of them; its errors have no fields."""

WORDS: dict[type[inspect.Type], str] = {
    inspect.NoneType: "null",
    inspect.BoolType: "bool",
    inspect.IntType: "int",
    inspect.FloatType: "float",
    inspect.StrType: "str",
    inspect.StructType: "object",
    inspect.DictType: "object",
    inspect.ListType: "array",
}
"""What msgspec calls a value of these types."""


def listed(kind: Any, path: list[str]) -> str:
    """What the field at ``path`` of a ``kind`` takes, as msgspec writes what it expects."""
    found = [word for type in at(type_of(kind), path) for word in words(type)]
    return " | ".join(dict.fromkeys(found))


@cache
def type_of(kind: Any) -> inspect.Type:
    return inspect.type_info(kind)


def at(type: inspect.Type, path: list[str]) -> Iterator[inspect.Type]:
    """The types that the value at ``path`` may have."""
    match type:
        case inspect.Metadata():
            yield from at(type.type, path)
        case inspect.UnionType():
            for one in type.types:
                yield from at(one, path)
        case _ if not path:
            yield type
        case inspect.StructType():
            for field in type.fields:
                if field.encode_name == path[0]:
                    yield from at(field.type, path[1:])
        case inspect.ListType():
            yield from at(type.item_type, path[1:])
        case _:
            return


def words(type: inspect.Type) -> list[str]:
    if isinstance(type, inspect.LiteralType):
        return [json.dumps(value) for value in type.values]
    word = WORDS.get(type.__class__)
    return [] if word is None else [word]
