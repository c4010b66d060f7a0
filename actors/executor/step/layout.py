"""The host's description of one step: its layout in memory, the kind of its sampling, and further facts.

The layout has sizes and nothing else, so that equal layouts are equal objects, and a CUDA graph is found by the
sizes that it depends on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from .fields import GRAPH_INPUTS, INPUTS, Field


@dataclass(frozen=True)
class ForwardKey:
    """The sizes that a graph of the forward pass depends on."""

    decode_only: bool
    rows: int
    tokens: int
    logits: int


@dataclass(frozen=True)
class StepLayout:
    """The sizes of a step, padding included, and from them the places of its packed inputs."""

    seq_slots: int
    """Sequence slots, the null slot not among them."""
    decode_only: bool
    """Every row has one token, which the device knows, and samples: rows, tokens and logits are the same."""
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
    sample_logits: int = 0
    """The index of the first of their logits."""

    # A step whose rows all decode says everything with ``sample_slots``.
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
    def places(self) -> dict[str, tuple[slice, Field]]:
        """The slice of each field of the inputs, in units of int32."""
        places: dict[str, tuple[slice, Field]] = {}
        start = 0
        for field in INPUTS:
            stop = start + field.width * getattr(self, field.count)
            places[field.name] = slice(start, stop), field
            start = stop
        return places

    @cached_property
    def input_size(self) -> int:
        """int32 of the packed inputs."""
        return self.places[INPUTS[-1].name][0].stop

    @cached_property
    def graph_input_size(self) -> int:
        """int32 of the part of them that graphs read."""
        return self.places[GRAPH_INPUTS[-1].name][0].stop

    @cached_property
    def forward_key(self) -> ForwardKey:
        return ForwardKey(self.decode_only, self.rows, self.tokens, self.logits)

    def view(self, inputs: Any, name: str) -> Any:
        """The field ``name`` of packed ``inputs``.

        Of a numpy array: [n], for records of their dtype. Of a tensor: int32 [n], or [n, width] for records.
        """
        place, field = self.places[name]
        part = inputs[place]
        if field.width == 1:
            return part
        return part.view(field.dtype) if isinstance(part, np.ndarray) else part.view(-1, field.width)


@lru_cache(maxsize=4096)
def layout_of(**sizes: Any) -> StepLayout:
    """The layout of these sizes, one object for all steps that have them: its places are found once."""
    return StepLayout(**sizes)


@dataclass(frozen=True)
class SamplingKind:
    """The features of sampling that the rows of a step need, taken together."""

    greedy: bool = True
    """No sampling row has a temperature."""
    truncated: bool = False
    """Some sampling row has top-k, top-p or min-p."""
    candidates: int = 0
    """Most likely tokens that hold the cut of every row that has top-k; 0: no row has it."""
    nucleus: bool = False
    """Some sampling row has top-p and no top-k."""
    min_tokens: bool = False
    """Some sampling row may not stop yet."""
    penalties: bool = False
    """Some sampling row has a penalty."""
    biased: bool = False
    """Some sampling row has a logit bias."""
    logprobs: int = 0
    """Logprobs of each sampling row: 0, 1 for the sampled token's, or 1 + MAX_LOGPROBS."""


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
    def places(self) -> dict[str, slice]:
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
        """int32 of the outputs."""
        return self.places["prompt_logprobs"].stop

    def view(self, outputs: Any, name: str) -> Any:
        """The part ``name`` of ``outputs``, flat."""
        return outputs[self.places[name]]


@lru_cache(maxsize=4096)
def result_layout(samples: int, logprobs: int, prompt_logprobs: int, prompt_columns: int) -> ResultLayout:
    return ResultLayout(samples, logprobs, prompt_logprobs, prompt_columns)


def consecutive(sizes: Iterable[tuple[str, int]]) -> dict[str, slice]:
    """Places of these sizes, one after another."""
    places: dict[str, slice] = {}
    start = 0
    for name, size in sizes:
        places[name] = slice(start, start + size)
        start += size
    return places


@dataclass(frozen=True, slots=True)
class History:
    """Tokens that a joining sequence with a penalty has in cached blocks: its first ``length`` ones."""

    slot: int
    length: int


@dataclass(frozen=True)
class Step:
    """One step as the host describes it to the device."""

    layout: StepLayout
    kind: SamplingKind
    samples: int
    """Rows that sample, without padding."""
    max_kv_len: int
    """Upper bound of the tokens that any row with a single token attends to."""
    penalised_joins: tuple[int, ...] = ()
    """Slots of joining sequences with a penalty: what was counted for the holder before is forgotten."""
    histories: tuple[History, ...] = ()
    masked: tuple[tuple[int, int], ...] = ()
    """(sampling row, slot) of each row that has a mask."""
    mask_words: int = 0
    """int32 of one mask, a bit for each token of the vocabulary."""
    prompt_columns: int = 0
    """As ``SamplingKind.logprobs``, of each token of a prompt whose logprobs are reported."""
    row_tokens: tuple[int, ...] = ()
    """Tokens of each row: of a step with prompts of a model that keeps states, which is run in such parts."""

    @cached_property
    def results(self) -> ResultLayout:
        layout = self.layout
        return result_layout(layout.samples, self.kind.logprobs, layout.prompt_logprobs, self.prompt_columns)

    @property
    def mask_size(self) -> int:
        """int32 of all masks."""
        return len(self.masked) * self.mask_words

    def unpack(self, outputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """The parts of ``results``, flat and without padding."""
        view, count = self.results.view, self.samples * self.kind.logprobs
        return (
            outputs[: self.samples],
            view(outputs, "logprob_tokens")[:count],
            view(outputs, "logprobs")[:count],
            view(outputs, "prompt_logprob_tokens"),
            view(outputs, "prompt_logprobs"),
        )
