"""The clients that may connect to the public socket of an actor, by its options."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ...runtime.guard import AllowedClients
from ...runtime.key_folder import KeyFolder


def allowed_clients(folder: str | None, also: Iterable[str]) -> AllowedClients | None:
    """The clients that a folder of keys lists, and those with one of the public keys ``also``; without a folder None,
    and every client may connect."""
    if folder is None:
        return None
    clients = AllowedClients(KeyFolder(Path(folder)), frozenset(also))
    clients.check()  # a start that cannot work fails here, and says why
    return clients
