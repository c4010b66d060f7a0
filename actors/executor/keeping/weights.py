"""The weights of an executor, kept while it starts again: where they are, and a model made of them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import msgspec
import torch
from transformers import PreTrainedModel

from ....protocol.errors import SlipstreamError
from ....runtime.keeping import Keeper, NotKept
from ....runtime.log import logger
from ...checkpoint import open_checkpoint
from ..attention import backend as attention
from ..model.adapters.limits import AdapterLimits
from ..model.loading.load import Skeleton, load_config, replace, skeleton_of, use_own_experts
from ..model.paged_model import PagedModel
from ..ranks.group import RankGroup
from ..ranks.layers import Division
from ..ranks.shard import shard
from .arena import Arena, pages_of
from .table import Table, bind, bytes_of, fill, named_tensors

ANEW = "the weights are loaded anew: %s"
ANEW_INSTEAD = "the weights are loaded anew: those that are kept are of no use: %s"


class KeptWeights:
    """The weights of one rank that a keeper has, or will have. It is handed open files: the table, then the arena's."""

    def __init__(self, path: str, rank: int = 0) -> None:
        """``path``: where the keeper is asked."""
        self.keeper = Keeper(path, f"weights.{rank}" if rank else "weights")

    def taken_over(
        self,
        path: str,
        device: torch.device,
        attention_backend: str,
        *,
        batch_invariant: bool = False,
        group: RankGroup | None = None,
        adapter_limits: AdapterLimits | None = None,
        skeleton: Skeleton | None = None,
    ) -> PagedModel | None:
        """The model of a folder with the weights that are kept, of which nothing is read or copied; None if there are
        none. If they are of no use they are kept no longer. All ranks of a ``group`` take theirs over, or none does:
        what one reads anew may not be what the others have. ``skeleton``: of the folder, if there is one; it becomes
        the model."""
        files = self.fetched()
        found = self.opened(path, files, device, group, skeleton) if files else None
        if group is not None and not group.least(int(found is not None), device) and found is not None:
            logger.warning(ANEW, "another rank has none that are of use")
            found = None
        if found is None:
            self.forget(files)
            return None
        try:
            model = model_of(found, attention_backend, batch_invariant, group, adapter_limits)
        except Exception as error:
            self.forget(files)
            if group is not None:
                raise  # the others wait for this rank, which starts again with them
            logger.warning(ANEW_INSTEAD, error)
            return None
        self.hold(files)
        return model

    def fetched(self) -> list[int]:
        """The files that are kept; none, and why in the log, if there are none."""
        try:
            files = self.keeper.fetch()
        except NotKept as error:
            logger.warning(ANEW, error)
            return []
        if not files:
            logger.warning(ANEW, "the keeper has none")
        return files

    def opened(
        self,
        path: str,
        files: Sequence[int],
        device: torch.device,
        group: RankGroup | None,
        skeleton: Skeleton | None,
    ) -> OpenedWeights | None:
        """As ``open_weights``; None, and why in the log, if the files are of no use."""
        try:
            return open_weights(path, files, device, group, skeleton)
        except Exception as error:
            logger.warning(ANEW_INSTEAD, error)
            return None

    def forget(self, files: Sequence[int]) -> None:
        """Have them kept no longer, if there are any."""
        if not files:
            return
        close(files)
        try:
            self.keeper.forget()
        except NotKept as error:
            logger.warning("weights that are of no use are still kept: %s", error)

    @contextmanager
    def keeping(self, model: PagedModel) -> Iterator[None]:
        """A context in which a model is made ready; its weights are then moved to the keeper, or stay where they are if
        that fails."""
        named = named_tensors(model.transformer)
        yield
        files: list[int] = []
        try:
            arena = Arena(pages_of(model.device), bytes_of(model, named))
            files = arena.files
            table = fill(arena, model, named)
            if not table.tails:
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


class OpenedWeights(NamedTuple):
    """Weights that were kept, in a model of transformers."""

    transformer: PreTrainedModel
    table: Table
    divided: dict[str, Division]
    """As in ``PagedModel``."""


def open_weights(
    path: str,
    files: Sequence[int],
    device: torch.device,
    group: RankGroup | None = None,
    skeleton: Skeleton | None = None,
) -> OpenedWeights:
    """Of the table and the pieces of an arena. A rank asks no other for anything here: what is kept may be of no use to
    it alone."""
    table = msgspec.msgpack.decode(os.pread(files[0], os.fstat(files[0]).st_size, 0), type=Table)
    memory = Arena.opened(pages_of(device), files[1:], table.piece_bytes, writable=table.tails)
    dtype = getattr(torch, table.dtype)
    if skeleton is None or skeleton.transformer.dtype != dtype:
        skeleton = skeleton_of(load_config(open_checkpoint(path).folder), dtype)
    transformer, config = skeleton
    divided = {} if group is None else shard(transformer, group)
    bind(transformer, table, memory)
    use_own_experts(transformer, config)
    return OpenedWeights(transformer, table, divided)


def model_of(
    opened: OpenedWeights,
    attention_backend: str,
    batch_invariant: bool = False,
    group: RankGroup | None = None,
    adapter_limits: AdapterLimits | None = None,
) -> PagedModel:
    """The model, or a rank's part of it.

    Nothing is run or compared again: these weights passed all checks before they were kept, and have been mapped
    read-only since, except for the tails that adapters write to, which are cleared. The table has what was found.
    """
    table = opened.table
    model = PagedModel(opened.transformer, attention.create(attention_backend), table.findings)
    model.group, model.divided, model.weights_format = group, opened.divided, table.weights_format
    model.adapter_limits = adapter_limits
    replace(model, batch_invariant, checked=not table.unfused_because, findings=table.findings.decoder)
    return model


def protect(arena: Arena) -> None:
    """Map the weights read-only, so that a stray write ends its process and does not change them."""
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
