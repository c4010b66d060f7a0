"""The scales of an FP8 cache, found by looking at the keys and values that a model makes.

FP8 keeps three bits of mantissa at any size of number between its limits. So a scale need not be exact: it keeps the
largest numbers within what FP8 has, with room for larger ones than were seen.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..attention.torch_backend import TorchAttention
from ..cache.kv_cache import LayerScales, allocate
from ..cache.paged_batch import PagedBatch
from ..cache.state import StateCache
from ..devices.float8 import FP8_MAX
from .paged_model import PagedModel

SEEN_TOKENS = 256
"""Tokens of the text, drawn from the whole vocabulary, whose largest numbers are taken: each head has 256 keys to show
its range, and the text still runs in one step."""

HEADROOM = 4.0
"""How much larger than the largest number seen a number may be before it is cut off: two of the 18 powers of two that
FP8 spans."""


class Greatest(TorchAttention):
    """Notes the greatest absolute key and value of each head, by layer, of what it attends to."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, layer: int, batch: PagedBatch, **how: Any
    ) -> Tensor:
        self.seen[layer] = (key.abs().amax((0, 2)).float(), value.abs().amax((0, 2)).float())
        return super().__call__(query, key, value, layer, batch, **how)


def measure_scales(model: PagedModel) -> list[LayerScales]:
    """The scales of each layer, in order; all ones for a layer that does not attend.

    The same model always gives the same ones: a cache means after a restart what it meant before.
    """
    count, device = min(SEEN_TOKENS, model.max_model_len), model.device
    positions = torch.arange(count, device=device)
    batch = PagedBatch(
        cache=allocate(model.kv_layout, 2, count, device, model.dtype),
        rows=torch.zeros(1, dtype=torch.int64, device=device),
        kv_lens=torch.tensor([count], dtype=torch.int32, device=device),
        query_start=torch.tensor([0, count], dtype=torch.int32, device=device),
        write_index=count + positions,
        block_table=torch.ones(1, 1, dtype=torch.int32, device=device),
        decode_only=False,
        max_kv_len=0,
        states=StateCache(model.state_layout, 1, device) if model.state_layout else None,
        row_tokens=(count,),
    )
    tokens = positions * 7919 % model.vocab_size
    backend, greatest = model.backend, Greatest()
    model.backend = greatest
    try:
        model.forward(tokens, positions, batch, positions[-1:])
    finally:
        model.backend = backend
    nothing = torch.ones(0, device=device)
    return [
        LayerScales(*map(scale_of, greatest.seen.get(layer, (nothing, nothing))))
        for layer in range(len(model.kv_layout.layers))
    ]


def scale_of(greatest: Tensor) -> Tensor:
    """The power of two [H] by which numbers up to ``greatest`` [H], and ``HEADROOM`` times that, are within FP8."""
    exponent = (greatest * (HEADROOM / FP8_MAX)).log2().ceil()
    return torch.where(greatest > 0, exponent.exp2(), 1.0)
