"""How many adapters a model may have at once, of which ranks, and which of its weights get a tail for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ...ranks.layers import RowParallelLinear

ALIGNMENT = 64
"""Columns of which a tail has a multiple, so that the rows of a weight begin where a GPU reads at once."""

MAX_OF_WIDTH = 1 / 4
"""A longer tail, relative to the K columns of the layer, takes longer to read than the kernels that it saves."""


@dataclass(frozen=True, slots=True)
class AdapterLimits:
    """The adapters that a model has memory for at once."""

    count: int
    max_rank: int

    def tail(self, layers: Sequence[nn.Linear]) -> int:
        """Columns of the tail beside ``layers``, which will be joined; 0: they get none."""
        if any(type(layer) not in (nn.Linear, RowParallelLinear) for layer in layers):
            return 0
        columns = -(-self.count * self.max_rank * len(layers) // ALIGNMENT) * ALIGNMENT
        return columns if columns <= MAX_OF_WIDTH * layers[0].in_features else 0
