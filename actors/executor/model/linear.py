"""A linear layer made of weights that there are already, whose product another function may compute."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Computes what ``torch.nn.functional.linear`` does: of states [..., K], a weight [N, K] and a bias [N] or None."""


class GivenLinear(nn.Linear):
    """Holds the weight and bias that it is given, without memory of its own."""

    product: Product = staticmethod(F.linear)

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        product: Product = F.linear,
        in_features: int | None = None,
    ) -> None:
        """``weight`` and ``bias`` are parameters. ``in_features``: where the weight has further columns behind those of
        the layer's input."""
        with torch.device("meta"):
            super().__init__(in_features or weight.shape[1], weight.shape[0], bias=False)
        self.weight, self.bias = weight, bias
        if product is not F.linear:
            self.product = product

    def reset_parameters(self) -> None:
        """Nothing: they are given."""

    def forward(self, input: Tensor) -> Tensor:
        return self.product(input, self.weight, self.bias)
