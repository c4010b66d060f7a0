"""Attention as transformers calls it: importing this file makes it known there."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from ....protocol.errors import ModelNotSupported
from ..cache.paged_batch import PagedBatch
from .backend import AttentionBackend

IMPLEMENTATION = "slipstream_paged"
"""Name of `transformers_attention` among the attention implementations of transformers. No mask function
has this name, so that transformers builds no mask."""

CHUNKED = "chunked_attention"
"""Type of the layers that attend within chunks of the context."""

TEMPERATURE = "attn_temperature_tuning"
"""The attribute of a module of transformers that has it scale its queries by position."""

SHARED = -1
"""The layer of a module that several layers share."""

SCALED_BY_POSITION = "scaled_by_position"
"""The attribute of such a module whose queries are scaled here."""


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
    positions: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function that every attention module of transformers calls: ``query`` [1, Hq, T, D] to [1, T, Hq, Dv].

    ``paged``, ``backend`` and ``positions`` int64 [T], of each token in its sequence, are keyword arguments of the
    model's forward, which transformers passes down.
    ModelNotSupported when the module asks for what no backend does.
    """
    if backend is None:
        raise ModelNotSupported(f"{type(module).__name__} is not given the keyword arguments of the model")
    bias = attention_mask if attention_mask is not None else kwargs.get("position_bias")
    if bias is not None:
        raise ModelNotSupported(f"{type(module).__name__} adds its own mask or bias to the attention scores")
    if not kwargs.get("is_causal", getattr(module, "is_causal", True)):
        raise ModelNotSupported(f"{type(module).__name__} lets tokens attend to later tokens")
    if positions is not None and getattr(module, SCALED_BY_POSITION, False):
        query = query * attention_temperature(module, positions)[:, None].to(query.dtype)
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
        attention_chunk=attention_chunk_of(module),
    )
    return output[None], None


def attention_chunk_of(module: Any) -> int | None:
    """The positions of a chunk that a module's attention stays within; None: its layer is of another type."""
    config = getattr(module, "config", None)
    types = getattr(config, "layer_types", None) or ()
    index = module.layer_idx  # None of what several layers share
    if index is None or index >= len(types) or types[index] != CHUNKED:
        return None
    return config.attention_chunk_size  # type: ignore[union-attr]


def set_layer_indices(model: nn.Module) -> None:
    """Let the modules of attention that several layers share, and are told at each call of which one, know it."""
    for module in model.modules():
        if (
            getattr(module, "layer_idx", None) == SHARED
            and "layer_idx" in signature(module.forward).parameters
        ):
            module.register_forward_pre_hook(set_layer_index, with_kwargs=True)


def set_layer_index(module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
    module.layer_idx = signature(module.forward).bind(*given, **named).arguments["layer_idx"]


def scale_by_position(model: nn.Module, *, here: bool) -> None:
    """Let the modules that scale their queries by position have that done ``here``, or do it themselves.

    Those of llama4 take the place of a token in its step for its position, which holds for a whole text alone.
    """
    for module in model.modules():
        if getattr(module, TEMPERATURE, False) or hasattr(module, SCALED_BY_POSITION):
            setattr(module, TEMPERATURE, not here)
            setattr(module, SCALED_BY_POSITION, here and not module.use_rope)


def attention_temperature(module: Any, positions: Tensor) -> Tensor:
    """The factors of llama4 on queries at ``positions`` [T], in layers without rotary embedding; float32 [T]."""
    return torch.log1p(torch.floor((positions + 1) / module.floor_scale)) * module.attn_scale + 1


AttentionInterface.register(IMPLEMENTATION, transformers_attention)
