"""Rows that are chosen for one after the other, so that no bit of a weight hangs on how many rows a step has.

Torch adds the numbers of a row in an order that depends on how many rows there are, and on a CPU it divides large
tensors among threads in the middle of rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..step.layout import SamplingKind
from .sampler import Sampler


class OneByOneSampler(Sampler):
    """As `Sampler`, and slower."""

    def sample(
        self,
        logits: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        min_p: Tensor,
        draws: Tensor,
        kind: SamplingKind,
    ) -> Tensor:
        tensors = (logits, temperature, top_k, top_p, min_p, draws)
        sample, found = super().sample, []
        for row in zip(*(tensor.split(1) for tensor in tensors), strict=True):
            found.append(sample(*row, kind))  # type: ignore[call-arg]
        return torch.cat(found)

    def logprobs(self, logits: Tensor, tokens: Tensor, columns: int) -> tuple[Tensor, Tensor]:
        logprobs, rows = super().logprobs, zip(logits.split(1), tokens.split(1), strict=True)
        found = [logprobs(logit, token, columns) for logit, token in rows]
        return torch.cat([ids for ids, _ in found]), torch.cat([values for _, values in found])
