"""Attention as transformers calls it: importing this file makes it known there."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface

from ....protocol.errors import ModelNotSupported
from ..cache.paged import PagedBatch
from .backend import AttentionBackend

IMPLEMENTATION = "slipstream_paged"
"""Name of `transformers_attention` among the attention implementations of transformers. No mask function
has this name, so that transformers builds no mask."""


def transformers_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    paged: PagedBatch | None = None,
    backend: AttentionBackend | None = None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What every attention module of transformers calls: ``query`` [1, Hq, T, D] to [1, T, Hq, Dv].

    ``paged`` and ``backend`` are keyword arguments of the model's forward, which transformers passes down.
    ModelNotSupported when the module asks for what no backend does.
    """
    if backend is None:
        raise ModelNotSupported(f"{type(module).__name__} is not given the keyword arguments of the model")
    bias = attention_mask if attention_mask is not None else kwargs.get("position_bias")
    if bias is not None:
        raise ModelNotSupported(f"{type(module).__name__} adds its own mask or bias to the attention scores")
    if not kwargs.get("is_causal", getattr(module, "is_causal", True)):
        raise ModelNotSupported(f"{type(module).__name__} lets tokens attend to later tokens")
    output = backend(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        module.layer_idx,  # type: ignore[arg-type]
        paged,  # type: ignore[arg-type]
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        sliding_window=kwargs.get("sliding_window", getattr(module, "sliding_window", None)),
        softcap=softcap,
        sinks=s_aux if s_aux is not None else getattr(module, "sinks", None),
    )
    return output[None], None


AttentionInterface.register(IMPLEMENTATION, transformers_attention)
