"""What others have written, for a terminal."""

from __future__ import annotations

import re

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""Characters that a terminal acts on, or that turn the direction of what follows."""


def printable(text: str) -> str:
    """Text that changes nothing but its own place on a terminal: control characters are written out."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
