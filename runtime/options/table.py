"""A table of options: a dataclass whose fields are made by ``option``.

Everything else follows from it: the arguments of argparse (``--max-num-seqs``), the environment variables
(``SLIPSTREAM_MAX_NUM_SEQS``), the keys of a file and the keywords of a call (``max_num_seqs``).

A table may have ``derive(values, given)``, which returns what follows from the given options for those
that were not given, with the reason, and ``check(spell)``, which refuses what does not fit together.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

PREFIX = "SLIPSTREAM_"
"""How the names of environment variables begin."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """One option of a table."""

    name: str = ""
    """The name of the field; ``table`` fills it in, and ``kind``."""
    kind: type = str
    default: Any
    help: str
    """The help text: the effect of the option when it is given, or of a boolean when it is on."""
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
