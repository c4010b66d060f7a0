"""The rows of a step, before they are packed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .sampling_kind import SamplingKind


@dataclass(slots=True)
class Chunk:
    """The part of a prompt that runs in a step."""

    slot: int
    tokens: np.ndarray
    """int32: the tokens that run."""
    first: int
    """The index of its first token among the tokens of the step."""
    end: int
    """The position after its last token."""
    is_last: bool
    """Whether it ends with the last known token, so that the next one is sampled."""
    reported: np.ndarray
    """int32: the prompt's tokens after the first of ``tokens``, those whose logprobs are reported."""


@dataclass(slots=True)
class Rows:
    """Which rows run in a step, and which of them sample."""

    decode: np.ndarray
    """int64: the slots of the rows that decode, in ascending order. Their tokens come first in the step."""
    chunks: list[Chunk]
    sampling: np.ndarray
    """int64: the slots of the rows that sample, in ascending order."""
    sample_tokens: np.ndarray
    """int64: for each of these rows, the index of its last token among the tokens of the step."""
    sample_slots: np.ndarray
    """int32 [seq_slots]: ``sampling``, padded with the null slot."""
    masked: np.ndarray
    """int64: the indices in ``sampling`` of the rows that have a mask."""
    kind: SamplingKind

    @property
    def tokens(self) -> tuple[int, ...]:
        """The number of tokens of each row."""
        return (1,) * len(self.decode) + tuple(len(chunk.tokens) for chunk in self.chunks)
