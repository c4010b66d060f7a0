"""A quantized weight of any format, and the numbers that it stands for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .....protocol.errors import ModelNotSupported


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """``values`` less ``zeros``, times ``scales``; of ``block`` rows and columns that share them."""

    values: Tensor
    """[N, K] float8_e4m3fn, int8 or uint8."""
    scales: Tensor
    """[ceil(N / rows), ceil(K / columns)] of any floating dtype."""
    block: tuple[int, int]
    zeros: Tensor | None = None
    """Integers, in the shape of ``scales``; None: all are zero."""
    groups: Tensor | None = None
    """int [K]: the column of ``scales`` for each column; None: they follow one another, as ``block`` says."""

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """[N, K]: computed in float32 and rounded to ``dtype`` once."""
        numbers = self.values.float()
        if self.zeros is not None:
            numbers = numbers - self.spread(self.zeros)
        return (numbers * self.spread(self.scales)).to(dtype)

    def spread(self, each: Tensor) -> Tensor:
        """Values, such as scales, repeated for each number of the weight: float32, in a shape that broadcasts to [N,
        K]."""
        (rows, columns), (height, width) = self.block, self.values.shape
        each = each.float()
        if self.groups is not None:
            each = each[:, self.groups]
        elif columns < width:
            each = each.repeat_interleave(columns, 1)[:, :width]
        return each.repeat_interleave(rows, 0)[:height] if 1 < rows < height else each


def scaled_weight(
    name: str, values: Tensor, scales: Tensor, block: tuple[int, int] | None, zeros: Tensor | None = None
) -> QuantizedWeight:
    """The weight of this name. By their shape, scales are for all of it, for rows, for parts of rows, or for blocks."""
    if not scales.is_floating_point():
        raise ModelNotSupported(
            f"the scales of {name} are stored as {scales.dtype}: exponents, or numbers that have scales themselves,"
            " which is not read"
        )
    if zeros is not None and zeros.is_floating_point():
        raise ModelNotSupported(
            f"the zero points of {name} are stored as {zeros.dtype}; whole numbers are read"
        )
    height, width = values.shape
    if scales.numel() == 1:
        shape, block = (1, 1), (height, width)
    elif block is not None and scales.shape == tuple(
        -(-size // own) for size, own in zip(values.shape, block, strict=True)
    ):
        shape = tuple(scales.shape)
    elif scales.dim() in (1, 2) and len(scales) == height and width % (scales.numel() // height) == 0:
        shape = (height, scales.numel() // height)
        block = (1, width // shape[1])
    else:
        raise ModelNotSupported(
            f"the scales of {name} have the shape {list(scales.shape)}, which does not fit its {height} x {width}"
            " numbers"
        )
    if zeros is not None and zeros.numel() != scales.numel():
        raise ModelNotSupported(f"{name} has {scales.numel()} scales and {zeros.numel()} zero points")
    values = values.contiguous()  # products of a transposed weight are rounded otherwise
    return QuantizedWeight(
        values, scales.reshape(shape), block, None if zeros is None else zeros.reshape(shape)
    )
