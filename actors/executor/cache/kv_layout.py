"""The shape of a model's key-value cache: that of what reaches the attention of each layer.

``model/attention_calls.py`` records it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class LayerLayout:
    """The cache of one layer for one token: ``kv_heads`` keys of ``key_dim`` and values of ``value_dim``."""

    kv_heads: int
    key_dim: int
    value_dim: int


NOTHING = LayerLayout(0, 0, 0)
"""The layout of a layer that does not attend."""


@dataclass(frozen=True, slots=True)
class KVLayout:
    """The cache of all layers, in the order of their index."""

    layers: tuple[LayerLayout, ...]

    def bytes_per_block(self, block_size: int, dtype: torch.dtype) -> int:
        """Memory of one block of ``block_size`` tokens in all layers."""
        elements = sum(layer.kv_heads * (layer.key_dim + layer.value_dim) for layer in self.layers)
        return elements * block_size * dtype.itemsize
