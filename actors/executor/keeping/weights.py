"""The weights of an executor, kept while it starts again: where they are, and a model made of them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec
import torch

from ....protocol.errors import SlipstreamError
from ....runtime.keeping import Keeper, NotKept
from ....runtime.log import logger
from ...checkpoint import open_checkpoint
from ..attention import backend as attention
from ..model.load import load_config, replace, skeleton, use_own_experts
from ..model.paged_model import PagedModel
from .arena import Arena, pages_of
from .table import Table, bind, bytes_of, fill, named_tensors

NAME = "weights"


class KeptWeights:
    """Those that a keeper has, or will have. It is handed open files: the table first, then the arena's."""

    def __init__(self, path: str) -> None:
        """``path``: where the keeper is asked."""
        self.keeper = Keeper(path, NAME)

    def taken_over(
        self, path: str, device: torch.device, attention_backend: str, batch_invariant: bool
    ) -> PagedModel | None:
        """The model of a folder with the weights that are kept, of which nothing is read or copied; None if there are
        none. If they are of no use they are kept no longer."""
        try:
            files = self.keeper.fetch()
        except NotKept as error:
            logger.warning("the weights are loaded anew: %s", error)
            return None
        if not files:
            logger.warning("the weights are loaded anew: the keeper has none")
            return None
        try:
            model = model_of(path, files, device, attention_backend, batch_invariant)
        except Exception as error:
            close(files)
            logger.warning("the weights are loaded anew: those that are kept are of no use: %s", error)
            self.keeper.forget()
            return None
        self.hold(files)
        return model

    @contextmanager
    def keeping(self, model: PagedModel) -> Iterator[None]:
        """What is done to the model inside is what is kept of it. It may go on as it is if it cannot be kept."""
        named = named_tensors(model.transformer)
        yield
        files: list[int] = []
        try:
            arena = Arena(pages_of(model.device), bytes_of(model, named))
            files = arena.files
            table = fill(arena, model, named)
            protect(arena)
            files.insert(0, written(msgspec.msgpack.encode(table)))
        except (OSError, SlipstreamError, RuntimeError, ValueError) as error:
            close(files)
            logger.warning("the weights are not kept: %s", str(error).splitlines()[0])
            return
        self.hold(files)

    def hold(self, files: Sequence[int]) -> None:
        """Have a keeper hold them from now on, and the next one if it dies."""
        threading.Thread(target=self.keeper.hold, args=(files,), name="kept weights", daemon=True).start()


def model_of(
    path: str,
    files: Sequence[int],
    device: torch.device,
    attention_backend: str,
    batch_invariant: bool = False,
) -> PagedModel:
    """The model, of the table and the pieces of an arena. It was probed before they were kept."""
    table = msgspec.msgpack.decode(os.pread(files[0], os.fstat(files[0]).st_size, 0), type=Table)
    memory = Arena.opened(pages_of(device), files[1:], table.piece_bytes)
    config = load_config(open_checkpoint(path).folder)
    transformer = skeleton(config, getattr(torch, table.dtype))
    bind(transformer, table, memory)
    use_own_experts(transformer, config)
    model = PagedModel(transformer, attention.create(attention_backend))
    model.weights_told = table.told
    replace(model, batch_invariant, checked=not table.kept_because)
    return model


def protect(arena: Arena) -> None:
    """Nobody writes to weights: what would, by a fault of its own, is to die of it, and leave them as they are."""
    try:
        arena.protect()
    except (OSError, SlipstreamError) as error:
        logger.warning("a fault could write to the weights that are kept: %s", error)


def written(data: bytes) -> int:
    """An anonymous file with these bytes."""
    file = os.memfd_create("table", os.MFD_CLOEXEC)
    os.pwrite(file, data, 0)
    return file


def close(files: Sequence[int]) -> None:
    for file in files:
        os.close(file)
