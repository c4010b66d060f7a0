"""Fill a table of options from sources, of which a later one wins: default, file, environment, command line, keywords.

Each value remembers where it is from.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from ...protocol.errors import InvalidRequest
from .table import PREFIX, Option, table
from .values import convert, did_you_mean

T = TypeVar("T")

NOT_OURS = re.compile(r"(.*_)?(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_.*)?)|CLIENT_KEY")
"""What Kubernetes puts into the environment for a service that is named like us, and what concerns clients."""


@dataclasses.dataclass
class Source:
    """Values as they were found in one place, and how that place spells an option."""

    origin: str
    values: dict[str, Any]
    spell: Callable[[Option], str]


@dataclasses.dataclass
class Resolved(Generic[T]):
    """A filled table and where each of its values is from."""

    options: T
    origins: dict[str, str]


def resolve(
    cls: type[T],
    *,
    arguments: Mapping[str, Any] | None = None,
    keywords: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Resolved[T]:
    """Fill a table from ``arguments`` of the command line or ``keywords`` of a call, over the
    environment, over the file that the option ``config`` names.

    ``InvalidRequest`` says what is wrong, where it stands and what would be right.
    """
    options = table(cls)
    if keywords is not None:
        top = Source("keyword", normalise(options, keywords, "keyword"), lambda option: f"{option.name}=")
    else:
        top = Source("command line", dict(arguments or {}), lambda option: f"{option.flag} ")
    sources = [from_environment(options, os.environ if environ is None else environ), top]
    path = top.values.get("config") or sources[0].values.get("config")
    if path:  # one that is empty is refused below
        sources.insert(0, from_file(options, Path(path)))

    values = {name: option.default for name, option in options.items()}
    origins = dict.fromkeys(options, "default")
    spelling: dict[str, Callable[[Option], str]] = dict.fromkeys(options, top.spell)
    for source in sources:
        for name, raw in source.values.items():
            if raw is None:
                continue
            values[name] = convert(options[name], raw, source.spell(options[name]))
            origins[name] = source.origin
            spelling[name] = source.spell
    given = {name for name, origin in origins.items() if origin != "default"}
    derive: Callable[..., dict[str, tuple[Any, str]]] | None = getattr(cls, "derive", None)
    if derive is not None:
        for name, (value, why) in derive(values, given).items():
            values[name], origins[name] = value, why
    filled = cls(**values)
    check: Callable[..., None] | None = getattr(filled, "check", None)
    if check is not None:
        check(lambda name: f"{spelling[name](options[name])}{values[name]}")
    return Resolved(filled, origins)


def from_environment(options: dict[str, Option], environ: Mapping[str, str]) -> Source:
    """The options that the environment sets; ``InvalidRequest`` for a variable with our prefix that is none."""
    found: dict[str, str] = {}
    for variable, text in environ.items():
        rest = variable.removeprefix(PREFIX)
        if rest != variable and not NOT_OURS.fullmatch(rest):
            found[rest.lower()] = text
    values = normalise(options, found, "environment variable", lambda name: PREFIX + name.upper())
    return Source("environment", values, lambda option: f"{option.variable}=")


def from_file(options: dict[str, Option], path: Path) -> Source:
    """The options that a file sets; ``InvalidRequest`` for a key that is none, or may not stand in a file."""
    found = read_file(path)
    values = normalise(options, found, f"key of {path}", lambda name: name.replace("_", "-"))
    for name in values:
        if not options[name].in_file:
            raise InvalidRequest(
                f"{options[name].key} stands in {path}; it concerns one process only:"
                " give it on the command line or in the environment"
            )
    return Source(str(path), values, lambda option: f"{path}: {option.key} = ")


def read_file(path: Path) -> dict[str, Any]:
    """The top level of a TOML or JSON file, or of a YAML file where PyYAML is there."""
    suffix = path.suffix.lower()
    if path.exists() and not path.is_dir():  # else reading says what is wrong
        if suffix not in (".toml", ".json", ".yaml", ".yml"):
            raise InvalidRequest(f"{path} is neither .toml nor .json nor .yaml")
        if not path.is_file():  # to read a pipe is to wait for ever
            raise InvalidRequest(f"{path} is no file")
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors begin a file with a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"cannot read the file {str(path)!r}: {error}") from None
    try:
        if suffix == ".toml":
            import tomllib

            found = tomllib.loads(text)
        elif suffix == ".json":
            found = json.loads(text, object_pairs_hook=each_once)
        else:
            try:
                import yaml
            except ImportError:
                raise InvalidRequest(
                    f"{path} is YAML, and PyYAML is not installed: give a TOML or JSON file"
                ) from None
            found = yaml.safe_load(text)
    except InvalidRequest:
        raise
    except Exception as error:  # each format has errors of its own, and deep nesting a RecursionError
        raise InvalidRequest(f"{path} is not valid {suffix[1:].upper()}: {error}") from None
    if not isinstance(found, dict):
        raise InvalidRequest(f"{path} holds a {type(found).__name__}; it must map option names to values")
    return found


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a JSON file, whose keys are given once, as in TOML."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r} is given twice")
        found[key] = value
    return found


def normalise(
    options: dict[str, Option],
    found: Mapping[str, Any],
    place: str,
    spell: Callable[[str], str] = str,
) -> dict[str, Any]:
    """Names as the table has them; ``no_…`` of a boolean turns it around. Unknown names are refused."""
    values: dict[str, Any] = {}
    for key, raw in found.items():
        name = str(key).replace("-", "_")
        if name not in options:
            turned = name.removeprefix("no_")
            if turned == name or turned not in options or options[turned].kind is not bool:
                near = did_you_mean(name, options, spell)
                raise InvalidRequest(f"unknown {place} {spell(name)!r}{near}")
            name, raw = turned, not convert(options[turned], raw, f"{spell(name)}=")
        if name in values:
            raise InvalidRequest(f"{place} {spell(name)!r} is given twice")
        values[name] = raw
    return values
