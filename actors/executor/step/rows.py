"""A step laid out: its rows, before they are packed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .sampling_kind import SamplingKind


@dataclass(slots=True)
class Chunk:
    """The part of a prompt that runs in a step."""

    slot: int
    tokens: np.ndarray
    """int32: what runs."""
    first: int
    """The index of its first token among the tokens of the step."""
    end: int
    """Position after its last token."""
    samples: bool
    """Nothing is known beyond it."""
    reported: np.ndarray
    """int32: the prompt's tokens after the first of ``tokens``, those whose logprobs are reported."""


@dataclass(slots=True)
class Rows:
    """A step laid out: which rows run, and which of them sample."""

    decode: np.ndarray
    """int64: slots of the rows that decode, rising. Their tokens come first."""
    chunks: list[Chunk]
    samples: np.ndarray
    """int64: slots of the rows that sample, rising."""
    sample_tokens: np.ndarray
    """int64: the token of each of them, among those of the step."""
    sample_slots: np.ndarray
    """int32 [seq_slots]: ``samples``, then the null slot."""
    masked: np.ndarray
    """int64: which of ``samples`` have a mask."""
    kind: SamplingKind

    @property
    def tokens(self) -> tuple[int, ...]:
        """The number of tokens of each row."""
        return (1,) * len(self.decode) + tuple(len(chunk.tokens) for chunk in self.chunks)
