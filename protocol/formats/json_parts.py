"""Calls that are JSON objects, ``{"name": …, "arguments": {…}}``, read while they come; and JSON as the standard has
it, without what Python's own module reads and writes beyond that."""

from __future__ import annotations

import json
import math
import re
from typing import Any


def finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number:.40} is no number of JSON")
    return value


DECODER = json.JSONDecoder(parse_constant=finite, parse_float=finite)
"""Takes no NaN and no Infinity, nor what would become one, such as 1e999: a ``ValueError``."""

HALF = re.compile("[\ud800-\udfff]")
"""Half of a character that UTF-8 has in one: JSON text can name it, and no frame can hold it."""


def as_json(value: Any) -> str:
    """Plain values as JSON text that can be sent; ``ValueError`` if a number is not finite."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return json.dumps(value) if HALF.search(text) else text


WORDS = {
    "NaN": "null",
    "Infinity": "null",
    "-Infinity": "null",
    "True": "true",
    "False": "false",
    "None": "null",
}
"""What models write as Python does, and what JSON has instead; numbers that are not finite it has none for."""

OUTSIDE, INSIDE = re.compile(r'"|-?[A-Za-z]+|-$'), re.compile(r'"|\\.?', re.DOTALL)
"""Where something begins, outside of quotes and inside, that cannot be passed on unseen."""


class JsonWords:
    """Takes JSON's names for Python's, in JSON text that comes in parts."""

    def __init__(self) -> None:
        self.held = ""
        """The end of what has come, which may become such a name."""
        self.quoted = False
        self.escaped = False
        """The last part ended with a backslash."""

    def feed(self, part: str) -> str:
        text, self.held = self.held + part, ""
        made: list[str] = []
        begun, place = 0, int(self.escaped and bool(part))
        self.escaped = self.escaped and not part
        while (found := (INSIDE if self.quoted else OUTSIDE).search(text, place)) is not None:
            token, place = found[0], found.end()
            if token == '"':
                self.quoted = not self.quoted
            elif token == "\\":
                self.escaped = True
            elif not self.quoted and place == len(text) and any(word.startswith(token) for word in WORDS):
                self.held = token
                return "".join(made) + text[begun : found.start()]
            elif token in WORDS and not self.quoted:
                made.append(text[begun : found.start()] + WORDS[token])
                begun = place
        return "".join(made) + text[begun:]


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
