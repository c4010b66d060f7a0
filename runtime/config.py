"""Options from one table: the command line, the environment, a file and keywords.

The table is a dataclass whose fields are made by ``option``. Everything else follows from it: the
arguments of argparse (``--max-num-seqs``), the environment variables (``SLIPSTREAM_MAX_NUM_SEQS``), the
keys of a file and the keywords of a call (``max_num_seqs``). A later layer wins over an earlier one:
default, file, environment, command line or keywords; each value remembers where it is from.

A table may have ``settle(values, given)``, which returns what follows from the given options for those
that were not given, with the reason, and ``check(spell)``, which refuses what does not fit together.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from argparse import ArgumentParser

T = TypeVar("T")

PREFIX = "SLIPSTREAM_"

NOT_OURS = re.compile(r"(.*_)?(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_.*)?)|CLIENT_KEY")
"""What Kubernetes puts into the environment for a service that is named like us, and what concerns clients."""

HALF = re.compile("[\ud800-\udfff]")
"""What Python makes of bytes that are no UTF-8: half of a character, which nobody can be told."""

TRUE, FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """One option of a table."""

    name: str = ""
    """Of the field; ``table`` fills it in, and ``kind``."""
    kind: type = str
    default: Any
    help: str
    """What is so when it is given; of a boolean, when it is on."""
    group: str
    metavar: str
    choices: tuple[str, ...]
    low: float | None
    high: float | None
    above: float | None
    """``low`` and ``high`` belong to the range, ``above`` does not."""
    parse: Callable[[str], Any] | None
    """Reads a text; None: as ``kind`` says."""
    verify: Callable[[Any], str | None] | None
    """Returns what is wrong with a value."""
    positional: bool
    many: bool
    """Several texts, which come as one with commas between them; as a flag it may be given several times."""
    in_file: bool
    """May stand in a file; what concerns one process only may not."""
    secret: bool
    """Its value is not shown."""

    @property
    def key(self) -> str:
        return self.name.replace("_", "-")

    @property
    def flag(self) -> str:
        return self.key.upper() if self.positional else f"--{self.key}"

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()


def option(
    default: T,
    help: str,
    *,
    group: str = "options",
    metavar: str = "",
    choices: tuple[str, ...] = (),
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    parse: Callable[[str], Any] | None = None,
    verify: Callable[[Any], str | None] | None = None,
    positional: bool = False,
    many: bool = False,
    in_file: bool = True,
    secret: bool = False,
) -> T:
    """A field of a table, for the type checker its default."""
    declared = Option(
        default=default,
        help=help,
        group=group,
        metavar=metavar,
        choices=choices,
        low=low,
        high=high,
        above=above,
        parse=parse,
        verify=verify,
        positional=positional,
        many=many,
        in_file=in_file,
        secret=secret,
    )
    return dataclasses.field(default=default, metadata={Option: declared})


def table(cls: type) -> dict[str, Option]:
    """The options of a table by name."""
    hints = typing.get_type_hints(cls)
    return {
        field.name: dataclasses.replace(field.metadata[Option], name=field.name, kind=bare(hints[field.name]))
        for field in dataclasses.fields(cls)
    }


def bare(hint: Any) -> type:
    """``int`` of ``int | None``."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = (kind for kind in typing.get_args(hint) if kind is not type(None))
    return hint


def changed(options: Any, name: str) -> bool:
    """Whether an option of a filled table has another value than its default."""
    return getattr(options, name) != type(options).__dataclass_fields__[name].default


# --- layers -------------------------------------------------------------------------------------


