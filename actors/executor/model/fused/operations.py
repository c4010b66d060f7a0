"""The small operations of a decoder, between its matrix products, in plain torch.

``triton_operations.py`` has the same four as a single Triton kernel each. Sums and products are made in float32, and
what comes out is rounded to the dtype of the states once.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ranks.layers import Unsummed

ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda states: F.gelu(states, approximate="tanh"),
}
"""Activations of gated feed-forward layers, by the names that ``gate`` takes."""


class Norm(nn.Module):
    """Root mean square normalisation (Zhang and Sennrich, 2019) over the last dimension."""

    def __init__(self, weight: nn.Parameter, epsilon: float, offset: float) -> None:
        """``offset`` is added to ``weight``: Gemma stores by how much its weight differs from 1."""
        super().__init__()
        self.weight, self.epsilon, self.offset = weight, epsilon, offset


class Operations(Protocol):
    """The operations of a ``Decoder`` beside matrix products and attention."""

    def angles(self, positions: Tensor, frequencies: Tensor, scaling: float) -> Tensor:
        """Cosines, then sines, float32 [T, 2 F], times ``scaling``, for ``positions`` int64 [T] and float32 [F]."""
        ...

    def add_norm(
        self,
        residual: Tensor,
        update: Tensor | Unsummed | None,
        after: Norm | None,
        scale: float,
        before: Norm | None,
    ) -> Tensor:
        """Add ``scale`` times ``update`` [T, H], normalised by ``after`` if given, to ``residual`` [T, H] in place.

        Returns the residual normalised by ``before``, or itself if there is none.
        """
        ...

    def norm(self, states: Tensor, norm: Norm) -> None:
        """Normalise each row of ``states`` [T, N] in place; rows may lie apart."""
        ...

    def rotate(
        self,
        states: Tensor,
        query_heads: int,
        key_heads: int,
        query_norm: Norm | None,
        key_norm: Norm | None,
        angles: Tensor,
    ) -> None:
        """Rotate the first ``query_heads`` and the ``key_heads`` after them of ``states`` [T, heads, D] in place.

        A head is first normalised by ``query_norm`` or ``key_norm``. Then its first 2 F dimensions, those that
        have ``angles`` [T, 2 F], are rotated: i with i + F, as transformers' ``rotate_half`` does it (Su et al., 2021).
        """
        ...

    def gate(self, states: Tensor, activation: str) -> Tensor:
        """The activation of the first half of ``states`` [T, 2 N], times the second half: [T, N]."""
        ...


class TorchOperations:
    """On any device; on a CPU in as few passes as torch has."""

    def angles(self, positions: Tensor, frequencies: Tensor, scaling: float) -> Tensor:
        angles = positions[:, None].float() * frequencies
        found = torch.cat((angles.cos(), angles.sin()), -1)
        return found if scaling == 1.0 else found * scaling

    def add_norm(
        self,
        residual: Tensor,
        update: Tensor | Unsummed | None,
        after: Norm | None,
        scale: float,
        before: Norm | None,
    ) -> Tensor:
        if isinstance(update, Unsummed):
            update = update.summed()
        if update is not None:
            residual.add_(update if after is None else normalised(update, after), alpha=scale)
        return residual if before is None else normalised(residual, before)

    def norm(self, states: Tensor, norm: Norm) -> None:
        states.copy_(normalised(states, norm))

    def rotate(
        self,
        states: Tensor,
        query_heads: int,
        key_heads: int,
        query_norm: Norm | None,
        key_norm: Norm | None,
        angles: Tensor,
    ) -> None:
        heads = states[:, : query_heads + key_heads]
        if query_norm is not None and key_norm is not None:
            self.norm(heads[:, :query_heads], query_norm)
            self.norm(heads[:, query_heads:], key_norm)
        cosines, sines = angles[:, None].chunk(2, -1)
        count = cosines.shape[-1]
        first, second = heads[..., :count], heads[..., count : 2 * count]
        rotated = torch.addcmul(first * cosines, second, sines, value=-1.0)
        second.copy_(torch.addcmul(second * cosines, first, sines))
        first.copy_(rotated)

    def gate(self, states: Tensor, activation: str) -> Tensor:
        gate, up = states.chunk(2, -1)
        return ACTIVATIONS[activation](gate).mul_(up)


def normalised(states: Tensor, norm: Norm) -> Tensor:
    if norm.offset == 0.0 and norm.weight.dtype == states.dtype:
        return F.rms_norm(states, norm.weight.shape, norm.weight, norm.epsilon)
    weight = norm.weight.float() + norm.offset
    return F.rms_norm(states.float(), norm.weight.shape, weight, norm.epsilon).to(states.dtype)
