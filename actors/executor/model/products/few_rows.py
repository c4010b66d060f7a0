"""The products of a decoding step, which has few rows: they take as long as their weights take to come from memory.

cuBLAS begins a product when the kernel before it has ended. For some µs, two hundred times a step, the memory has
nothing to do. Kernels of ours begin earlier, and read weights or ask for them before that end. With more rows the
arithmetic decides, and cuBLAS is ahead (`examples/forward_bench.py` has both).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .....protocol.errors import ModelNotSupported
from ...triton_tools.compilation import compile_ahead
from ..linear import GivenLinear
from .fixed_order import memory_of, product
from .one_row import product_of_row

MAX_ROWS = 64
"""With more rows cuBLAS is ahead."""

DTYPES = (torch.bfloat16, torch.float16)

MIN_MEMORY = 227 << 10
"""Bytes of shared memory that a program can have on an H100 or H200, on which this was measured."""

CHECKED_ROWS = (1, 2, 17, 33)
"""One number for each kernel and tile."""

TOLERANCE = 2e-2
"""Of a product, relative to its size: ten times what an H200 has shown in bfloat16."""


def linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As ``torch.nn.functional.linear``, for a weight that no kernel writes while steps run."""
    columns = weight.shape[1]
    rows = input.numel() // columns
    if not 0 < rows <= MAX_ROWS:
        return F.linear(input, weight, bias)
    flat = input.reshape(rows, columns).contiguous()
    found = product_of_row(flat[0], weight, bias) if rows == 1 else product(flat, weight, bias)
    return found.view(*input.shape[:-1], len(weight))


def fits(layer: nn.Linear) -> bool:
    """Whether the kernels are for a weight like this, and for its device."""
    weight = layer.weight
    return (
        weight.device.type == "cuda"
        and weight.dtype in DTYPES
        and weight.is_contiguous()
        and memory_of(weight.device) >= MIN_MEMORY
    )


def begin_products_early(transformer: nn.Module, *, checked: bool) -> None:
    """Replace the linear layers of a model in place, where they fit; ModelNotSupported if products differ.

    ``checked``: layers of these shapes have been compared before.
    """
    found: dict[tuple[object, ...], nn.Linear] = {}
    for module in list(transformer.modules()):
        for name, layer in list(module.named_children()):
            if type(layer) is nn.Linear and fits(layer):
                setattr(module, name, GivenLinear(layer.weight, layer.bias, linear))
            elif isinstance(layer, GivenLinear) and layer.product is F.linear and fits(layer):
                layer.product = linear
            else:
                continue
            found[layer.weight.shape, layer.bias is None] = layer
    if found and not checked:
        layers = list(found.values())
        with torch.inference_mode():
            compile_ahead(layers[0].weight.device, lambda: list(products(layers)))
            check(layers)


def products(layers: list[nn.Linear]) -> Iterator[tuple[nn.Linear, Tensor, Tensor]]:
    """Of each layer and each of `CHECKED_ROWS`, the states and what `linear` makes of them."""
    for layer in layers:
        for rows in CHECKED_ROWS:
            generator = torch.Generator().manual_seed(rows)
            states = torch.randn(rows, layer.weight.shape[1], generator=generator).to(layer.weight)
            yield layer, states, linear(states, layer.weight, layer.bias)


def check(layers: list[nn.Linear]) -> None:
    """Compare products with those of torch; ModelNotSupported if they differ."""
    for layer, states, found in products(layers):
        expected = F.linear(states, layer.weight, layer.bias).float()
        error = float((found.float() - expected).norm() / expected.norm())
        if not error <= TOLERANCE:
            raise ModelNotSupported(
                f"products of {len(states)} rows with a weight of {tuple(layer.weight.shape)} in {layer.weight.dtype}"
                f" differ by {error:.2g} of their size from torch's; take another --dtype"
            )
