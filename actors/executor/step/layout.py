"""The layouts of a step: where each field lies in its packed inputs, and where each result lies in its outputs.

A layout consists of sizes alone. So layouts with the same sizes are equal, and a CUDA graph is found by the sizes that
it depends on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from .fields import GRAPH_INPUTS, INPUTS, Field
from .graph_keys import ForwardKey


@dataclass(frozen=True)
class StepLayout:
    """The sizes of a step, padding included, and from them the slice of each field in its packed inputs."""

    seq_slots: int
    """Sequence slots, the null slot not among them."""
    decode_only: bool
    """Every row has one token, which the device knows, and samples; so ``rows``, ``tokens`` and ``logits`` are
    equal."""
    rows: int
    tokens: int
    logits: int
    """Rows of logits: those of the rows that sample, padded, then those of the tokens of prompts."""
    samples: int
    """Rows that sample."""
    joins: int = 0
    biases: int = 0
    blocks: int = 0
    copies: int = 0
    counts: int = 0
    masked: int = 0
    """Sampling rows that have a mask."""
    prompt_logprobs: int = 0
    """Tokens of prompts whose logprobs are reported."""
    prompt_logits_start: int = 0
    """The row of ``logits`` at which those of the tokens of prompts begin."""

    # A step whose rows all decode needs no field but ``sample_slots``: the counts of the others are 0.
    @cached_property
    def mixed_rows(self) -> int:
        return 0 if self.decode_only else self.rows

    @cached_property
    def row_bounds(self) -> int:
        return 0 if self.decode_only else self.rows + 1

    @cached_property
    def mixed_tokens(self) -> int:
        return 0 if self.decode_only else self.tokens

    @cached_property
    def mixed_logits(self) -> int:
        return 0 if self.decode_only else self.logits

    @cached_property
    def slices(self) -> dict[str, tuple[slice, Field]]:
        """The slice of each field, in units of int32, and the field."""
        slices: dict[str, tuple[slice, Field]] = {}
        start = 0
        for field in INPUTS:
            stop = start + field.width * getattr(self, field.count)
            slices[field.name] = slice(start, stop), field
            start = stop
        return slices

    @cached_property
    def input_size(self) -> int:
        """The number of int32 of the packed inputs."""
        return self.slices[INPUTS[-1].name][0].stop

    @cached_property
    def graph_input_size(self) -> int:
        """The number of int32 at their beginning that graphs read."""
        return self.slices[GRAPH_INPUTS[-1].name][0].stop

    @cached_property
    def forward_key(self) -> ForwardKey:
        return ForwardKey(self.decode_only, self.rows, self.tokens, self.logits)

    def view(self, inputs: Any, name: str) -> Any:
        """A view of the field ``name`` of packed ``inputs``.

        For a numpy array it is [n], of the field's dtype. For a tensor it is int32: [n], or [n, width] if the field
        consists of records.
        """
        where, field = self.slices[name]
        part = inputs[where]
        if field.width == 1:
            return part
        return part.view(field.dtype) if isinstance(part, np.ndarray) else part.view(-1, field.width)


@lru_cache(maxsize=4096)
def layout_of(**sizes: Any) -> StepLayout:
    """The layout of these sizes; one object for all steps that have them, so that its slices are computed once."""
    return StepLayout(**sizes)


@dataclass(frozen=True)
class ResultLayout:
    """The position of each part of a step's outputs: tokens [samples], then [samples, logprobs] of int32 and of
    float32.

    The first column of the last two is the sampled token, the others are the most likely ones. The same follows
    for the prompts: [prompt_logprobs, prompt_columns].
    """

    samples: int
    logprobs: int
    prompt_logprobs: int
    prompt_columns: int

    @cached_property
    def slices(self) -> dict[str, slice]:
        count, prompt = self.samples * self.logprobs, self.prompt_logprobs * self.prompt_columns
        return consecutive(
            (
                ("tokens", self.samples),
                ("logprob_tokens", count),
                ("logprobs", count),
                ("prompt_logprob_tokens", prompt),
                ("prompt_logprobs", prompt),
            )
        )

    @cached_property
    def size(self) -> int:
        """The number of int32 of the outputs."""
        return self.slices["prompt_logprobs"].stop

    def view(self, outputs: Any, name: str) -> Any:
        """The part ``name`` of ``outputs``, flat."""
        return outputs[self.slices[name]]


@lru_cache(maxsize=4096)
def result_layout(samples: int, logprobs: int, prompt_logprobs: int, prompt_columns: int) -> ResultLayout:
    return ResultLayout(samples, logprobs, prompt_logprobs, prompt_columns)


def consecutive(sizes: Iterable[tuple[str, int]]) -> dict[str, slice]:
    """Slices of these sizes, one after another, by name."""
    slices: dict[str, slice] = {}
    start = 0
    for name, size in sizes:
        slices[name] = slice(start, start + size)
        start += size
    return slices
