"""Kinds of arguments that several commands take."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def milliseconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 60_000:
        raise ArgumentTypeError(f"{text!r} is not a number of milliseconds above 0 and at most 60,000")
    return value


def above_0(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def ratio(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise ArgumentTypeError(f"{text!r} is not a number from 0 to below 1")
    return value


def depth_list(text: str) -> list[int]:
    return [count(part) for part in text.split(",")]


def output(text: str) -> str:
    """A file for a result, or ``-``: one that cannot be written is refused before anything is measured."""
    if text != "-":
        try:
            open(text, "ab").close()
        except (OSError, ValueError) as error:  # the latter of a name with a zero in it
            reason = error.strerror if isinstance(error, OSError) else error
            raise ArgumentTypeError(f"{text!r} cannot be written: {reason}") from None
    return text


def add_json(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--json", type=output, metavar="FILE|-", help="write the result as JSON; -: to stdout"
    )
