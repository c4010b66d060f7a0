"""Tensors one after the other in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def stacked(parts: Sequence[Tensor], tail: int = 0) -> Tensor:
    """One tensor of the rows of all; each of them becomes a view of it. Nothing is copied where that is so already.

    With a ``tail``, of matrices, each row has so many columns more, which are zero where they are made.
    """
    whole = as_they_lie(parts, tail)
    if whole is None and tail:
        columns = parts[0].shape[1]
        whole = parts[0].new_zeros(sum(len(part) for part in parts), columns + tail)
        for part, own in zip(parts, split(whole, parts), strict=True):
            own[:, :columns].copy_(part)
            part.data = own[:, :columns]
    elif whole is None:
        dtype = parts[0].dtype
        # What is of a byte is joined as such: not every device joins FP8.
        whole = torch.cat([part.view(torch.uint8) if dtype.itemsize == 1 else part for part in parts]).view(
            dtype
        )
        for part, own in zip(parts, split(whole, parts), strict=True):
            part.data = own
    return whole


def split(whole: Tensor, parts: Sequence[Tensor]) -> Sequence[Tensor]:
    return whole.split([len(part) for part in parts])


def as_they_lie(parts: Sequence[Tensor], tail: int) -> Tensor | None:
    """The memory of all as one tensor, where each follows the one before."""
    first = parts[0]
    shape, stride = [sum(map(len, parts)), *first.shape[1:]], first.stride()
    if tail:
        shape[1] += tail
        stride = (shape[1], 1)
    storage, end = first.untyped_storage(), first.data_ptr()
    for part in parts:
        if part.data_ptr() != end or part.untyped_storage().data_ptr() != storage.data_ptr():
            return None
        if part.stride() != stride if tail else not part.is_contiguous():
            return None
        end += len(part) * stride[0] * part.itemsize
    if end > storage.data_ptr() + storage.nbytes():
        return None
    return first.detach().as_strided(shape, stride)
