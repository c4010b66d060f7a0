"""Modules of transformers that keep a state, run over the state slots.

Such a module knows a batch of sequences of one length. A step is rows of one token and chunks of prompts, so it is
given to the module in segments: the rows that decode together as a batch, then each chunk by itself. Whatever else
there is in a model sees the step as a whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...cache.paged_batch import PagedBatch
from ...cache.state import StateCache, StateLayout
from . import package_kernels
from .examine import ModuleTraits, traits_of
from .module import RowStates, StatefulModule
from .scan import going_on


class StatefulModules:
    """The modules of a model that keep a state, made to run a step in segments."""

    def __init__(self, modules: list[StatefulModule], layout: StateLayout) -> None:
        self.segments: list[tuple[slice, Tensor, bool]] = []
        """The segments of the step under way: tokens, the slots of their rows, and whether each row has one token."""
        self.cache: StateCache | None = None
        """None: no step is under way, and the modules are as transformers has them."""
        self.tokens = 0
        self.layout = layout
        self.modules = [one.module for one in modules]
        traits: dict[type[nn.Module], ModuleTraits] = {}
        for one in modules:
            kind = type(one.module)
            if kind not in traits:
                traits[kind] = traits_of(one, layout)
            one.module.forward = self.in_segments(one, traits[kind].takes_chunks)
        self.token_by_token = not all(found.takes_chunks for found in traits.values())
        """Some of them forget their state when they are given several tokens, which so have to come one by one."""
        self.host_read = next((found.host_read for found in traits.values() if found.host_read), "")
        """As in `ModuleTraits`."""

    def undo(self) -> None:
        """Leave the modules as transformers has them."""
        for module in self.modules:
            del module.forward

    def notes(self) -> list[str]:
        """Remarks on these modules for the log, one sentence each."""
        lines = [
            f"recurrent layers: {self.layout.bytes_per_slot:,} bytes of state for each sequence; prompts that begin"
            " the same share nothing, since a state is in no block"
        ]
        if self.token_by_token:
            lines.append(
                "prompts are computed token by token in these layers: the scan that transformers has for them cannot"
                " go on from a state"
            )
        return lines + package_kernels.notes(self.modules)

    def begin(self, batch: PagedBatch) -> None:
        assert batch.states is not None
        self.cache, self.tokens = batch.states, len(batch.write_index)
        self.segments = segments_of(batch)

    def end(self) -> None:
        self.cache = None

    def in_segments(self, one: StatefulModule, takes_chunks: bool) -> Callable[..., Any]:
        whole, continued = one.module.forward, going_on(one.module)

        def forward(*given: Any, **named: Any) -> Any:
            if self.cache is None:
                return whole(*given, **named)
            outputs: list[Any] = []
            for tokens, rows, single in self.segments:
                states = RowStates(self.cache, rows)
                pieces = (
                    [tokens]
                    if single or takes_chunks
                    else [slice(token, token + 1) for token in range(tokens.start, tokens.stop)]
                )
                for piece in pieces:
                    some, others = one.with_cache(
                        tuple(self.cut(value, piece, single) for value in given),
                        {name: self.cut(value, piece, single) for name, value in named.items()},
                        states,
                    )
                    found = continued(*some, **others)
                    outputs.append(in_line(found) if single else found)
                states.put_back()
            return self.joined(outputs)

        return forward

    def cut(self, value: Any, tokens: slice, single: bool) -> Any:
        """Some tokens of what a module is given, [1, T, ...]: [N, 1, ...] if ``single``, otherwise [1, N, ...]."""
        if isinstance(value, tuple):
            return tuple(self.cut(one, tokens, single) for one in value)
        if not isinstance(value, Tensor) or value.shape[:2] != (1, self.tokens):
            return value
        return value[:, tokens].transpose(0, 1) if single else value[:, tokens]

    def joined(self, outputs: list[Any]) -> Any:
        """The outputs of all segments, one after the other, and zeros for tokens that belong to no row."""
        first = outputs[0]
        if isinstance(first, tuple):
            return tuple(self.joined(list(each)) for each in zip(*outputs, strict=True))
        if not isinstance(first, Tensor):
            return first
        missing = self.tokens - self.segments[-1][0].stop
        if missing:
            outputs.append(first.new_zeros(1, missing, *first.shape[2:]))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)


def in_line(value: Any) -> Any:
    """[N, 1, ...], a row each, as [1, N, ...]."""
    if isinstance(value, tuple):
        return tuple(in_line(one) for one in value)
    return value.transpose(0, 1) if isinstance(value, Tensor) else value


def segments_of(batch: PagedBatch) -> list[tuple[slice, Tensor, bool]]:
    """As ``StatefulModules.segments``; what a step has of rows with prompts is known by ``batch.row_tokens``."""
    if batch.decode_only:
        return [(slice(0, len(batch.rows)), batch.rows, True)]
    counts = batch.row_tokens
    decodes = next((row for row, count in enumerate(counts) if count > 1), len(counts))
    segments = [(slice(0, decodes), batch.rows[:decodes], True)] if decodes else []
    start = decodes
    for row, count in enumerate(counts[decodes:], decodes):
        segments.append((slice(start, start + count), batch.rows[row : row + 1], False))
        start += count
    return segments
