"""Replaces what models write as Python does, such as ``True``, by what JSON has, in text that comes in parts."""

from __future__ import annotations

import re

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
