"""Muon: steps along the orthogonalized momentum of each matrix (Jordan et al., 2024)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def orthogonalized(matrices: Tensor) -> Tensor:
    """The nearest (semi-)orthogonal matrices, roughly, by five Newton-Schulz iterations: ``[n, rows, columns]``."""
    tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.bfloat16()
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * (square @ square)) @ x
    return x.mT if tall else x


class Muon:
    """For matrices inside of a network. Those of one shape go together, so that a step is a few launches.

    Steps are scaled to the size that AdamW's have, so that both take the same learning rate and weight decay
    (Liu et al., 2025).
    """

    def __init__(
        self, matrices: Iterable[Tensor], lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for matrix in matrices:
            by_shape.setdefault(matrix.shape, []).append(matrix)
        self.momentum = momentum
        self.param_groups: list[dict[str, Any]] = [
            {
                "params": same,
                "lr": lr,
                "weight_decay": weight_decay,
                "moved": torch.zeros_like(torch.stack(same)),
            }
            for same in by_shape.values()
        ]

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            matrices, moved = group["params"], group["moved"]
            gradients = torch.stack([matrix.grad for matrix in matrices])
            moved.lerp_(gradients, 1 - self.momentum)
            update = orthogonalized(gradients.lerp(moved, self.momentum)).float()
            size = 0.2 * max(update.shape[-2:]) ** 0.5
            for matrix, change in zip(matrices, update.unbind(), strict=True):
                matrix.mul_(1 - group["lr"] * group["weight_decay"]).add_(change, alpha=-group["lr"] * size)
