"""Bounds what the operations of a chat template make: a template is a program, and ``'a' * 10**9`` is one of them.

What can make much of little in one operation (products, powers, formats, paddings, joins, replacements) is measured
before it is done; what else there is makes a few times of what it is given, and is measured afterwards. The text of
lists that share their parts is not: a tokenizer that it takes too long ends. Products and powers of constants are
computed when a template is used, not when it is compiled.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from types import BuiltinMethodType
from typing import Any

from jinja2.filters import make_attrgetter
from jinja2.runtime import Context
from jinja2.sandbox import MAX_RANGE, ImmutableSandboxedEnvironment, SandboxedFormatter

from .iterations import CURRENT, Oversized

MAX_TEXT_CHARACTERS = 1 << 24
"""Most characters of one text that an operation makes: twice the longest conversation."""

MAX_LIST_ITEMS = 1 << 20
"""Most items of one list: more than the longest conversation has lines, mostly."""

MAX_NUMBER_BITS = 1 << 14
"""Most bits of a whole number: more than the 4,300 digits that Python writes, which are 14,285 bits."""

SLOW = {"pprint": 100_000, "sum": 10_000, "urlize": 100_000, "wordwrap": 100_000}
"""Filters that take a microsecond and more for a character, and the most of them, or of items, that they are given."""

LONGEST_INDENT = 100
"""Most characters that `tojson` writes before or between any two values."""

WIDTHS = frozenset({"center", "expandtabs", "ljust", "rjust", "to_bytes", "zfill"})
"""Methods of texts and numbers to which a number is a width."""

TEXT_FILTERS = frozenset({"format", "indent", "replace"})
"""Filters that make a text of whatever they are given."""

SIZED_FILTERS = frozenset({"batch", "center", "indent", "slice", "tojson", "wordwrap"})
"""Filters to which a number is a width, or a count of what they make."""

CONVERSION = r"[-+ #0]*+([0-9]++|\*)?(?:\.([0-9]++|\*))?[hlL]?[a-zA-Z%]"
"""What follows the % of a format, as groups its width and its precision."""

PLACE = re.compile(f"%{CONVERSION}")
NAMED_PLACE = re.compile(f"[%)]{CONVERSION}")
"""The same where a name may stand between; since that may have parentheses of its own, any may be its end."""

MAX_WIDTH_DIGITS = 18
"""As many of a width are looked at: with more it is too large anyway."""


class BoundedFormatter(SandboxedFormatter):
    """Formats a text, and refuses to make too much."""

    size = 0

    def format_field(self, value: Any, format_spec: str) -> str:
        self.take(sum(int(digits[:MAX_WIDTH_DIGITS]) for digits in re.findall("[0-9]+", format_spec)))
        text = super().format_field(value, format_spec)
        self.take(len(text))
        return text

    def take(self, size: int) -> None:
        self.size += size
        refuse_over(MAX_TEXT_CHARACTERS, self.size)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox of a chat template, in which no operation makes more than these."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.filters = {name: bounded_filter(name, function) for name, function in self.filters.items()}
        del self.globals["lipsum"]  # text without end, for designers of pages

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        check_operands(operator, left, right)
        return measured(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(__obj, BuiltinMethodType) and isinstance(__obj.__self__, str | bytes | int):
            args = checked_arguments(__obj.__name__, __obj.__self__, args, kwargs)
        return measured(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """A text's ``format``, which is tried within bounds first: the sandbox's own has none."""
        sandboxed = super().wrap_str_format(value)
        if sandboxed is None:
            return None

        @wraps(value)
        def bounded(*args: Any, **kwargs: Any) -> str:
            if value.__name__ == "format":
                BoundedFormatter(self).vformat(value.__self__, args, kwargs)
            elif len(args) == 1:
                BoundedFormatter(self).vformat(value.__self__, (), args[0])
            return sandboxed(*args, **kwargs)

        return bounded


def refuse_over(most: int, size: int) -> None:
    if size > most:
        raise Oversized(f"one operation would make {size} characters, items or bits; the limit is {most}")


def measured(value: Any) -> Any:
    """The value, counted among what the template has made."""
    if isinstance(value, str | bytes | list | tuple | dict):
        refuse_over(most_of(value), len(value))
        CURRENT.get().add(len(value))
    return value


def most_of(value: Any) -> int:
    return MAX_TEXT_CHARACTERS if isinstance(value, str | bytes) else MAX_LIST_ITEMS


def check_operands(operator: str, left: Any, right: Any) -> None:
    """Refuse an operation that would make too much of these."""
    if operator == "%" and isinstance(left, str | bytes):
        refuse_over(MAX_TEXT_CHARACTERS, size_of_format(left, right))
    elif isinstance(left, int) and isinstance(right, int):
        if operator in ("*", "**"):
            bits = left.bit_length()
            refuse_over(MAX_NUMBER_BITS, bits * right if operator == "**" else bits + right.bit_length())
    elif operator == "*":
        times, of = (left, right) if isinstance(left, int) else (right, left)
        if isinstance(times, int) and isinstance(of, Sequence):
            refuse_over(most_of(of), times * len(of))


def size_of_format(text: str | bytes, given: Any) -> int:
    """The most that ``text % given`` adds to the text: widths, the numbers that stand for such, and texts, of which a
    map's may come again at each place."""
    format = str(text)
    named = isinstance(given, Mapping)
    places = (NAMED_PLACE if named else PLACE).findall(format)
    widths = [width for place in places for width in place if width]
    size = sum(int(width[:MAX_WIDTH_DIGITS]) for width in widths if width != "*")
    if named:
        return size + format.count("%(") * max((len(str(value)) for value in given.values()), default=0)
    values = given if isinstance(given, tuple) else (given,)
    if "*" in widths:
        size += sum(value for value in values if isinstance(value, int))
    return size + sum(len(value) for value in values if isinstance(value, str | bytes))


