"""The formats of stored weights: the names of their tensors, and the meaning of their bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .....protocol.errors import ModelNotSupported
from .scheme import Scheme
from .weight import QuantizedWeight, scaled_weight

Parts = Mapping[str, Tensor]
"""The tensors of one weight, by the end of their names."""

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight columns each nibble of a word has, from the lowest."""

FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""The sixteen values of E2M1, by their four bits (OCP Microscaling Formats, version 1.0)."""

EXPONENT_BIAS = 127
"""The bias of E8M0, in which scales of MXFP4 are stored (the same standard)."""


@dataclass(frozen=True, slots=True)
class Format:
    """The format in which a weight is stored."""

    main: str
    """The end of the name of the tensor that has its numbers."""
    unpack: Callable[[str, Parts, Scheme], QuantizedWeight | Tensor]
    """The weight of a name from its tensors; ModelNotSupported where their shapes do not fit."""
    needed: tuple[tuple[str, ...], ...]
    """Ends of the names of its other tensors, one of each."""
    optional: tuple[str, ...] = ()
    stands_for: str = ".weight"
    """The end of its name in the model."""

    @property
    def parts(self) -> tuple[str, ...]:
        return (self.main, *(end for ends in self.needed for end in ends), *self.optional)


def unpack_scaled(name: str, parts: Parts, scheme: Scheme) -> QuantizedWeight:
    """A number of 8 bits for each."""
    scales = next(parts[end] for end in (".weight_scale", ".weight_scale_inv") if end in parts)
    values = parts[".weight"]
    if values.itemsize != 1:
        raise ModelNotSupported(
            f"{name} has scales and is stored as {values.dtype}; numbers of 8 bits are read"
        )
    return scaled_weight(name, values, scales, scheme.block, parts.get(".weight_zero_point"))


def unpack_packed(name: str, parts: Parts, scheme: Scheme) -> QuantizedWeight:
    """Columns packed into int32, the lowest bits first; all numbers are shifted to be positive."""
    height, width = (int(size) for size in parts[".weight_shape"])
    packed, scales = parts[".weight_packed"], parts[".weight_scale"]
    per_word = -(-width // packed.shape[1])
    if per_word not in (4, 8):
        raise ModelNotSupported(f"{name} packs {per_word} numbers into a word; 4 and 8 are read")
    bits = 32 // per_word
    middle = 1 << (bits - 1)
    values = (unpacked(packed, bits, 1)[:height, :width] - middle).to(torch.int8)
    zeros = parts.get(".weight_zero_point")
    if zeros is not None and zeros.dtype == torch.int32:
        zeros = unpacked(zeros, bits, 0)[:height] - middle
    found = scaled_weight(name, values, scales, None, zeros)
    order = parts.get(".weight_g_idx")
    if order is None or (order < 0).any():
        return found
    return in_order(name, found, order)


def in_order(name: str, weight: QuantizedWeight, order: Tensor) -> QuantizedWeight:
    """The weight whose columns belong to groups in an order of their own."""
    width, count = weight.values.shape[1], weight.scales.shape[1]
    if order.shape != (width,) or not bool(((order >= 0) & (order < count)).all()):
        raise ModelNotSupported(f"the groups of the columns of {name} are not {width} of 0 to {count - 1}")
    return dataclasses.replace(weight, groups=order.long())


def unpack_gptq(name: str, parts: Parts, scheme: Scheme) -> QuantizedWeight:
    """Transposed, with rows packed into int32; zero points are packed along the other dimension."""
    bits, scales = scheme.bits, parts[".scales"].T
    values = unpacked(parts[".qweight"], bits, 0).T.to(torch.uint8)
    zeros = unpacked(parts[".qzeros"], bits, 1).T
    zeros = (zeros + scheme.zero_offset) & ((1 << bits) - 1)
    found = scaled_weight(name, values, scales, None, zeros)
    order = parts.get(".g_idx")
    if order is None or torch.equal(order.long(), torch.arange(values.shape[1]) // found.block[1]):
        return found
    return in_order(name, found, order)


def unpack_awq(name: str, parts: Parts, scheme: Scheme) -> QuantizedWeight:
    """Transposed, with columns packed into int32 in an order of their own."""

    def ordered(packed: Tensor) -> Tensor:
        nibbles = unpacked(packed, 4, 1).unflatten(1, (-1, 8))
        found = torch.empty_like(nibbles)
        found[..., list(AWQ_ORDER)] = nibbles
        return found.flatten(1).T

    values = ordered(parts[".qweight"]).to(torch.uint8)
    return scaled_weight(name, values, parts[".scales"].T, None, ordered(parts[".qzeros"]))


def unpack_mxfp4(name: str, parts: Parts, scheme: Scheme) -> Tensor:
    """The weights of all experts, each transposed: two numbers of 4 bits in a byte, 32 of them to an exponent."""
    blocks, exponents = parts["_blocks"], parts["_scales"]
    if blocks.dtype != torch.uint8 or exponents.dtype != torch.uint8:
        raise ModelNotSupported(
            f"{name}: blocks are stored as {blocks.dtype} and scales as {exponents.dtype}; bytes are read"
        )
    if blocks.shape[:-1] != exponents.shape or blocks.shape[-1] != 16:
        raise ModelNotSupported(
            f"{name}: blocks {list(blocks.shape)} and scales {list(exponents.shape)} do not fit"
        )
    values = torch.tensor(FP4_VALUES)
    numbers = torch.stack((values[(blocks & 15).int()], values[(blocks >> 4).int()]), -1).flatten(-2)
    scaled = torch.ldexp(numbers, exponents[..., None].int() - EXPONENT_BIAS)
    return scaled.flatten(-2).transpose(-1, -2).contiguous()


def unpacked(words: Tensor, bits: int, dim: int) -> Tensor:
    """The numbers in int32 ``words``, one dimension of which grows by how many each has; the lowest bits come first."""
    if words.dtype != torch.int32:
        raise TypeError(f"numbers of {bits} bits are packed into {words.dtype}; torch.int32 is read")
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    shape = [1] * (words.dim() + 1)
    shape[dim + 1] = len(shifts)
    return ((words.unsqueeze(dim + 1) >> shifts.view(shape)) & ((1 << bits) - 1)).flatten(dim, dim + 1)


FORMATS = {
    "scaled": Format(
        ".weight", unpack_scaled, ((".weight_scale", ".weight_scale_inv"),), (".weight_zero_point",)
    ),
    "packed": Format(
        ".weight_packed",
        unpack_packed,
        ((".weight_scale",), (".weight_shape",)),
        (".weight_zero_point", ".weight_g_idx"),
    ),
    "gptq": Format(".qweight", unpack_gptq, ((".scales",), (".qzeros",)), (".g_idx",)),
    "awq": Format(".qweight", unpack_awq, ((".scales",), (".qzeros",))),
    "mxfp4": Format("_blocks", unpack_mxfp4, (("_scales",),), stands_for=""),
}
