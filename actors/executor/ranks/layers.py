"""Layers of which each rank has a shard, and the sums or gathers of what the shards give.

A layer whose outputs are divided and stay so needs none of these: it is an ``nn.Linear`` with fewer rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from ....protocol.errors import InvalidRequest
from ..model.linear import GivenLinear
from .group import RankGroup


class Division(NamedTuple):
    """Which outputs and inputs of a layer this rank computes."""

    outputs: tuple[int, int] = (1, 0)
    """The number of equal shards, and the number of this rank's."""
    inputs: tuple[int, int] = (1, 0)


WHOLE = Division()


def shard_of(tensor: Tensor, dim: int, size: int, number: int, name: str) -> Tensor:
    """Shard ``number`` of ``size`` equal ones of a tensor along ``dim``, copied; InvalidRequest if ``size`` does not
    divide that dimension."""
    if tensor.shape[dim] % size:
        raise InvalidRequest(
            f"tensor_parallel_size={size}: {name} has {tensor.shape[dim]} rows or columns, which {size} ranks cannot"
            " divide; give a divisor of that"
        )
    return tensor.tensor_split(size, dim)[number].clone()


class Unsummed(NamedTuple):
    """A sum over ranks that is left to the kernel behind it, which can do it on its way."""

    partial: Tensor
    group: RankGroup

    def summed(self) -> Tensor:
        return self.group.sum(self.partial)


class RowParallel(nn.Linear):
    """Columns of the whole weight: the products of all ranks are summed. The bias, summed too, is one rank's alone."""

    group: RankGroup
    of_whole: bool
    """What comes in is not divided yet."""
    adding: Callable[[Tensor, Tensor], None] | None = None
    """Adds the products of this rank's shard of the adapters, given the input and the products of the layer."""

    def multiply(self, input: Tensor) -> Tensor:
        """The products of this rank."""
        return F.linear(input, self.weight, self.bias)

    def unsummed(self, input: Tensor) -> Unsummed:
        """This rank's summand of the outputs."""
        if self.of_whole:
            input = input.tensor_split(self.group.size, -1)[self.group.rank]
        products = self.multiply(input)
        if self.adding is not None:
            self.adding(input, products)
        return Unsummed(products, self.group)

    def forward(self, input: Tensor) -> Tensor:
        return self.unsummed(input).summed()


def unsummed(layer: nn.Linear, input: Tensor) -> Tensor | Unsummed:
    """This rank's share of a sum that the next kernel makes."""
    return layer.unsummed(input) if isinstance(layer, RowParallel) else layer(input)


class RowParallelLinear(RowParallel, GivenLinear):
    """A plain layer, of which a rank has columns."""

    def __init__(
        self, weight: nn.Parameter, bias: nn.Parameter | None, group: RankGroup, *, of_whole: bool
    ) -> None:
        super().__init__(weight, bias)
        self.group, self.of_whole = group, of_whole

    def multiply(self, input: Tensor) -> Tensor:
        return self.product(input, self.weight, self.bias)


class GatheredLinear(GivenLinear):
    """Rows of the whole weight, the last rank's filled up to as many: the products of all ranks stand side by side."""

    def __init__(
        self, weight: nn.Parameter, bias: nn.Parameter | None, group: RankGroup, *, whole: int
    ) -> None:
        """``whole`` are the rows of the whole weight."""
        super().__init__(weight, bias)
        self.group, self.whole = group, whole

    def forward(self, input: Tensor) -> Tensor:
        product = self.product(input, self.weight, self.bias)
        if product.is_meta:
            return product.new_empty(*product.shape[:-1], self.whole)
        return self.group.gather(product.flatten(0, -2), self.whole).unflatten(0, product.shape[:-1])


class RowParallelExperts(nn.Module):
    """Each rank has a shard of every expert: what all of them give is summed."""

    def __init__(self, experts: nn.Module, group: RankGroup) -> None:
        super().__init__()
        self.experts, self.group = experts, group

    def forward(self, *given: Any, **named: Any) -> Tensor:
        return self.group.sum(self.experts(*given, **named))
