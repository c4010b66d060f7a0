"""The keys that the parts of a conversation may have, so that none of them is passed over in silence.

A key has a meaning here, or the model's chat template reads it; or it is known to ask for nothing: what clients send
back of an answer, and what they write for other services. Those are left out of what the template is given. Any other
is refused by its path. A null asks for nothing, whatever its key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from ....protocol.errors import InvalidRequest, brief

REASONING = ("reasoning", "reasoning_content", "thinking")
"""Names that templates and clients have for the thoughts before an answer."""


class Keys(NamedTuple):
    """Those that one kind of map may have."""

    what: str
    """Name of such a map in an error."""
    meant: frozenset[str]
    """Those that have a meaning."""
    idle: frozenset[str] = frozenset()
    """Those that ask for nothing here."""
    fixed: Mapping[str, Any] = MappingProxyType({})
    """Those that are taken with one value alone, which is what happens anyway."""


FOREIGN_KEYS = ("cache_control", "extra_content", "provider_specific_fields")
"""Keys for services that cache by them, or brought from answers of others: LiteLLM's, Google's."""

MESSAGE = Keys(
    "a message",
    frozenset(("role", "content", "name", "refusal", "tool_calls", "tool_call_id", *REASONING)),
    frozenset(
        (
            "annotations",
            "id",
            "index",
            "parsed",
            "reasoning_details",
            "status",
            "thinking_blocks",
            *FOREIGN_KEYS,
        )
    ),
)
ECHOED_WITH_TEXT = (
    "annotations",
    "citations",
    "id",
    "index",
    "logprobs",
    "prompt_cache_breakpoint",
    *FOREIGN_KEYS,
)
TEXT = Keys("a part of type text", frozenset(("type", "text")), frozenset(ECHOED_WITH_TEXT))
REFUSAL = Keys("a part of type refusal", frozenset(("type", "refusal")), frozenset(ECHOED_WITH_TEXT))
CALL = Keys("a call", frozenset(("id", "type", "function")), frozenset(("index", *FOREIGN_KEYS)))
CALLED = Keys(
    "the function of a call",
    frozenset(("name", "arguments")),
    frozenset(("parsed_arguments", *FOREIGN_KEYS)),
)
TOOL = Keys("a tool", frozenset(("type", "function")), frozenset(("cache_control",)))
FUNCTION = Keys(
    "a function",
    frozenset(("name", "description", "parameters", "strict")),
    frozenset(("cache_control",)),
)


def kept(
    where: str, given: Mapping[str, Any], keys: Keys, named: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """The entries of a map that have a meaning; ``named`` are keys that the template reads.

    ``InvalidRequest`` for one that nobody reads.
    """
    found: dict[str, Any] = {}
    for key, value in given.items():
        if value is None:
            continue
        if key in keys.meant or key in named:
            found[key] = value
        elif key in keys.fixed:
            if value != keys.fixed[key]:
                only = json.dumps(keys.fixed[key])
                place = f"{where}.{key}"
                raise InvalidRequest(
                    f"{place} is {brief(value)}, which is not served here; leave it out, or give {only}",
                    param=place,
                )
        elif key not in keys.idle:
            place = f"{where}.{key!s:.80}"
            raise InvalidRequest(
                f"{place} is no field that is read here: {keys.what} has {', '.join(sorted(keys.meant))}; leave it out",
                param=place,
            )
    return found
