"""Records which layers of a model attend, and with which shapes, by running it over one token.

The shapes are not read from the configuration: layers may differ in heads and head sizes, and each family of models
writes that into its configuration in its own way.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..cache.kv_layout import LayerLayout
from ..cache.paged_batch import PagedBatch


class CallRecorder:
    """An attention backend that computes nothing and notes who calls it with which shapes."""

    name = "recorder"

    def __init__(self) -> None:
        self.calls: list[tuple[int, LayerLayout]] = []

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layer: int,
        batch: PagedBatch | None,
        *,
        scale: float,
        sliding_window: int | None,
        softcap: float | None,
        sinks: Tensor | None,
        attention_chunk: int | None = None,
    ) -> Tensor:
        self.calls.append((layer, LayerLayout(key.shape[1], key.shape[2], value.shape[2])))
        return query.new_zeros(query.shape[0], query.shape[1], value.shape[2])


def record_attention(model: PreTrainedModel) -> list[tuple[int, LayerLayout]]:
    """The attention calls of one forward pass over one token, as (layer index, layout).

    The model's attention implementation is `transformers_hook.IMPLEMENTATION`.
    """
    recorder = CallRecorder()
    token = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    with torch.inference_mode():
        model(input_ids=token, position_ids=token, use_cache=False, paged=None, backend=recorder)
    return recorder.calls
