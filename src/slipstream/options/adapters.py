"""Which adapters a service has, and which may come while it runs: the values and the checks of these options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ..protocol.errors import InvalidRequest
from ..protocol.limits import MAX_ADAPTER_NAME_CHARS
from ..runtime.options.table import changed

UPDATED_LORAS = 8
"""Adapters that there is room for, at least, where they come at run time."""


class AdapterOptions(Protocol):
    """The options of a service that adapters depend on."""

    @property
    def lora(self) -> str | None: ...
    @property
    def enable_lora_updates(self) -> bool: ...
    @property
    def tensor_parallel_size(self) -> int: ...
    @property
    def batch_invariant(self) -> bool: ...
    @property
    def served_names(self) -> list[str]: ...
    @property
    def adapter_slots(self) -> int: ...


def lora_error(text: str) -> str | None:
    """The error in what ``--lora`` says, or None."""
    pairs = adapters_of(text)
    names = [name for name, _ in pairs]
    if not all(name and path for name, path in pairs):
        return "is no NAME=PATH; give sql=/adapters/sql, for example"
    if any(len(name) > MAX_ADAPTER_NAME_CHARS for name in names):
        return (
            f"has a name of more than {MAX_ADAPTER_NAME_CHARS} characters, by which no request could name it"
        )
    twice = next((name for name in names if names.count(name) > 1), None)
    return None if twice is None else f"has the name {twice!r} twice"


def adapters_of(text: str | None) -> list[tuple[str, str]]:
    """Names and paths of what ``--lora`` says."""
    pairs = (pair.partition("=") for pair in (text or "").split(",") if pair)
    return [(name.strip(), path.strip()) for name, _, path in pairs]


def check_adapters(options: AdapterOptions, spell: Callable[[str], str]) -> None:
    """Refuse adapters that cannot be loaded or named, and what concerns adapters where there are none."""
    if options.lora is None and not options.enable_lora_updates:
        unused = [name for name in ("max_loras", "max_lora_rank") if changed(options, name)]
        if unused:
            raise InvalidRequest(
                f"{spell(unused[0])} has no effect without adapters; add --lora or --enable-lora-updates"
            )
        return
    taken = next((name for name, _ in adapters_of(options.lora) if name in options.served_names), None)
    if taken is not None:
        raise InvalidRequest(
            f"{spell('lora')} has an adapter of the name {taken!r}, which is the model's own; take another"
        )
    if options.adapter_slots < len(adapters_of(options.lora)):
        raise InvalidRequest(f"{spell('lora')} are more adapters than {spell('max_loras')}; raise the latter")
    if options.enable_lora_updates and options.tensor_parallel_size > 1:
        raise InvalidRequest(
            f"{spell('enable_lora_updates')} is not possible with {spell('tensor_parallel_size')}: ranks load"
            " adapters when they start; name them with --lora"
        )
    if options.batch_invariant and options.adapter_slots:
        asked = "lora" if options.lora is not None else "enable_lora_updates"
        raise InvalidRequest(
            f"{spell('batch_invariant')} is not possible with {spell(asked)}: what adapters add is made"
            " of as many rows as have one; leave out one"
        )
