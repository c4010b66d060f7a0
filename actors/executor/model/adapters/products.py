"""The interface of the products of adapters, and their computation in plain torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(slots=True)
class Stack:
    """The weights of all adapters beside one projection, which is joined from one or more sublayers: layers of the
    checkpoint, such as those of queries, keys and values."""

    down: Tensor
    """[count, sublayers * rank, K]: A of each sublayer. An adapter of a lower rank, or without this sublayer, has zeros
    there."""
    up: Tensor
    """[count, N, rank]: B of all sublayers, one after the other, times the adapter's scaling."""
    starts: tuple[int, ...]
    """Where each sublayer begins among the N."""
    rank: int

    @property
    def sublayers(self) -> list[tuple[slice, slice]]:
        """For each sublayer, its rows of ``up`` and of ``down``."""
        ends = (*self.starts[1:], self.up.shape[1])
        return [
            (slice(start, end), slice(sublayer * self.rank, (sublayer + 1) * self.rank))
            for sublayer, (start, end) in enumerate(zip(self.starts, ends, strict=True))
        ]

    @property
    def bytes(self) -> int:
        return self.down.nbytes + self.up.nbytes

    def a(self, id: int, sublayer: int) -> Tensor:
        """[rank, K]: of one adapter and one sublayer."""
        return self.down[id - 1, self.sublayers[sublayer][1]]

    def b(self, id: int, sublayer: int) -> Tensor:
        """[rows of the sublayer, rank]"""
        return self.up[id - 1, self.sublayers[sublayer][0]]

    def clear(self, id: int) -> None:
        """An adapter adds nothing."""
        self.down[id - 1].zero_()
        self.up[id - 1].zero_()


@dataclass(slots=True)
class Tail(Stack):
    """A stack whose B lies in the tail of the layer's weight: ``up`` [count, N, sublayers * rank] is a view of that,
    with zeros where a column of one sublayer meets a row of another. Each column of the tail is for a row of A."""

    columns: int
    """Columns of the tail, some of which are left over."""

    @classmethod
    def of(cls, weight: Tensor, down: Tensor, starts: tuple[int, ...]) -> Tail:
        """In ``weight`` [N, K + C], with A in ``down``."""
        count, ranks, width = down.shape
        up = weight[:, width : width + count * ranks].unflatten(1, (count, ranks)).transpose(0, 1)
        return cls(down, up, starts, ranks // len(starts), weight.shape[1] - width)

    @property
    def bytes(self) -> int:
        return self.down.nbytes + self.up.shape[1] * self.columns * self.up.itemsize

    def b(self, id: int, sublayer: int) -> Tensor:
        outputs, ranks = self.sublayers[sublayer]
        return self.up[id - 1, outputs, ranks]


class Products(Protocol):
    """Computes the products of adapters."""

    def begin(self, ids: Tensor) -> None:
        """A forward pass begins; ``ids`` int32 [T] are those of the adapters of its tokens, 0 for none."""
        ...

    def add(self, output: Tensor, states: Tensor, stack: Stack) -> None:
        """Add to ``output`` [T, N] in place what each token's adapter makes of ``states`` [T, K]."""
        ...

    def extend(self, states: Tensor, tail: Tail) -> Tensor:
        """[T, K + C]: ``states`` [T, K], and behind them, for each column of the tail, what its row of A makes of them
        where that is of the token's own adapter, or zero."""
        ...


class TorchProducts:
    """Adapter by adapter, for the tokens that have it: on a CPU, where the host may look at the ids."""

    def __init__(self) -> None:
        self.groups: list[tuple[int, Tensor | slice]] = []
        """The adapters of the step under way: ids, and the tokens that have them."""

    def begin(self, ids: Tensor) -> None:
        present = ids.unique().tolist()
        everywhere = len(present) == 1
        self.groups = [
            (id, slice(None) if everywhere else (ids == id).nonzero().flatten()) for id in present if id
        ]

    def add(self, output: Tensor, states: Tensor, stack: Stack) -> None:
        for id, tokens in self.groups:
            small = states[tokens] @ stack.down[id - 1].T
            added = [
                small[:, ranks] @ stack.b(id, sublayer).T
                for sublayer, (_, ranks) in enumerate(stack.sublayers)
            ]
            output[tokens] += torch.cat(added, 1)

    def extend(self, states: Tensor, tail: Tail) -> Tensor:
        ranks, width = tail.down.shape[1:]
        extended = states.new_zeros(len(states), width + tail.columns)
        extended[:, :width] = states
        for id, tokens in self.groups:
            first = width + (id - 1) * ranks
            extended[tokens, first : first + ranks] = states[tokens] @ tail.down[id - 1].T
        return extended
