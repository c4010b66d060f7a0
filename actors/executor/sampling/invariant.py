"""Batch-invariant sampling: no bit of it depends on what else is sampled in the step.

Torch adds the numbers of a row in an order that depends on how many rows there are, and on a CPU it divides large
tensors among threads in the middle of rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..step.sampling_kind import SamplingKind
from .distribution import truncated_logits
from .sampler import Sampler, sample_by_kernels


def invariant_sampler(slots: int, vocab_size: int, device: torch.device) -> Sampler:
    kind = OneByOneSampler if device.type == "cpu" else SameKernelsSampler
    return kind(slots, vocab_size, device)


class OneByOneSampler(Sampler):
    """Rows are drawn for one after the other."""

    def draw(
        self, logits: Tensor, position: Tensor, asked: Callable[[str], Tensor], kind: SamplingKind
    ) -> Tensor:
        draw, found = super().draw, []
        for row in range(len(logits)):
            one = slice(row, row + 1)

            def asked_by_one(name: str, one: slice = one) -> Tensor:
                return asked(name)[one]

            found.append(draw(logits[one], position[one], asked_by_one, kind))
        return torch.cat(found)

    def totals(self, logits: Tensor) -> Tensor:
        totals = super().totals
        # As copies, whose memory is aligned alike: where a row begins in the middle of a vector, it is added otherwise.
        return torch.cat([totals(row.clone()) for row in logits.split(1)])


class SameKernelsSampler(OneByOneSampler):
    """On a GPU the same kernels draw for all rows, whatever any of them asks for."""

    def draw(
        self, logits: Tensor, position: Tensor, asked: Callable[[str], Tensor], kind: SamplingKind
    ) -> Tensor:
        if kind.truncated:
            logits = truncated_logits(
                logits,
                asked("temperature"),
                asked("top_k").long(),
                asked("top_p"),
                asked("min_p"),
                candidates=kind.candidates,
                nucleus=kind.nucleus,
            )
        return sample_by_kernels(logits, position, asked, greedy=False)
