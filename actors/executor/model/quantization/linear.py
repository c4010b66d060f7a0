"""Linear layers that keep their weights quantized."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .....protocol.errors import InvalidRequest, ModelNotSupported
from ...devices.float8 import FP8, FP8_MAX
from .products import MAX_FEW_ROWS, multiplied_by, product
from .stacked import stacked
from .weight import QuantizedWeight

INT8_MAX = 127.0

DTYPES = {"fp8": FP8, "int8": torch.int8}
"""What weights can be quantized to when they are loaded."""

PROJECTIONS = frozenset(
    f"{name}_proj" for name in ("q", "k", "v", "qkv", "o", "gate", "up", "gate_up", "down")
)
"""The layers that are quantized at load. Those of recurrent layers, which read their weights themselves, are none."""

TITLES = {"fp8": "FP8", "int8": "int8"}
NAMES = {"cpu": "CPU", "cuda": "GPU without products of FP8"}


class QuantizedLinear(nn.Linear):
    """A layer whose ``weight`` [N, K] is float8_e4m3fn or int8, with float32 ``scales``, each for a block of it."""

    def __init__(self, weight: Tensor, scales: Tensor, block: tuple[int, int], bias: Tensor | None) -> None:
        with torch.device("meta"):
            super().__init__(weight.shape[1], weight.shape[0], bias=False)
        self.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)  # type: ignore[assignment]
        self.scales = nn.Parameter(scales.contiguous(), requires_grad=False)
        self.block = block

    def forward(self, input: Tensor) -> Tensor:
        return self.multiply(input)

    def multiply(self, input: Tensor) -> Tensor:
        """The products with this weight, and nothing that a rank does with those of others."""
        states = input.flatten(0, -2)
        found = product(states, self.weight, self.scales, self.block, self.bias)
        return found.unflatten(0, input.shape[:-1])


def layer_of(weight: QuantizedWeight, bias: Tensor | None) -> QuantizedLinear:
    """The layer of a weight in 8 bits: as it is stored, or of 4 bits less its zero points."""
    assert weight.groups is None
    if weight.zeros is not None:
        values = (weight.values - weight.spread(weight.zeros)).to(torch.int8)
        weight = QuantizedWeight(values, weight.scales, weight.block)
    if (
        weight.scales.numel() == 1
    ):  # for all of it: a scale for each row can be joined with those of other layers
        height, width = weight.values.shape
        scales = weight.scales.float().repeat(height, 1)
        return QuantizedLinear(weight.values, scales, (1, width), bias)
    return QuantizedLinear(weight.values, weight.scales.float(), weight.block, bias)


def quantize(weight: Tensor, dtype: torch.dtype) -> QuantizedWeight:
    """The nearest numbers of ``dtype`` to a weight [N, K], with a scale for each row."""
    most = FP8_MAX if dtype == FP8 else INT8_MAX
    numbers = weight.float()
    scales = numbers.abs().amax(1, keepdim=True).clamp_(min=1e-30) / most
    numbers = (numbers / scales).clamp_(-most, most)
    values = (numbers if dtype.is_floating_point else numbers.round_()).to(dtype)
    return QuantizedWeight(values, scales, (1, weight.shape[1]))


def joined(layers: list[QuantizedLinear]) -> QuantizedLinear:
    """One layer that computes what all of them do, one after the other; their blocks are of one size."""
    rows, columns = layers[0].block
    assert all(layer.block == (rows, columns) for layer in layers)
    scales: list[Tensor] = [layer.scales for layer in layers]
    if any(layer.out_features % rows for layer in layers[:-1]):
        scales = [layer.scales.repeat_interleave(rows, 0)[: layer.out_features] for layer in layers]
        rows = 1
    biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
    weight = stacked([layer.weight for layer in layers])
    return QuantizedLinear(weight, stacked(scales), (rows, columns), stacked(biases) if biases else None)


def alone(layer: nn.Linear, quantized: QuantizedLinear) -> QuantizedLinear:
    return quantized


def quantize_layers(
    transformer: nn.Module,
    kind: str,
    device: torch.device,
    in_place_of: Callable[[nn.Linear, QuantizedLinear], QuantizedLinear] = alone,
) -> str:
    """Quantize the projections of a model in place, on the device; what one should know of that. ``in_place_of`` says
    what takes the place of a layer that was quantized.

    One at a time, so that a device needs room for the quantized model alone. The head and the embeddings stay as they
    are. On a device without products with such weights, a CPU for one, each is only rounded. InvalidRequest where there
    is nothing to quantize.
    """
    dtype = DTYPES[kind]
    names = [
        name
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in PROJECTIONS
    ]
    if not names:
        raise InvalidRequest(
            f"quantization={kind!r}: {type(transformer).__name__} has no projections that are known;"
            " leave out --quantization"
        )
    if dtype not in multiplied_by(device):
        for name in names:
            weight = transformer.get_parameter(f"{name}.weight")
            weight.data = quantize(weight, dtype).dequantized(weight.dtype)
        return (
            f"weights rounded to {TITLES[kind]} and kept as they were, which a {NAMES[device.type]} computes with: no"
            " memory or time is saved"
        )
    for name in names:
        layer: Any = transformer.get_submodule(name)
        bias = None if layer.bias is None else layer.bias.to(device)
        found = layer_of(quantize(layer.weight.to(device), dtype), bias)
        transformer.set_submodule(name, in_place_of(layer, found))
    return f"weights quantized to {TITLES[kind]} at load"


CHECKED_ROWS = (1, 8, MAX_FEW_ROWS + 8)
"""One number for each way that a product can take."""

TOLERANCE = 6e-2
"""The error allowed in a product, relative to its size: states in FP8 make it differ by half of that, wrong scales
by more."""


def check_products(transformer: nn.Module, dtype: torch.dtype) -> None:
    """Compare a product of each kind with that of the dequantized weight; ModelNotSupported if they differ.

    The logits that are compared at load are computed by the same products.
    """
    known: set[tuple[Any, ...]] = set()
    for name, layer in transformer.named_modules():
        kind = (
            (layer.weight.shape, layer.weight.dtype, layer.block)
            if isinstance(layer, QuantizedLinear)
            else ()
        )
        if not isinstance(layer, QuantizedLinear) or kind in known:
            continue
        known.add(kind)
        exact = QuantizedWeight(layer.weight, layer.scales, layer.block).dequantized(torch.float32)
        bias = None if layer.bias is None else layer.bias.float()
        for rows in CHECKED_ROWS:
            generator = torch.Generator().manual_seed(rows)
            states = torch.randn(rows, layer.in_features, generator=generator).to(exact.device, dtype)
            expected = F.linear(states.float(), exact, bias)
            error = float((layer.multiply(states).float() - expected).norm() / expected.norm())
            if not error <= TOLERANCE:
                raise ModelNotSupported(
                    f"products of {rows} rows with the quantized weight of {name} differ by {error:.2g} of their size"
                    " from those with what it stands for; leave out --quantization, or take a checkpoint in bfloat16"
                )
