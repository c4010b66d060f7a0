"""Rank 0 samples the tokens, and all ranks have them.

The logits of two ranks may differ in their last bits, so that two samplings would part their token tables for ever. One
small copy on the compute stream gives all the same, and the grammars and counts of the sampling stay on one rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..sampling.sampler import Sampler
from ..step.sampling_kind import SamplingKind

if TYPE_CHECKING:
    from .group import RankGroup


def sampler_of(group: RankGroup | None, slots: int, vocab_size: int, device: torch.device) -> Sampler:
    """The sampler of a rank; None: there is only one. The rest as in `Sampler`."""
    if group is None:
        return Sampler(slots, vocab_size, device)
    return FollowingSampler(group) if group.rank else LeadingSampler(group, slots, vocab_size, device)


class LeadingSampler(Sampler):
    """On rank 0: sends the others what it has sampled."""

    def __init__(self, group: RankGroup, slots: int, vocab_size: int, device: torch.device) -> None:
        super().__init__(slots, vocab_size, device)
        self.group = group

    def sample(
        self,
        logits: Tensor,
        slots: Tensor,
        requests: Tensor,
        position: Tensor,
        kind: SamplingKind,
        allowed: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        return self.group.broadcast(super().sample(logits, slots, requests, position, kind, allowed))


class FollowingSampler(Sampler):
    """On the others: keeps nothing and samples nothing."""

    def __init__(self, group: RankGroup) -> None:
        self.group = group

    def join(self, slots: Tensor, penalised: Sequence[int]) -> None:
        """Rank 0 keeps what it samples by."""

    def join_biases(self, biases: Tensor) -> None:
        """As ``join``."""

    def count_known(self, slots: Tensor, tokens: Tensor, in_prompt: Tensor) -> None:
        """As ``join``."""

    def count_sampled(self, slots: Tensor, tokens: Tensor) -> None:
        """As ``join``."""

    def sample(
        self,
        logits: Tensor,
        slots: Tensor,
        requests: Tensor,
        position: Tensor,
        kind: SamplingKind,
        allowed: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        return self.group.broadcast(torch.empty(len(slots), dtype=torch.int32, device=slots.device))
