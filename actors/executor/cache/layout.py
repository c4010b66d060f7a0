"""The shape of a model's key-value cache, and its memory.

The shape is that of what reaches the attention of each layer (``model/attention_calls.py``).
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass

import torch
from torch import Tensor

from ....protocol.errors import SlipstreamError
from ..devices.float8 import FP8
from .paged import KVCache, LayerScales


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


def cache_dtype(asked: str, of_model: torch.dtype) -> torch.dtype:
    """The dtype of the cache by ``--kv-cache-dtype``: ``fp8``, or ``auto``, that of the model."""
    return FP8 if asked == "fp8" else of_model


def allocate(
    layout: KVLayout,
    num_blocks: int,
    block_size: int,
    device: torch.device,
    dtype: torch.dtype,
    scales: list[LayerScales] | None = None,
) -> KVCache:
    """A cache of zeros: positions that nobody has written yet are masked, but take part in sums.

    ``scales`` of an FP8 cache, which ``dtype`` then is.
    """

    def pool(heads: int, dim: int) -> Tensor:
        shape = (num_blocks, block_size, heads, dim)
        if device.type == "cpu" and math.prod(shape):
            return untouched_zeros(shape, dtype)
        return torch.zeros(shape, device=device, dtype=dtype)

    return KVCache(
        block_size=block_size,
        keys=[pool(layer.kv_heads, layer.key_dim) for layer in layout.layers],
        values=[pool(layer.kv_heads, layer.value_dim) for layer in layout.layers],
        scales=scales,
    )


def untouched_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros on the CPU that take memory, and the time to fill it, only when they are first written.

    Many services never fill their cache, and an executor that is started anew is to serve at once. SlipstreamError with
    a hint where the system does not promise so much.
    """
    size = math.prod(shape) * dtype.itemsize
    try:
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        refused = SlipstreamError(
            f"the system gives no {size} bytes for a part of the KV cache: {error.strerror}"
        )
        refused.hint = "lower --kv-cache-memory"
        raise refused from error
    return torch.frombuffer(pages, dtype=torch.uint8).view(dtype).view(shape)
