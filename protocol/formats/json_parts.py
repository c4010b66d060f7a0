"""Calls that are JSON objects, ``{"name": …, "arguments": {…}}``, read while they come."""

from __future__ import annotations

import re

HEAD = re.compile(
    r'\s*\{\s*(?:"(?:id|tool_call_id|type)"\s*:\s*(?:"[^"\\]*"|\d+)\s*,\s*)?'
    r'"(?:name|tool_name)"\s*:\s*"([^"\\]+)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
"""The beginning of a call up to its arguments, which are an object."""

LONGEST_HEAD = 512
"""Characters within which a head has to end: names have at most 64. A call with a longer one is read when it is
complete."""


def head_of(text: str) -> tuple[str, int] | None:
    """The name of the function whose call a text begins with, and where its arguments begin; None: not yet."""
    found = HEAD.match(text[:LONGEST_HEAD])
    return None if found is None else (found[1], found.end())


TOKEN = re.compile(r'["\\{}\[\]<]')


class ObjectEnd:
    """Finds where a JSON value ends, an object or a list, that comes in parts.

    A ``<`` outside of quotes, which no JSON has, ends it too: it begins the mark behind a value that lacks its end.
    """

    def __init__(self, depth: int = 0) -> None:
        """``depth``: how many are open already."""
        self.depth = depth
        self.quoted = False
        self.escaped = False
        """The last part ended with a backslash."""

    def find(self, part: str) -> int:
        """The place in ``part`` behind the end; -1 if it does not come in it."""
        place = int(self.escaped and bool(part))
        self.escaped = self.escaped and not part
        while (found := TOKEN.search(part, place)) is not None:
            token, place = found[0], found.end()
            if token == '"':
                self.quoted = not self.quoted
            elif token == "\\":
                self.escaped = place == len(part)
                place += 1
            elif self.quoted:
                continue
            elif token == "<":
                return place - 1
            elif token in "{[":
                self.depth += 1
            else:
                self.depth -= 1
                if self.depth <= 0:
                    return place
        return -1
