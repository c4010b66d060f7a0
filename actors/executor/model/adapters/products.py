"""What adapters add, and how it is computed in plain torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(slots=True)
class Stack:
    """The weights of all adapters beside one projection, which may be several layers of the model joined to one."""

    down: Tensor
    """[count, parts * rank, K]: A of each part. An adapter of a lower rank, or without this part, has zeros there."""
    up: Tensor
    """[count, N, rank]: B of all parts, one after the other, times the adapter's scaling."""
    starts: tuple[int, ...]
    """Where each part begins among the N."""
    rank: int

    @property
    def parts(self) -> list[tuple[slice, slice]]:
        """Of each part, its rows of ``up`` and of ``down``."""
        ends = (*self.starts[1:], self.up.shape[1])
        return [
            (slice(start, end), slice(part * self.rank, (part + 1) * self.rank))
            for part, (start, end) in enumerate(zip(self.starts, ends, strict=True))
        ]


class Products(Protocol):
    """How what adapters add is computed."""

    def begin(self, ids: Tensor) -> None:
        """A forward pass begins; ``ids`` int32 [T] are those of the adapters of its tokens, 0 for none."""
        ...

    def add(self, output: Tensor, states: Tensor, stack: Stack) -> None:
        """Add to ``output`` [T, N] in place what each token's adapter makes of ``states`` [T, K]."""
        ...


class TorchProducts:
    """Adapter by adapter, for the tokens that have it: on a CPU, where the host may look at the ids."""

    def __init__(self) -> None:
        self.groups: list[tuple[int, Tensor | slice]] = []
        """Of the step under way: ids, and the tokens that have them."""

    def begin(self, ids: Tensor) -> None:
        present = ids.unique().tolist()
        everywhere = len(present) == 1
        self.groups = [
            (id, slice(None) if everywhere else (ids == id).nonzero().flatten()) for id in present if id
        ]

    def add(self, output: Tensor, states: Tensor, stack: Stack) -> None:
        for id, tokens in self.groups:
            small = states[tokens] @ stack.down[id - 1].T
            added = [small[:, ranks] @ stack.up[id - 1, outputs].T for outputs, ranks in stack.parts]
            output[tokens] += torch.cat(added, 1)