@dataclasses.dataclass
class Layer:
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
        top = Layer("keyword", normalise(options, keywords, "keyword"), lambda option: f"{option.name}=")
    else:
        top = Layer("command line", dict(arguments or {}), lambda option: f"{option.flag} ")
    layers = [from_environment(options, os.environ if environ is None else environ), top]
    path = top.values.get("config") or layers[0].values.get("config")
    if path is not None:
        layers.insert(0, from_file(options, Path(path)))

    values = {name: option.default for name, option in options.items()}
    origins = dict.fromkeys(options, "default")
    spelling: dict[str, Callable[[Option], str]] = dict.fromkeys(options, top.spell)
    for layer in layers:
        for name, raw in layer.values.items():
            if raw is None:
                continue
            values[name] = convert(options[name], raw, layer.spell(options[name]))
            origins[name] = layer.origin
            spelling[name] = layer.spell
    given = {name for name, origin in origins.items() if origin != "default"}
    settle: Callable[..., dict[str, tuple[Any, str]]] | None = getattr(cls, "settle", None)
    if settle is not None:
        for name, (value, why) in settle(values, given).items():
            values[name], origins[name] = value, why
    filled = cls(**values)
    check: Callable[..., None] | None = getattr(filled, "check", None)
    if check is not None:
        check(lambda name: f"{spelling[name](options[name])}{values[name]}")
    return Resolved(filled, origins)


def from_environment(options: dict[str, Option], environ: Mapping[str, str]) -> Layer:
    found: dict[str, str] = {}
    for variable, text in environ.items():
        rest = variable.removeprefix(PREFIX)
        if rest != variable and not NOT_OURS.fullmatch(rest):
            found[rest.lower()] = text
    values = normalise(options, found, "environment variable", lambda name: PREFIX + name.upper())
    return Layer("environment", values, lambda option: f"{option.variable}=")


def from_file(options: dict[str, Option], path: Path) -> Layer:
    found = read_file(path)
    values = normalise(options, found, f"key of {path}", lambda name: name.replace("_", "-"))
    for name in values:
        if not options[name].in_file:
            raise InvalidRequest(
                f"{options[name].key} stands in {path}; it concerns one process only:"
                " give it on the command line or in the environment"
            )
    return Layer(str(path), values, lambda option: f"{path}: {option.key} = ")


def read_file(path: Path) -> dict[str, Any]:
    """The top level of a TOML or JSON file, or of a YAML file where PyYAML is there."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"cannot read the file {str(path)!r}: {error}") from None
    suffix = path.suffix.lower()
    try:
        if suffix == ".toml":
            import tomllib

            found = tomllib.loads(text)
        elif suffix == ".json":
            found = json.loads(text)
        elif suffix in (".yaml", ".yml"):
            try:
                import yaml
            except ImportError:
                raise InvalidRequest(
                    f"{path} is YAML, and PyYAML is not installed: give a TOML or JSON file"
                ) from None
            found = yaml.safe_load(text)
        else:
            raise InvalidRequest(f"{path} is neither .toml nor .json nor .yaml")
    except InvalidRequest:
        raise
    except Exception as error:  # each format has errors of its own, and deep nesting a RecursionError
        raise InvalidRequest(f"{path} is not valid {suffix[1:].upper()}: {error}") from None
    if not isinstance(found, dict):
        raise InvalidRequest(f"{path} holds a {type(found).__name__}; it must map option names to values")
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


def did_you_mean(wrong: str, known: Iterable[str], spell: Callable[[str], str] = str) -> str:
    """``; did you mean 'x'?`` or nothing."""
    near = difflib.get_close_matches(wrong, list(known), n=1, cutoff=0.6)
    return f"; did you mean {spell(near[0])!r}?" if near else ""


# --- values -------------------------------------------------------------------------------------


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
    return value


def read(option: Option, raw: Any) -> Any:
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
    return int(float(found[1]) * UNITS[found[2]]) if "." in found[1] else int(found[1]) * UNITS[found[2]]


# --- what users see --------------------------------------------------------------------------------------


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
    """Every option with its value and where that is from; the text is a configuration file in TOML."""
    lines: list[tuple[str, str]] = []
    for option in table(type(resolved.options)).values():
        value = getattr(resolved.options, option.name)
        if option.secret and value is not None:
            shown = '"(secret)"'
        elif isinstance(value, str):
            shown = json.dumps(value, ensure_ascii=False)
        else:
            shown = str(value).lower() if isinstance(value, bool) else str(value)
        off = "" if value is not None and option.in_file else "# "
        lines.append(
            (f"{off}{option.key} = {'(none)' if value is None else shown}", resolved.origins[option.name])
        )
    width = max(len(left) for left, _ in lines)
    return "\n".join(f"{left:<{width}}  # {origin}" for left, origin in lines)
