"""Chooses the implementation of a product with a quantized weight, by rows, device and scales."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .weight import QuantizedWeight

MAX_FEW_ROWS = 64
"""Up to this number of rows a product takes as long as reading its weight, though its states become two terms."""

scaled_product: Any = torch._scaled_mm  # type: ignore[attr-defined]
"""torch's product of FP8 with FP8."""

STORED = (torch.float8_e4m3fn, torch.int8)
HALVES = (torch.bfloat16, torch.float16)
FP8_PRODUCTS = (8, 9)
"""The least compute capability of a GPU that multiplies FP8 with FP8."""

MULTIPLE = 16
"""What the sizes of a product of FP8 have to be multiples of."""


def multiplied_by(device: torch.device) -> tuple[torch.dtype, ...]:
    """The dtypes of 8 bits with which the device multiplies; weights of others are dequantized when they are loaded.

    The meta device stands for a GPU that has all of them.
    """
    if device.type == "cpu":
        return ()
    if device.type == "meta":
        return STORED
    return STORED if torch.cuda.get_device_capability(device) >= FP8_PRODUCTS else (torch.int8,)


def product(
    states: Tensor, weight: Tensor, scales: Tensor, block: tuple[int, int], bias: Tensor | None
) -> Tensor:
    """``states`` [rows, K] times the transposed weight [N, K] that ``weight`` and ``scales`` stand for, [rows, N].

    ``scales`` are float32 [ceil(N / block[0]), ceil(K / block[1])].
    """
    if not states.is_cuda or weight.dtype not in STORED:
        return F.linear(states, QuantizedWeight(weight, scales, block).dequantized(states.dtype), bias)
    from . import conversion, product_kernels  # triton comes with torch where there is a GPU

    rows, half = len(states), states.dtype in HALVES
    states = states.contiguous()
    if rows == 1:
        return product_kernels.one_row(states, weight, scales, block, bias)
    if rows <= MAX_FEW_ROWS and half:
        return product_kernels.few_rows(states, weight, scales, block, bias)
    if half and has_scaled_product(weight, scales):
        numbers, of_rows = conversion.quantized(states)
        found = scaled_product(
            numbers, weight.T, of_rows, scales.T, out_dtype=states.dtype, use_fast_accum=True
        )
        return found if bias is None else found.add_(bias)
    return F.linear(states, conversion.dequantized(weight, scales, block, states.dtype), bias)


def has_scaled_product(weight: Tensor, scales: Tensor) -> bool:
    """Whether torch has a product of FP8 for this weight: with one scale for each of its rows."""
    height, width = weight.shape
    return (
        weight.dtype == torch.float8_e4m3fn
        and scales.shape == (height, 1)
        and height % MULTIPLE == width % MULTIPLE == 0
    )
