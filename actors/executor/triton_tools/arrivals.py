"""Counters for programs of a kernel that each have a part of one result: the last to arrive puts the parts together."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

MAX_TILES = 1 << 16
"""Results that are counted at once: more than any product of a step has tiles, in 256 KiB."""


def arrivals(kernel: str, tiles: int, device: torch.device) -> Tensor:
    """int32 zeros, one for each of the ``tiles`` of a launch of ``kernel``, which leaves zeros behind."""
    if tiles > MAX_TILES:
        raise ValueError(f"{kernel}: {tiles} tiles are over the {MAX_TILES} that are counted")
    return counters_of(kernel, device)


@cache
def counters_of(kernel: str, device: torch.device) -> Tensor:
    """One set for all launches of a kernel on a device, which run one after the other."""
    return torch.zeros(MAX_TILES, dtype=torch.int32, device=device)
