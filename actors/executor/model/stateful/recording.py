"""Finds the modules of a model that keep a state, and the shapes of the states, while one token is computed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from ...cache.state import StateKey, StateLayout
from .module import StatefulModule


def record_states(
    transformer: PreTrainedModel, options: dict[str, Any]
) -> tuple[StateLayout, list[StatefulModule]]:
    """The states that a model keeps of a sequence beside keys and values, and the modules that keep them.

    ``options`` are for the forward pass over one token, with a cache of transformers' own, where a layer makes room
    for its state when it first has one.
    """
    cache = ObservedCache(transformer)
    token = torch.zeros(1, 1, dtype=torch.int64, device=transformer.device)
    with torch.inference_mode():
        transformer(input_ids=token, position_ids=token, use_cache=True, cache=cache, **options)
    cache.forget_modules()
    shapes = [
        (StateKey(layer, kind, index), tuple(state.shape[1:]), state.dtype)
        for layer, holder in enumerate(cache.layers)
        if isinstance(holder, LinearAttentionCacheLayerMixin)
        for kind, states in (("conv", holder.conv_states), ("recurrent", holder.recurrent_states))
        for index, state in states.items()
        if state is not None
    ]
    return StateLayout(tuple(shapes)), list(cache.found.values())


class ObservedCache(DynamicCache):
    """A cache of transformers that notes which modules ask it for states: the innermost that is running."""

    def __init__(self, transformer: PreTrainedModel) -> None:
        super().__init__(config=transformer.config)
        self.running: list[StatefulModule] = []
        self.found: dict[nn.Module, StatefulModule] = {}
        self.hooks: list[Any] = []
        for module in transformer.modules():
            self.hooks.append(module.register_forward_pre_hook(self.entered, with_kwargs=True))
            self.hooks.append(module.register_forward_hook(self.left))

    def entered(self, module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        place = next((place for place, value in enumerate(given) if value is self), len(given))
        without = (*given[:place], None, *given[place + 1 :]) if place < len(given) else given
        others = {name: value for name, value in named.items() if value is not self}
        self.running.append(StatefulModule(module, without, others, place))

    def left(self, module: nn.Module, given: Any, output: Any) -> None:
        self.running.pop()

    def forget_modules(self) -> None:
        for hook in self.hooks:
            hook.remove()

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        self.note()
        return super().get_conv_state(layer_idx, state_idx)

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        self.note()
        return super().get_recurrent_state(layer_idx, state_idx)

    def note(self) -> None:
        self.found.setdefault(self.running[-1].module, self.running[-1])
