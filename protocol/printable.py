"""Makes text from others safe for a terminal and for a line of a log."""

from __future__ import annotations

import re

CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that a terminal acts on, that begin a line, or that turn the direction of what follows; and halves of
characters, which cannot be written at all."""


def printable(text: str) -> str:
    """Text that changes nothing but its own place on a line: control characters are written out."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def printable_lines(text: str) -> str:
    """As `printable`, for text that may have several lines."""
    return "\n".join(map(printable, text.split("\n")))
