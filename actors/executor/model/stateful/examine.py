"""Examines a stateful module by running it: does it accept chunks of tokens, and does it make the host wait?

Neither can be told from the code of transformers' modules, of which each family has its own.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ...cache.state import StateCache, StateLayout
from .module import RowStates, StatefulModule
from .scan import going_on

CHECKED_TOKENS = 8
"""Tokens of each input that a module is tried on."""

CHUNK_TOLERANCE = 1e-3
"""The error allowed in a module's output in float32, relative to its size. Other orders of sums give 1e-6, a state
forgotten 1e-1."""

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
class ModuleTraits:
    """Properties of a module that show only when it is run."""

    takes_chunks: bool
    """It goes on from its state when it is given several tokens, in float32; some scans begin from nothing."""
    host_read: str
    """The operation of a step with one token that asks the host, as the module is served; empty: there is none."""


def traits_of(one: StatefulModule, layout: StateLayout) -> ModuleTraits:
    if next(one.module.parameters()).device.type == "meta":
        return ModuleTraits(takes_chunks=True, host_read="")
    exact = copy.deepcopy(one.module).float()
    # A state that is rounded between two chunks, and not within one, would look like one that is forgotten.
    of_exact = StateLayout(tuple((key, shape, torch.float32) for key, shape, _ in layout.shapes))
    half = CHECKED_TOKENS // 2
    with torch.inference_mode():
        whole = outputs_of(one, exact, of_exact, (CHECKED_TOKENS,), torch.float32)
        parted = outputs_of(one, exact, of_exact, (half, CHECKED_TOKENS - half), torch.float32)
        with HostReads() as reads:
            outputs_of(one, one.module, layout, (1, 1))
    alike = float((parted - whole).norm()) <= CHUNK_TOLERANCE * float(whole.norm())
    return ModuleTraits(alike, reads.first)


def outputs_of(
    one: StatefulModule,
    module: nn.Module,
    layout: StateLayout,
    lengths: tuple[int, ...],
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The outputs of ``module`` [1, tokens, ...] for some inputs that it gets in chunks of these lengths.

    The inputs are in ``dtype``, or as the model gives them.
    """
    device = next(module.parameters()).device
    forward, generator = going_on(module), torch.Generator().manual_seed(0)

    def drawn(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(drawn(one) for one in value)
        if not isinstance(value, Tensor) or value.shape[:2] != (1, 1) or not value.is_floating_point():
            return value
        return torch.randn(1, CHECKED_TOKENS, *value.shape[2:], generator=generator).to(
            device, dtype or value.dtype
        )

    given, named = drawn(one.given), {name: drawn(value) for name, value in one.named.items()}
    rows = torch.zeros(1, dtype=torch.int64, device=device)
    states = RowStates(StateCache(layout, 1, device), rows)
    outputs, start = [], 0
    for length in lengths:
        tokens = slice(start, start := start + length)
        some, others = one.with_cache(
            tuple(some_of(value, tokens) for value in given),
            {name: some_of(value, tokens) for name, value in named.items()},
            states,
        )
        found = forward(*some, **others)
        outputs.append(found[0] if isinstance(found, tuple) else found)
    return torch.cat(outputs, 1)


def some_of(value: Any, tokens: slice) -> Any:
    """Some tokens of what a module is given, where it has them."""
    if isinstance(value, tuple):
        return tuple(some_of(one, tokens) for one in value)
    whole = isinstance(value, Tensor) and value.shape[:2] == (1, CHECKED_TOKENS)
    return value[:, tokens] if whole else value
