"""Reads fields of maps whose types are not declared, such as the blocks and items of a conversation."""

from __future__ import annotations

from typing import Any

from ....protocol.errors import brief
from ..errors import Problem


def text_at(where: str, fields: dict[str, Any], name: str, *default: str | None) -> Any:
    """The text of a field, or the ``default`` if the field is missing and there is one; `Problem` if it is no text.
    ``where`` is the map's path in the body."""
    value = fields.get(name, *default)
    if isinstance(value, str) or (default and value == default[0]):
        return value
    raise Problem(400, f"{where}.{name} is {brief(value)}; give a text", param=f"{where}.{name}")
