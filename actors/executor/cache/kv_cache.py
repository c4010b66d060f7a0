"""The memory of the paged key-value cache."""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass

import torch
from torch import Tensor

from ....protocol.errors import SlipstreamError
from ..devices.float8 import FP8
from .kv_layout import KVLayout


@dataclass(frozen=True, slots=True)
class LayerScales:
    """The factors by which the numbers of one layer in an FP8 cache are multiplied to give keys and values."""

    keys: Tensor
    """float32 [kv_heads], powers of two."""
    values: Tensor
    """The factors of the values."""


@dataclass(slots=True)
class KVCache:
    """Keys and values of all layers, in blocks of ``block_size`` tokens.

    ``keys[layer]`` is ``[num_blocks, block_size, kv_heads, head_dim]``, ``values[layer]`` the same shape with
    the value's head size; both contiguous, in the model's dtype or in `FP8`. Layers may differ in heads and sizes.
    """

    block_size: int
    keys: list[Tensor]
    values: list[Tensor]
    scales: list[LayerScales] | None = None
    """The scales of each layer of an FP8 cache; None: the numbers are the keys and values themselves."""

    def scales_of(self, layer: int) -> LayerScales | None:
        return None if self.scales is None else self.scales[layer]

    def copy_blocks(self, source: Tensor, target: Tensor) -> None:
        """Copy whole blocks in all layers; ``source`` and ``target`` int64 [N]."""
        for pool in (*self.keys, *self.values):
            # Of numbers of a byte torch has no copy by index.
            bits = pool.view(torch.uint8) if pool.dtype == FP8 else pool
            bits[target] = bits[source]


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
