"""JSON as the standard has it, without what Python's own module reads and writes beyond that."""

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
