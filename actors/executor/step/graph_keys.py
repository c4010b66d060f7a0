"""The keys of CUDA graphs: a graph of the forward pass is found by sizes, one of the sampling by its rows and kind."""

from __future__ import annotations

from dataclasses import dataclass

from .sampling_kind import SamplingKind


@dataclass(frozen=True)
class ForwardKey:
    """The sizes that a graph of the forward pass depends on."""

    decode_only: bool
    rows: int
    tokens: int
    logits: int


@dataclass(frozen=True)
class SamplingKey:
    """The properties of the sampling that select its graph."""

    samples: int
    kind: SamplingKind

    @property
    def rare(self) -> bool:
        """Whether some row asks for more than a temperature."""
        return self.kind != SamplingKind(greedy=self.kind.greedy)


def with_prompts(key: ForwardKey | SamplingKey) -> bool:
    """Whether the key is of a forward pass of a mixed step."""
    return isinstance(key, ForwardKey) and not key.decode_only
