"""Layers whose weights have a tail: further columns, in which B of all adapters lies.

The input of such a weight [N, K + C] is the states and, behind them, what A of each token's own adapter makes of them.
So one product gives the output of the layer and of the adapter together: an adapter costs one small kernel a layer
instead of two, and each product reads a few more columns. Where a layer has no tail, kernels of their own add what
adapters give to its output.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from ...ranks.layers import RowParallel, RowParallelLinear
from ..linear import GivenLinear


class TailedLinear(GivenLinear):
    """``weight`` is [N, K + C], of which the first K columns are the layer's own."""

    extend: Callable[[Tensor], Tensor] | None = None
    """Makes of the states [T, K] what the whole weight is multiplied by, [T, K + C]; None: there are no adapters."""

    def __init__(self, weight: Tensor, bias: Tensor | None, columns: int) -> None:
        """``columns`` are K."""
        own_bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        super().__init__(nn.Parameter(weight, requires_grad=False), own_bias, in_features=columns)

    def forward(self, input: Tensor) -> Tensor:
        return self.multiply(input)

    def multiply(self, input: Tensor) -> Tensor:
        """The products with this weight, and nothing that a rank does with those of others."""
        if self.extend is None:
            return F.linear(input, self.weight[:, : self.in_features], self.bias)
        return self.product(self.extend(input), self.weight, self.bias)


class TailedRowParallel(TailedLinear, RowParallel):
    """A layer of which a rank has columns, with a tail for the adapters' shards of these columns."""

    def __init__(self, weight: Tensor, bias: Tensor | None, like: RowParallelLinear) -> None:
        super().__init__(weight, bias, like.in_features)
        self.group, self.of_whole = like.group, like.of_whole

    def forward(self, input: Tensor) -> Tensor:
        return RowParallel.forward(self, input)


def tailed(like: nn.Linear, weight: Tensor, bias: Tensor | None) -> TailedLinear:
    """A layer with this ``weight`` [N, K + C] that does with its products what ``like`` does with its own."""
    if isinstance(like, RowParallelLinear):
        return TailedRowParallel(weight, bias, like)
    return TailedLinear(weight, bias, like.in_features)
