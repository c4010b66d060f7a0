"""Modules of transformers that keep a state, run over the state slots.

Such a module knows a batch of sequences of one length. A step is rows of one token and chunks of prompts, so it is
given to the module in parts: the rows that decode together as a batch, then each chunk by itself. Whatever else
there is in a model sees the step as a whole.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from ..cache.paged import PagedBatch
from ..cache.state import StateKey, StateLayout, StateSlots

# It warns of each kernel that is not installed; ``StatefulModules.told`` says it in one sentence.
logging.getLogger("transformers.integrations.hub_kernels").setLevel(logging.ERROR)

CHECKED_TOKENS = 8
CHUNK_TOLERANCE = 1e-3
"""Of a module's output in float32, relative to its size. Other orders of sums give 1e-6, a state forgotten 1e-1."""


HOST_READS = frozenset(
    {
        "item",
        "is_nonzero",
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "equal",
        "_unique2",
        "unique_dim",
        "unique_consecutive",
    }
)
"""Operations whose result has a size or a value that the host waits for."""


class RowStates:
    """The states of some rows of a step, as a module of transformers asks its cache for them.

    It has what such modules call of `transformers.Cache`, with the meaning that `LinearAttentionLayer` gives it for a
    sequence that has begun: a sequence that begins has a state of zeros, which says the same as none.
    """

    def __init__(self, slots: StateSlots, rows: Tensor) -> None:
        """``rows`` int64 [N] of the state slots."""
        self.slots, self.rows = slots, rows
        self.taken: dict[StateKey, Tensor] = {}
        """Copies [N, *shape], which a module may write into as well."""

    def take(self, key: StateKey) -> Tensor:
        state = self.taken.get(key)
        if state is None:
            state = self.taken[key] = self.slots.states[key].index_select(0, self.rows)
        return state

    def put_back(self) -> None:
        for key, state in self.taken.items():
            self.slots.states[key].index_copy_(0, self.rows, state)

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor:
        return self.take(StateKey(layer_idx, "conv", state_idx))

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        key = StateKey(layer_idx, "recurrent", state_idx)
        return self.take(key) if key in self.slots.states else None

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
        """What it is given, and a cache."""
        place = self.cache_place
        if place < len(given):
            return (*given[:place], cache, *given[place + 1 :]), named
        return given, named | {"cache": cache}


class StatefulModules:
    """The modules of a model that keep a state, made to run a step in parts."""

    def __init__(self, modules: list[StatefulModule], layout: StateLayout) -> None:
        self.parts: list[tuple[slice, Tensor, bool]] = []
        """Of the step under way: tokens, the slots of their rows, and whether each row has one token."""
        self.slots: StateSlots | None = None
        """None: no step is under way, and the modules are as transformers has them."""
        self.tokens = 0
        self.layout = layout
        self.modules = [one.module for one in modules]
        trials: dict[type[nn.Module], Trial] = {}
        for one in modules:
            kind = type(one.module)
            if kind not in trials:
                trials[kind] = trial_of(one, layout)
            one.module.forward = self.in_parts(one, trials[kind].takes_chunks)
        self.token_by_token = not all(trial.takes_chunks for trial in trials.values())
        """Some of them forget their state when they are given several tokens, which so have to come one by one."""
        self.host_read = next((trial.host_read for trial in trials.values() if trial.host_read), "")
        """As of `Trial`."""

    def undo(self) -> None:
        """Leave the modules as transformers has them."""
        for module in self.modules:
            del module.forward

    def told(self) -> list[str]:
        """What one should know of them, a sentence a line."""
        lines = [
            f"recurrent layers: {self.layout.bytes_per_slot:,} bytes of state for each sequence; prompts that begin"
            " the same share nothing, since a state is in no block"
        ]
        if self.token_by_token:
            lines.append(
                "prompts are computed token by token in these layers: the scan that transformers has for them cannot"
                " go on from a state"
            )
        if missing := missing_kernels(self.modules):
            lines.append(
                f"kernels of these layers are torch's; on a GPU they are faster with {' and '.join(missing)} installed"
            )
        return lines

    def begin(self, batch: PagedBatch) -> None:
        assert batch.states is not None
        self.slots, self.tokens = batch.states, len(batch.write_index)
        self.parts = parts_of(batch)

    def end(self) -> None:
        self.slots = None

    def in_parts(self, one: StatefulModule, takes_chunks: bool) -> Callable[..., Any]:
        whole = one.module.forward

        def forward(*given: Any, **named: Any) -> Any:
            if self.slots is None:
                return whole(*given, **named)
            outputs: list[Any] = []
            for tokens, rows, single in self.parts:
                states = RowStates(self.slots, rows)
                turns = (
                    [tokens]
                    if single or takes_chunks
                    else [slice(token, token + 1) for token in range(tokens.start, tokens.stop)]
                )
                for turn in turns:
                    some, others = one.with_cache(
                        tuple(self.part(value, turn, single) for value in given),
                        {name: self.part(value, turn, single) for name, value in named.items()},
                        states,
                    )
                    found = whole(*some, **others)
                    outputs.append(in_line(found) if single else found)
                states.put_back()
            return self.joined(outputs)

        return forward

    def part(self, value: Any, tokens: slice, single: bool) -> Any:
        """Of what a module is given, [1, T, ...], some tokens: [N, 1, ...] if ``single``, otherwise [1, N, ...]."""
        if isinstance(value, tuple):
            return tuple(self.part(one, tokens, single) for one in value)
        if not isinstance(value, Tensor) or value.shape[:2] != (1, self.tokens):
            return value
        return value[:, tokens].transpose(0, 1) if single else value[:, tokens]

    def joined(self, outputs: list[Any]) -> Any:
        """The parts one after the other, and zeros for tokens that belong to no row."""
        first = outputs[0]
        if isinstance(first, tuple):
            return tuple(self.joined(list(parts)) for parts in zip(*outputs, strict=True))
        if not isinstance(first, Tensor):
            return first
        missing = self.tokens - self.parts[-1][0].stop
        if missing:
            outputs.append(first.new_zeros(1, missing, *first.shape[2:]))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)