def checked_arguments(
    name: str, of: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Any, ...]:
    """The arguments of a method of a text or a number, with which it does not make too much."""
    if name in WIDTHS:
        width = max((arg for arg in (*args, *kwargs.values()) if isinstance(arg, int)), default=8)
        refuse_over(MAX_RANGE, width)
        if name == "expandtabs":
            refuse_over(
                MAX_TEXT_CHARACTERS, len(of) + of.count("\t" if isinstance(of, str) else b"\t") * width
            )
    elif name == "replace" and len(args) > 1:
        refuse_over(MAX_TEXT_CHARACTERS, len(of) + of.count(args[0]) * len(args[1]))
    elif name == "join" and args:
        return (pieces(args[0], len(of)),)
    elif name == "translate" and args and isinstance(args[0], Mapping):
        longest = max((len(text) for text in args[0].values() if isinstance(text, str)), default=1)
        refuse_over(MAX_TEXT_CHARACTERS, len(of) * longest)
    return args


def pieces(given: Iterable[Any], between: int = 0) -> list[Any]:
    """What is to be joined, with ``between`` characters after each of it."""
    found = list(given)
    texts = sum(len(piece) for piece in found if isinstance(piece, str | bytes))
    refuse_over(MAX_TEXT_CHARACTERS, texts + len(found) * between)
    return found


def bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter of this name, which does not make too much."""
    at = 1 if hasattr(function, "jinja_pass_arg") else 0  # it is given the context before what it filters

    @wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        value, others = args[at], (*args[at + 1 :], *kwargs.values())
        if name in SIZED_FILTERS:
            refuse_over(MAX_RANGE, max((arg for arg in others if isinstance(arg, int)), default=0))
        text = value if isinstance(value, str) else str(value) if name in TEXT_FILTERS else ""
        width = max(
            (len(arg) if isinstance(arg, str) else arg for arg in others if isinstance(arg, str | int)),
            default=0,
        )
        match name:
            case "join":
                value = list(value)
                attribute = kwargs.get("attribute", others[1] if len(others) > 1 else None)
                attribute_of = make_attrgetter(args[0].environment, attribute) if attribute else None
                pieces(map(attribute_of, value) if attribute_of else value, width)
            case "replace" if len(others) > 1:
                refuse_over(MAX_TEXT_CHARACTERS, len(text) + text.count(str(others[0])) * width)
            case "indent":
                refuse_over(MAX_TEXT_CHARACTERS, len(text) + (text.count("\n") + 1) * max(width, 4))
            case "format":
                refuse_over(MAX_TEXT_CHARACTERS, size_of_format(text, kwargs or args[at + 1 :]))
            case "tojson":
                refuse_over(
                    LONGEST_INDENT, max(width, *(len(text) for text in kwargs.get("separators") or ("",)))
                )
            case _ if name in SLOW:
                value = list(value) if name == "sum" else value
                refuse_over(SLOW[name], len(value) if hasattr(value, "__len__") else 0)
                longest = max((len(arg) for arg in others if isinstance(arg, str)), default=0)
                refuse_over(MAX_TEXT_CHARACTERS, (len(text) + 1) * longest)
                if name == "sum":
                    refuse_over(
                        MAX_LIST_ITEMS, sum(len(item) for item in value if isinstance(item, list | tuple))
                    )
        return measured(function(*args[:at], value, *args[at + 1 :], **kwargs))

    return bounded


def concatenated(*parts: Any) -> str:
    """``~`` of a template."""
    return measured("".join(pieces(map(str, parts))))
