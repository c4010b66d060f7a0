"""One step as the host describes it to the device: its layout, the kind of its sampling, and other facts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .layout import ResultLayout, StepLayout, result_layout
from .sampling_kind import SamplingKind


@dataclass(frozen=True, slots=True)
class History:
    """The tokens of a joining sequence with a penalty that are in shared blocks: its first ``length`` tokens."""

    slot: int
    length: int


@dataclass(frozen=True)
class Step:
    """One step as the host describes it to the device."""

    layout: StepLayout
    kind: SamplingKind
    num_samples: int
    """The number of rows that sample, without padding."""
    max_kv_len: int
    """An upper bound on the number of tokens that a row with a single token attends to."""
    penalised_joins: tuple[int, ...] = ()
    """The slots of joining sequences with a penalty, whose counts are to be reset."""
    histories: tuple[History, ...] = ()
    masked: tuple[tuple[int, int], ...] = ()
    """The pair (sampling row, slot) of each row that has a mask."""
    mask_words: int = 0
    """The number of int32 of one mask, which has a bit for each token of the vocabulary."""
    prompt_columns: int = 0
    """As ``SamplingKind.logprobs``, for each token of a prompt whose logprobs are reported."""
    row_tokens: tuple[int, ...] = ()
    """The number of tokens of each row. Only a step with prompts has it, and only if the model keeps states and so runs
    in segments."""

    @cached_property
    def results(self) -> ResultLayout:
        layout = self.layout
        return result_layout(layout.samples, self.kind.logprobs, layout.prompt_logprobs, self.prompt_columns)

    @property
    def mask_size(self) -> int:
        """The number of int32 of all masks together."""
        return len(self.masked) * self.mask_words

    def unpack(self, outputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """The parts of ``results``, flat and without padding."""
        view, count = self.results.view, self.num_samples * self.kind.logprobs
        return (
            outputs[: self.num_samples],
            view(outputs, "logprob_tokens")[:count],
            view(outputs, "logprobs")[:count],
            view(outputs, "prompt_logprob_tokens"),
            view(outputs, "prompt_logprobs"),
        )
