"""Tensors one after the other in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def stacked(parts: Sequence[Tensor]) -> Tensor:
    """One tensor of the rows of all; each of them becomes a view of it. Nothing is copied where that is so already."""
    whole = as_they_lie(parts)
    if whole is None:
        dtype = parts[0].dtype
        # What is of a byte is joined as such: not every device joins FP8.
        whole = torch.cat([part.view(torch.uint8) if dtype.itemsize == 1 else part for part in parts]).view(
            dtype
        )
        for part, own in zip(parts, whole.split([len(part) for part in parts]), strict=True):
            part.data = own
    return whole


def as_they_lie(parts: Sequence[Tensor]) -> Tensor | None:
    """The memory of all as one tensor, where each follows the one before."""
    first = parts[0]
    storage, end = first.untyped_storage().data_ptr(), first.data_ptr()
    for part in parts:
        if part.data_ptr() != end or part.untyped_storage().data_ptr() != storage or not part.is_contiguous():
            return None
        end += part.nbytes
    rows = sum(len(part) for part in parts)
    return first.detach().as_strided((rows, *first.shape[1:]), first.stride())
