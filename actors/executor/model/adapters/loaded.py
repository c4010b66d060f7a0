"""The adapters that an executor has loaded, and the file from which its next incarnation loads the same ones."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from .....protocol.errors import InvalidRequest
from .....protocol.internal import Adapter
from .....runtime.log import logger


class AdapterWeights(Protocol):
    """The interface of the memory that holds adapters' weights."""

    count: int

    def load(self, adapter: Adapter) -> Iterator[None]:
        """Read it into its slot, piece by piece; InvalidRequest says why it cannot be."""
        ...


class LoadedAdapters:
    """Records which adapter is in which slot; in a file too, for the next incarnation."""

    def __init__(self, weights: AdapterWeights, file: Path | None = None) -> None:
        """``file`` is that of all incarnations; None: there is but one."""
        self.weights = weights
        self.file = file
        self.loaded: dict[int, Adapter] = {}
        """By id, from 1 to ``weights.count``."""

    def start(self, given: Sequence[Adapter]) -> None:
        """Load what the incarnation before had, or at the first start what was ``given``.

        InvalidRequest for one that was given and cannot be loaded. One that could be before and cannot be now is left
        out: all others go on.
        """
        again = self.file is not None and self.file.exists()
        wanted = (
            msgspec.json.decode(self.file.read_bytes(), type=list[Adapter]) if again and self.file else given
        )
        for adapter in wanted:
            try:
                for _ in self.load(adapter):
                    pass
            except InvalidRequest as error:
                if not again:
                    raise
                logger.warning("%s; requests that name it are refused", error)
        self.save()

    def load(self, adapter: Adapter) -> Iterator[None]:
        """As in ``AdapterWeights``; at its end the adapter is there, for the next incarnation too."""
        yield from self.weights.load(adapter)
        self.loaded[adapter.id] = adapter
        self.save()

    def unload(self, id: int) -> None:
        """Give up a slot that no step under way computes with."""
        self.loaded.pop(id, None)
        self.save()

    def save(self) -> None:
        if self.file is None:
            return
        new = self.file.with_suffix(".new")
        new.write_bytes(msgspec.json.encode(list(self.loaded.values())))
        os.replace(new, self.file)
