"""A table of options at the command line: as arguments, and as ``--print-config`` shows its values."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .sources import Resolved, normalise
from .table import table
from .values import convert

if TYPE_CHECKING:
    from argparse import ArgumentParser


def add_arguments(parser: ArgumentParser, cls: type, only: Iterable[str] | None = None) -> None:
    """Give ``parser`` the options of a table, in its groups. Values stay texts: ``resolve`` reads them."""
    import argparse

    groups: dict[str, Any] = {}
    options = table(cls)
    for option in options.values() if only is None else [options[name] for name in only]:
        group = groups.get(option.group)
        if group is None:
            group = groups[option.group] = parser.add_argument_group(option.group)
        text = option.help.replace("%", "%%")
        if option.default not in (None, False):
            text += f" (default {'on' if option.default is True else option.default})"
        if option.kind is bool:
            action = argparse.BooleanOptionalAction
            group.add_argument(option.flag, dest=option.name, action=action, default=None, help=text)
            continue
        metavar = option.metavar or ("|".join(option.choices) if option.choices else option.key.upper())
        if option.positional:
            group.add_argument(option.name, nargs="*" if option.many else "?", metavar=metavar, help=text)
        else:
            action = "append" if option.many else "store"
            group.add_argument(option.flag, dest=option.name, action=action, metavar=metavar, help=text)


def to_arguments(cls: type, keywords: Mapping[str, Any]) -> list[str]:
    """The command line that gives the same as these keywords."""
    options = table(cls)
    flags: list[str] = []
    positional: list[str] = []
    for name, value in normalise(options, keywords, "keyword").items():
        option = options[name]
        if value is None:
            continue
        if option.kind is bool:
            on = convert(option, value, f"{name}=")
            flags.append(option.flag if on else f"--no-{option.key}")
        elif option.positional:
            positional += value.split(",") if option.many else [os.fspath(value)]
        elif option.many and not isinstance(value, str):
            flags += [f"{option.flag}={one}" for one in value]
        else:
            flags.append(f"{option.flag}={value}")
    return [*flags, "--", *positional] if positional else flags


def show(resolved: Resolved[Any]) -> str:
    """Every option with its value and where that is from; the text is a configuration file in TOML, without secrets."""
    lines: list[tuple[str, str]] = []
    for option in table(type(resolved.options)).values():
        value = getattr(resolved.options, option.name)
        if option.secret and value is not None:
            shown = "(secret)"
        elif isinstance(value, str):
            # DEL is the one character that JSON has as it is, and TOML does not.
            shown = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        else:
            shown = str(value).lower() if isinstance(value, bool) else str(value)
        off = "" if value not in (None, "") and option.in_file and not option.secret else "# "
        lines.append(
            (f"{off}{option.key} = {'(none)' if value is None else shown}", resolved.origins[option.name])
        )
    width = max(len(left) for left, _ in lines)
    return "\n".join(f"{left:<{width}}  # {origin}" for left, origin in lines)
