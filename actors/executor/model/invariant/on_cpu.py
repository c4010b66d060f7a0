"""Operations of a decoder for a CPU whose sums have the same order however many rows a step has.

Torch chooses kernels by shape, and divides large tensors among threads in the middle of rows, where the ends are
computed by other code than the rest. So a product always has the same number of rows, and the small operations are
given as few rows as one thread computes. What a row then goes through is the same in every step.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..fused.decoder import TransformersMlp
from ..fused.operations import Norm, TorchOperations
from ..linear import GivenLinear

BLOCK_ROWS = 8
"""Rows of a product, filled up where there are fewer. In bfloat16 eight take as long as one, which waits for memory."""

TRIED = 4
"""Random products in which the places of a block are compared."""

SERIAL = 1 << 14
"""Numbers that every operation of torch computes in one thread."""

WHOLE = 64
"""Numbers that fill vectors, and pairs of them, in any dtype: a row of a multiple has no rest with code of its own."""


class BlockedLinear(GivenLinear):
    """A linear layer that computes ``rows`` rows at a time."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.weight, layer.bias)
        self.rows = BLOCK_ROWS if every_place_is_alike(self.weight) else 1

    def forward(self, input: Tensor) -> Tensor:
        states = input.reshape(-1, self.in_features)
        out = states.new_empty(len(states), self.out_features)
        for first in range(0, len(states), self.rows):
            some = states[first : first + self.rows]
            block = some.new_zeros(
                self.rows, self.in_features
            )  # where memory is aligned as that of any other block
            block[: len(some)] = some
            out[first : first + self.rows] = F.linear(block, self.weight, self.bias)[: len(some)]
        return out.view(*input.shape[:-1], self.out_features)


def every_place_is_alike(weight: Tensor) -> bool:
    """Whether a product of `BLOCK_ROWS` rows adds in the same order for each of them; it is found by trying.

    Float16, which few processors multiply, is as fast row by row.
    """
    if weight.dtype == torch.float16:
        return False
    generator = torch.Generator().manual_seed(0)
    return all(
        bool((tried == tried[0]).all())
        for tried in (rounding_of_rows(weight.shape, weight.dtype, generator) for _ in range(TRIED))
    )


def rounding_of_rows(shape: torch.Size, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """A product [BLOCK_ROWS, outputs] of equal rows that is all rounding: what it should be is zero, or nearly."""
    outputs, columns = shape
    half = torch.randn(outputs, columns // 2, generator=generator)
    states = torch.randn(1, columns // 2, generator=generator)
    order = torch.randperm(columns, generator=generator)
    weight = F.pad(torch.cat((half, -half), 1), (0, columns % 2))[:, order].to(dtype)
    row = F.pad(torch.cat((states, states), 1), (0, columns % 2))[:, order].to(dtype)
    return F.linear(row.expand(BLOCK_ROWS, -1).contiguous(), weight)


class FewRowsOperations:
    """``Operations`` in plain torch, on as many rows at a time as one thread computes."""

    def __init__(self) -> None:
        self.operations = TorchOperations()

    def angles(self, positions: Tensor, frequencies: Tensor, scaling: float) -> Tensor:
        # Cosines are divided among threads sooner than anything else.
        return torch.cat([self.operations.angles(one, frequencies, scaling) for one in positions.split(1)])

    def add_norm(
        self, residual: Tensor, update: Tensor | None, after: Norm | None, scale: float, before: Norm | None
    ) -> Tensor:
        out = residual if before is None else torch.empty_like(residual)
        for rows in few_at_once(residual):
            more = None if update is None else update[rows]
            found = self.operations.add_norm(residual[rows], more, after, scale, before)
            if before is not None:
                out[rows] = found
        return out

    def norm(self, states: Tensor, norm: Norm) -> None:
        for rows in few_at_once(states):
            self.operations.norm(states[rows], norm)

    def rotate(
        self,
        states: Tensor,
        query_heads: int,
        key_heads: int,
        query_norm: Norm | None,
        key_norm: Norm | None,
        angles: Tensor,
    ) -> None:
        for rows in few_at_once(states):
            self.operations.rotate(states[rows], query_heads, key_heads, query_norm, key_norm, angles[rows])

    def gate(self, states: Tensor, activation: str) -> Tensor:
        # The halves of one row lie densely, those of several do not, and some activations have code for each.
        return torch.cat([self.operations.gate(one, activation) for one in states.split(1)])


def few_at_once(states: Tensor) -> Iterator[slice]:
    """The rows of ``states``, a few at a time."""
    width = states[0].numel()
    count = max(1, SERIAL // width) if width % WHOLE == 0 else 1
    return (slice(first, first + count) for first in range(0, len(states), count))


class TransformersMlpByToken(TransformersMlp):
    """A feed-forward module of transformers that is given one token at a time."""

    def forward(self, states: Tensor) -> Tensor:
        forward = super().forward
        return torch.cat([forward(one) for one in states.split(1)])
