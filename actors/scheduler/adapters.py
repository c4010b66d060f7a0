"""Which adapters requests may name, and what follows for a sequence that is computed with one."""

from __future__ import annotations

from ...protocol.errors import brief
from ...protocol.messages import Adapter
from .prefix import salt_of
from .sequence import Sequence


class Adapters:
    """Those that the executor has loaded; what is cached of one is found by no request that names another."""

    def __init__(self) -> None:
        self.by_name: dict[str, Adapter] | None = None
        """None: no executor has said yet."""

    def begin(self, loaded: list[Adapter]) -> None:
        """A new executor has these."""
        self.by_name = {adapter.name: adapter for adapter in loaded}

    def resolve(self, sequence: Sequence) -> str:
        """Find the adapter that the sequence names; why there is none, or nothing."""
        name = sequence.params.adapter
        if not name or self.by_name is None:
            return ""
        found = self.by_name.get(name)
        if found is None:
            names = ", ".join(sorted(self.by_name)) or "none"
            return f"adapter={brief(name)} is not loaded; those that are: {names}"
        sequence.adapter = found.id
        sequence.salt = salt_of(sequence.params.cache_salt, f"{found.id}".encode())
        return ""
