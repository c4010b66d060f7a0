"""Controls who may connect to the public socket of an actor."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ...runtime.guard import PublicSocketKeys
from ...runtime.keys import KeyFolder


def public_keys(folder: str | None, also: Iterable[str]) -> PublicSocketKeys | None:
    """The guard of a folder of keys, which lets in ``also`` too; without a folder none, and all may come."""
    if folder is None:
        return None
    keys = PublicSocketKeys(KeyFolder(Path(folder)), frozenset(also))
    keys.check()  # a start that cannot work fails here, and says why
    return keys
