"""The memory of recurrent and convolution layers: states that stand for all tokens of a sequence so far.

Blocks of the paged cache keep something of every token. A state has one size, however long the sequence is, and is
written over by each step. So there is one for each sequence slot: a **state slot** is the sequence slot's, is held
and handed out again with it by the same rule, and is all zeros when a sequence joins.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor


class StateKey(NamedTuple):
    """Identifies a state of a model. Few layers have more than one of a kind."""

    layer: int
    kind: str
    """``conv``, the last inputs of a convolution, or ``recurrent``."""
    number: int


@dataclass(frozen=True, slots=True)
class StateLayout:
    """The shapes and dtypes of the states that a model keeps of a sequence, in order."""

    shapes: tuple[tuple[StateKey, tuple[int, ...], torch.dtype], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.shapes)

    @property
    def layers(self) -> frozenset[int]:
        return frozenset(key.layer for key, _, _ in self.shapes)

    @property
    def bytes_per_slot(self) -> int:
        """Memory of one sequence, in all layers."""
        return sum(prod(shape) * dtype.itemsize for _, shape, dtype in self.shapes)


class StateCache:
    """The states of all sequence slots, on the device."""

    def __init__(self, layout: StateLayout, slots: int, device: torch.device) -> None:
        elements: dict[torch.dtype, int] = defaultdict(int)
        for _, shape, dtype in layout.shapes:
            elements[dtype] += prod(shape)
        self.pools = {
            dtype: torch.zeros(slots, count, dtype=dtype, device=device) for dtype, count in elements.items()
        }
        """[slots, elements] by dtype: all states of a slot beside each other, so that one operation clears them."""
        self.states: dict[StateKey, Tensor] = {}
        """Views of them, [slots, *shape] each."""
        used: dict[torch.dtype, int] = defaultdict(int)
        for key, shape, dtype in layout.shapes:
            start = used[dtype]
            used[dtype] = end = start + prod(shape)
            self.states[key] = self.pools[dtype][:, start:end].unflatten(1, shape)

    def clear(self, slots: Tensor) -> None:
        """Forget what is in ``slots`` int64 [N]: sequences begin there."""
        for pool in self.pools.values():
            pool.index_fill_(0, slots, 0)
