"""The value of one option: read from what was given, and refused where it is out of range."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

from ...protocol.errors import InvalidRequest
from .table import Option

HALF = re.compile("[\ud800-\udfff]")
"""What Python makes of bytes that are no UTF-8: half of a character, which nobody can be told."""

TRUE, FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


def convert(option: Option, raw: Any, where: str) -> Any:
    """The value that ``raw`` stands for; ``where`` is how it was given, ``--max-num-seqs `` for example."""
    shown = f"{where}{'(secret)' if option.secret else raw}"
    if isinstance(raw, os.PathLike):
        raw = os.fspath(raw)
    try:
        value = read(option, raw)
    except (ValueError, OverflowError) as error:
        expected = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
        detail = f": {error}" if option.parse is not None else ""
        raise InvalidRequest(f"{shown} is not {expected[option.kind]}{detail}") from None
    if option.choices and value not in option.choices:
        near = did_you_mean(str(value), option.choices)
        raise InvalidRequest(f"{shown} is none of {', '.join(option.choices)}{near}")
    if isinstance(value, str) and HALF.search(value):
        raise InvalidRequest(f"{shown} is no UTF-8; give it in UTF-8")
    limits = [
        (option.low, "at least", lambda limit: value >= limit),
        (option.above, "above", lambda limit: value > limit),
        (option.high, "at most", lambda limit: value <= limit),
    ]
    stated = [(word, limit, holds) for limit, word, holds in limits if limit is not None]
    if not all(holds(limit) for _, limit, holds in stated):
        allowed = " and ".join(f"{word} {limit:,}" for word, limit, _ in stated)
        raise InvalidRequest(f"{shown} is out of range; it must be {allowed}")
    wrong = option.verify(value) if option.verify is not None else None
    if wrong:
        raise InvalidRequest(f"{shown} {wrong}")
    if value == "" and raw not in ([], ()):
        raise InvalidRequest(f"{where.strip()} is empty; give a value, or leave it out")
    return value


def read(option: Option, raw: Any) -> Any:
    """The value of ``raw`` for an option of its kind; ``ValueError`` if it is none."""
    kind = option.kind
    if option.many and isinstance(raw, list | tuple):
        raw = ",".join(map(str, raw))
    if isinstance(raw, str):
        if option.parse is not None:
            return option.parse(raw)
        if kind is bool:
            if raw.lower() not in TRUE + FALSE:
                raise ValueError(raw)
            return raw.lower() in TRUE
        return kind(raw)
    if kind is float and type(raw) is int:
        return float(raw)
    if type(raw) is not kind:
        raise ValueError(raw)
    return raw


UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def size(text: str) -> int:
    """Bytes, from ``1073741824``, ``1024M``, ``1G`` or ``1.5GiB``: units of 1024."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    if found is None:
        raise ValueError("give bytes as 1073741824, 1024M, 1G or 1.5GiB")
    bytes = Fraction(found[1]) * UNITS[found[2]]
    if not found[2] and bytes != int(bytes):
        raise ValueError("give whole bytes, or a unit: 1.5 may be 1.5G")
    return int(bytes)


def did_you_mean(wrong: str, known: Iterable[str], spell: Callable[[str], str] = str) -> str:
    """``; did you mean 'x'?`` or nothing."""
    near = difflib.get_close_matches(wrong, list(known), n=1, cutoff=0.6)
    return f"; did you mean {spell(near[0])!r}?" if near else ""