def in_line(value: Any) -> Any:
    """[N, 1, ...], a row each, as [1, N, ...]."""
    if isinstance(value, tuple):
        return tuple(in_line(one) for one in value)
    return value.transpose(0, 1) if isinstance(value, Tensor) else value


def parts_of(batch: PagedBatch) -> list[tuple[slice, Tensor, bool]]:
    """As ``StatefulModules.parts``; what a step has of rows with prompts is known by ``batch.row_tokens``."""
    if batch.decode_only:
        return [(slice(0, len(batch.rows)), batch.rows, True)]
    counts = batch.row_tokens
    decodes = next((row for row, count in enumerate(counts) if count > 1), len(counts))
    parts = [(slice(0, decodes), batch.rows[:decodes], True)] if decodes else []
    start = decodes
    for row, count in enumerate(counts[decodes:], decodes):
        parts.append((slice(start, start + count), batch.rows[row : row + 1], False))
        start += count
    return parts


KERNELS = {
    "causal_conv1d": ("causal_conv1d", "causal-conv1d"),
    "gated_delta_rule": ("fla", "flash-linear-attention"),
    "kda": ("fla", "flash-linear-attention"),
    "mamba_": ("mamba_ssm", "mamba-ssm"),
}
"""By a part of the names of functions that transformers takes from another package if it is there: that package as
it is imported and as it is installed."""


def missing_kernels(modules: list[nn.Module]) -> list[str]:
    """The packages whose kernels these modules would use and that are not installed, as one would install them."""
    functions = {name for module in modules for name in vars(sys.modules[type(module).__module__])}
    wanted = {package for part, package in KERNELS.items() if any(part in name for name in functions)}
    return sorted({install for name, install in wanted if importlib.util.find_spec(name) is None})


class HostReads(TorchDispatchMode):
    """Notes the first operation that has to know on the host what is on the device: no CUDA graph can have one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masked = name in ("index", "index_put", "index_put_") and any(
            isinstance(one, Tensor) and one.dtype in (torch.bool, torch.uint8) for one in args[1]
        )
        if not self.first and (masked or name in HOST_READS):
            self.first = name.strip("_")
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True, slots=True)
class Trial:
    """What shows when a module is run by itself, in float32 and on inputs of its own."""

    takes_chunks: bool
    """It goes on from its state when it is given several tokens; some scans begin from nothing."""
    host_read: str
    """The operation of a step with one token that asks the host; empty: there is none."""


def trial_of(one: StatefulModule, layout: StateLayout) -> Trial:
    module = copy.deepcopy(one.module).float()
    device = next(module.parameters()).device
    if device.type == "meta":
        return Trial(takes_chunks=True, host_read="")
    generator = torch.Generator().manual_seed(0)

    def drawn(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(drawn(one) for one in value)
        if not isinstance(value, Tensor) or value.shape[:2] != (1, 1) or not value.is_floating_point():
            return value
        return torch.randn(1, CHECKED_TOKENS, *value.shape[2:], generator=generator).to(device)

    given, named = drawn(one.given), {name: drawn(value) for name, value in one.named.items()}
    rows = torch.zeros(1, dtype=torch.int64, device=device)
    # A state that is rounded between two chunks, and not within one, would look like one that is forgotten.
    exact = StateLayout(tuple((key, shape, torch.float32) for key, shape, _ in layout.shapes))

    def run(*lengths: int) -> Tensor:
        states = RowStates(StateSlots(exact, 1, device), rows)
        outputs, start = [], 0
        for length in lengths:
            tokens = slice(start, start := start + length)
            some, others = one.with_cache(
                tuple(some_of(value, tokens) for value in given),
                {name: some_of(value, tokens) for name, value in named.items()},
                states,
            )
            found = module(*some, **others)
            outputs.append(found[0] if isinstance(found, tuple) else found)
        return torch.cat(outputs, 1)

    with torch.inference_mode():
        whole, parted = run(CHECKED_TOKENS), run(CHECKED_TOKENS // 2, CHECKED_TOKENS // 2)
        with HostReads() as reads:
            run(1, 1)
    alike = float((parted - whole).norm()) <= CHUNK_TOLERANCE * float(whole.norm())
    return Trial(alike, reads.first)


def some_of(value: Any, tokens: slice) -> Any:
    """Some tokens of what a module is given, where it has them."""
    if isinstance(value, tuple):
        return tuple(some_of(one, tokens) for one in value)
    whole = isinstance(value, Tensor) and value.shape[:2] == (1, CHECKED_TOKENS)
    return value[:, tokens] if whole else value


def record_states(
    transformer: PreTrainedModel, options: dict[str, Any]
) -> tuple[StateLayout, list[StatefulModule]]:
    """What a model keeps of a sequence beside keys and values, and the modules that do.

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
