"""Requests of clients to list, add and remove adapters: who asked, and what has no answer yet."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from ...protocol.errors import brief
from ...protocol.internal import AddAdapter, ListAdapters, RemoveAdapter
from ...protocol.limits import MAX_ADAPTER_NAME_CHARS
from ...protocol.messages import GetAdapters, LoadAdapter, UnloadAdapter

CHANGES_AGAIN_S = 0.05
"""Pause before it is checked again whether a step still uses an adapter that is to be removed: a few steps long."""


Asked = ListAdapters | AddAdapter | RemoveAdapter


class Changes:
    """The open questions of all clients, by number."""

    def __init__(self, *, allowed: bool, taken: Collection[str]) -> None:
        """``allowed``: adapters may be changed while the service runs. ``taken`` are the names of the model itself."""
        self.allowed = allowed
        self.taken = taken
        self.asked: dict[int, tuple[bytes, Asked]] = {}
        self.waiting: set[int] = set()
        """The numbers of those that the scheduler was not sent yet."""
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

    def open(self, client: bytes, message: GetAdapters | LoadAdapter | UnloadAdapter) -> None:
        """Note what a client asks."""
        self.count = number = self.count + 1
        if isinstance(message, LoadAdapter):
            asked = AddAdapter(number, message.name, message.path)
        elif isinstance(message, UnloadAdapter):
            asked = RemoveAdapter(number, message.name)
        else:
            asked = ListAdapters(number)
        self.asked[number] = client, asked
        self.waiting.add(number)

    def take(self, used: set[str]) -> list[Asked]:
        """What the scheduler is to be sent now: no adapter of the names ``used`` is removed."""
        waiting = [self.asked[number][1] for number in sorted(self.waiting)]
        found = [asked for asked in waiting if not (isinstance(asked, RemoveAdapter) and asked.name in used)]
        self.waiting.difference_update(asked.number for asked in found)
        return found

    def ask_again(self) -> None:
        """A new scheduler knows nothing of them."""
        for number, (client, asked) in self.asked.items():
            if isinstance(asked, RemoveAdapter) and number not in self.waiting:
                self.asked[number] = client, msgspec.structs.replace(asked, resent=True)
        self.waiting = set(self.asked)

    def close(self, number: int) -> bytes:
        """The client that asked this, whose question is now answered; empty if it is not known."""
        return self.asked.pop(number, (b"", None))[0]

    def is_leaving(self, name: str) -> bool:
        """Whether an adapter is to be removed, so that no further request can name it."""
        return any(
            isinstance(asked, RemoveAdapter) and asked.name == name for _, asked in self.asked.values()
        )
