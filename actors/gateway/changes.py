"""Open questions of clients about adapters, and their changes: who asked, and what has no answer yet."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from ...protocol.errors import brief
from ...protocol.internal import ChangeAdapter
from ...protocol.limits import MAX_ADAPTER_NAME_CHARS
from ...protocol.messages import LoadAdapter, UnloadAdapter

CHANGES_AGAIN_S = 0.05
"""Pause before it is checked again whether a step still uses an adapter that is to be removed: a few steps long."""


class Changes:
    """The open questions of all clients, by number."""

    def __init__(self, *, allowed: bool, taken: Collection[str]) -> None:
        """``allowed``: adapters may be changed while the service runs. ``taken`` are the names of the model itself."""
        self.allowed = allowed
        self.taken = taken
        self.asked: dict[int, tuple[bytes, ChangeAdapter]] = {}
        self.waiting: set[int] = set()
        """Changes that the scheduler was not asked for yet."""
        self.count = 0

    def refusal(self, message: LoadAdapter | UnloadAdapter) -> str:
        """The reason not to make a change, which the client is told; "" if there is none."""
        if not self.allowed:
            return "adapters are not changed while this service runs; start it with --enable-lora-updates"
        if not 0 < len(message.name) <= MAX_ADAPTER_NAME_CHARS:
            return f"name has {len(message.name)} characters; give 1 to {MAX_ADAPTER_NAME_CHARS}"
        if message.name in self.taken:
            return f"name={brief(message.name)} is that of the model itself; take another"
        if isinstance(message, LoadAdapter) and not message.path.startswith("/"):
            return f"path={brief(message.path)} is no absolute path; give one that begins with /"
        return ""

    def open(self, client: bytes, name: str, path: str) -> None:
        self.count += 1
        self.asked[self.count] = client, ChangeAdapter(self.count, name, path)
        self.waiting.add(self.count)

    def take(self, used: set[str]) -> list[ChangeAdapter]:
        """The changes that the scheduler is to be asked for now: no adapter of the names ``used`` is unloaded."""
        changes = [self.asked[number][1] for number in sorted(self.waiting)]
        found = [change for change in changes if not unloads(change) or change.name not in used]
        self.waiting.difference_update(change.number for change in found)
        return found

    def ask_again(self) -> None:
        """A new scheduler knows nothing of them."""
        for number, (client, change) in self.asked.items():
            if number not in self.waiting:
                self.asked[number] = client, msgspec.structs.replace(change, resent=True)
        self.waiting = set(self.asked)

    def close(self, number: int) -> bytes:
        """The client that asked this, whose question is now answered; empty if it is not known."""
        return self.asked.pop(number, (b"", None))[0]

    def is_leaving(self, name: str) -> bool:
        """Whether an adapter is to be unloaded, so that no further request can name it."""
        return bool(name) and any(
            unloads(change) and change.name == name for _, change in self.asked.values()
        )


def unloads(change: ChangeAdapter) -> bool:
    return bool(change.name) and not change.path
