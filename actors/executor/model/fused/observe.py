"""Observes a decoder of transformers in one run: what reaches its layers and their attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...cache.paged_batch import PagedBatch
from ..findings import Call

CHECKED_POSITIONS = (0, 1, 2, 5, 11, 47, 101, 102)
"""The first ones and some further on: positions next to each other, and more than a hundred apart, where a rotation
that was misunderstood differs most."""

CHECKED_TOKENS = 64
"""Rows of the embedding that the copy has."""


class Unfit(Exception):
    """Why a decoder stays as it is."""


@dataclass(slots=True)
class Observed:
    """One run of transformers' decoder, as an attention backend that stands in for the cache's."""

    tokens: Tensor | None = None
    """[1, T], their ids."""
    embedded: Tensor | None = None
    """[1, T, H], what its first layer is given."""
    calls: dict[int, Call] = field(default_factory=dict)
    """By layer."""
    sinks: dict[int, Tensor] = field(default_factory=dict)
    """By layer, where its attention has some."""
    embeddings: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """By layer: cosines and sines [1, T, R] that its attention is given."""
    tuples: dict[int, bool] = field(default_factory=dict)
    """By layer: whether its feed-forward module returns a tuple."""
    name = "observed"

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
        """Plain causal attention, to all of the run's own tokens."""
        if attention_chunk is not None:
            raise Unfit("its layers attend within chunks of the context")
        _, query_heads, head_dim = query.shape
        self.calls[layer] = Call(
            query_heads, key.shape[1], head_dim, value.shape[2], scale, sliding_window, softcap
        )
        if sinks is not None:
            self.sinks[layer] = sinks
        query, key, value = (states.transpose(0, 1) for states in (query, key, value))
        output = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scale, enable_gqa=True
        )
        return output.transpose(0, 1)


def observe(decoder: Any) -> Observed:
    """Run transformers' decoder over a few tokens far apart."""
    observed = Observed()
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise Unfit("its decoder has no list of layers")
    hooks: list[Any] = []

    def first(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        # A copy: what follows may add to it in place.
        observed.embedded = (given[0] if given else named["hidden_states"]).clone()

    def note_embeddings(index: int) -> Callable[..., None]:
        def found(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            embeddings = named.get("position_embeddings")
            if isinstance(embeddings, tuple) and len(embeddings) == 2:
                observed.embeddings[index] = embeddings

        return found

    def returned(index: int) -> Callable[..., None]:
        def found(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
            observed.tuples[index] = isinstance(output, tuple)

        return found

    hooks.append(layers[0].register_forward_pre_hook(first, with_kwargs=True))
    for index, layer in enumerate(layers):
        parts = dict(layer.named_children())
        if "self_attn" not in parts or "mlp" not in parts:
            break
        hooks.append(parts["self_attn"].register_forward_pre_hook(note_embeddings(index), with_kwargs=True))
        hooks.append(parts["mlp"].register_forward_hook(returned(index)))
    positions = torch.tensor([CHECKED_POSITIONS], device=decoder.device)
    try:
        observed.tokens = checked_tokens(decoder)
        decoder(
            input_ids=observed.tokens, position_ids=positions, use_cache=False, paged=None, backend=observed
        )
    finally:
        for hook in hooks:
            hook.remove()
    return observed


def checked_tokens(decoder: Any) -> Tensor:
    """[1, T]: one for each of the positions, as different as a vocabulary allows that may be smaller."""
    known = min(CHECKED_TOKENS, getattr(decoder.config, "vocab_size", CHECKED_TOKENS))
    step = 7 if known % 7 else 1  # of 7 or 14 tokens, steps of 7 would meet one or two
    return torch.arange(len(CHECKED_POSITIONS), device=decoder.device)[None] * step % known
