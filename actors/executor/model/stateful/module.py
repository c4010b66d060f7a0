"""A module that keeps a state: how the model calls it, and the cache that it is given instead of transformers' own."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...cache.state import StateCache, StateKey

# It warns of each kernel that is not installed; ``StatefulModules.notes`` says it in one sentence.
logging.getLogger("transformers.integrations.hub_kernels").setLevel(logging.ERROR)


class RowStates:
    """The states of some rows of a step, as a module of transformers asks its cache for them.

    It has what such modules call of `transformers.Cache`, with the meaning that `LinearAttentionLayer` gives it for a
    sequence that has begun: a sequence that begins has a state of zeros, which says the same as none.
    """

    def __init__(self, cache: StateCache, rows: Tensor) -> None:
        """``rows`` int64 [N] of the state slots in ``cache``."""
        self.cache, self.rows = cache, rows
        self.taken: dict[StateKey, Tensor] = {}
        """Copies [N, *shape], which a module may write into as well."""

    def take(self, key: StateKey) -> Tensor:
        state = self.taken.get(key)
        if state is None:
            state = self.taken[key] = self.cache.states[key].index_select(0, self.rows)
        return state

    def put_back(self) -> None:
        for key, state in self.taken.items():
            self.cache.states[key].index_copy_(0, self.rows, state)

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor:
        return self.take(StateKey(layer_idx, "conv", state_idx))

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        key = StateKey(layer_idx, "recurrent", state_idx)
        return self.take(key) if key in self.cache.states else None

    def update_conv_state(
        self, conv_states: Tensor, layer_idx: int, state_idx: int = 0, **options: Any
    ) -> Tensor:
        """Keep the last of ``conv_states`` [N, ..., tokens]; returns all of them, behind those that were kept."""
        state = self.get_conv_state(layer_idx, state_idx)
        inputs = torch.cat((state, conv_states), -1)
        state.copy_(inputs[..., -state.shape[-1] :])
        return inputs

    def update_recurrent_state(
        self, recurrent_states: Tensor, layer_idx: int, state_idx: int = 0, **options: Any
    ) -> Tensor:
        return self.take(StateKey(layer_idx, "recurrent", state_idx)).copy_(recurrent_states)

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        return True

    def is_recording_past(self, layer_idx: int) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class StatefulModule:
    """A module that keeps a state, and how the model calls it."""

    module: nn.Module
    given: tuple[Any, ...]
    named: dict[str, Any]
    """What it is given for one token, with None for the cache."""
    cache_place: int
    """Where its cache stands among what it is given by place; beyond, it is given by name."""

    def with_cache(
        self, given: tuple[Any, ...], named: dict[str, Any], cache: RowStates
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the module, with a cache among them."""
        place = self.cache_place
        if place < len(given):
            return (*given[:place], cache, *given[place + 1 :]), named
        return given, named | {"cache": cache}
