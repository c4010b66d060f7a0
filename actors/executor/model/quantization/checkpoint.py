"""The tensors of a checkpoint with quantized weights, each read and dequantized when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .....protocol.errors import ModelNotSupported
from .formats import FORMATS, Format
from .scheme import Scheme
from .weight import QuantizedWeight

EIGHT_BITS = ("F8_E4M3", "F8_E5M2", "I8", "U8")
"""What safetensors call types that are no weights without scales."""

FLOATS = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}


NO_MEMORY = "can't allocate memory"
"""What torch says where the host has none, in an error without a class of its own."""


@contextmanager
def read_as(name: str) -> Iterator[None]:
    """ModelNotSupported names the weight whose tensors do not fit together."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (ValueError, TypeError, LookupError, RuntimeError) as error:
        if NO_MEMORY in str(error):
            raise
        raise ModelNotSupported(
            f"the tensors of {name} do not fit together: {type(error).__name__}: {error}"
        ) from error


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A quantized weight in its files."""

    name: str
    """In the model, but for what transformers renames."""
    form: Format
    parts: Mapping[str, Any]
    """The open files of its tensors, by the ends of their names."""
    scheme: Scheme
    base: str

    def shape_of(self, end: str) -> list[int]:
        """The shape of the tensor with this end of its name."""
        return list(self.parts[end].get_slice(self.base + end).get_shape())

    @property
    def shape(self) -> list[int]:
        """[N, K]; of a weight that is no matrix, that of what is stored."""
        with read_as(self.name):
            return self.stated_shape()

    def stated_shape(self) -> list[int]:
        stored = self.shape_of(self.form.main)
        match self.form.main:
            case ".weight_packed":
                return self.parts[".weight_shape"].get_tensor(self.base + ".weight_shape").tolist()
            case ".qweight" if self.form is FORMATS["gptq"]:
                return [stored[1], stored[0] * 32 // self.scheme.bits]
            case ".qweight":
                return [stored[1] * 8, stored[0]]
        return stored

    @property
    def kept_as(self) -> torch.dtype:
        """The dtype of a weight that is kept in 8 bits."""
        stored = self.parts[self.form.main].get_slice(self.base + self.form.main).get_dtype()
        return FLOATS.get(stored, torch.int8)

    @property
    def multiplied(self) -> bool:
        """Whether there are products with it as 8 bit numbers: those of 4 bits become such, less their zero points.

        Scales have to be for parts of rows that the products' tiles consist of.
        """
        if self.form is FORMATS["mxfp4"] or ".weight_g_idx" in self.parts:
            return False
        if self.form is FORMATS["scaled"] and ".weight_zero_point" in self.parts:
            return False
        if self.form is not FORMATS["scaled"] and self.scheme.bits != 4:
            return False
        width = self.shape[1]
        if ".scales" in self.parts:
            groups = self.shape_of(".scales")[0]
        else:
            scales = self.shape_of(next(end for end in self.parts if end.startswith(".weight_scale")))
            groups = scales[1] if len(scales) == 2 else 1
        columns = width if groups == 1 else self.scheme.block[1] if self.scheme.block else width // groups
        if ".g_idx" in self.parts:
            order = self.parts[".g_idx"].get_tensor(self.base + ".g_idx").long()
            if not torch.equal(order, torch.arange(width) // columns):
                return False
        return columns >= width or columns in (16, 32, 64) or columns % 128 == 0

    def read(self) -> QuantizedWeight | Tensor:
        with read_as(self.name):
            tensors = {end: file.get_tensor(self.base + end) for end, file in self.parts.items()}
            return self.form.unpack(self.name, tensors, self.scheme)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        found = self.read()
        with read_as(self.name):
            return found.dequantized(dtype) if isinstance(found, QuantizedWeight) else found.to(dtype)


def stored_weights(files: Mapping[str, Any], scheme: Scheme) -> list[StoredWeight]:
    """The quantized weights among the tensors of a checkpoint; ModelNotSupported without any, or for half of one."""
    found: list[StoredWeight] = []
    for name, file in files.items():
        for form in (FORMATS[known] for known in scheme.formats):
            if not name.endswith(form.main):
                continue
            base = name.removesuffix(form.main)
            parts = {end: files[base + end] for end in form.parts if base + end in files}
            lacking = [ends[0] for ends in form.needed if not parts.keys() & set(ends)]
            if not lacking:
                found.append(StoredWeight(base + form.stands_for, form, parts, scheme, base))
            elif form.main != ".weight" or file.get_slice(name).get_dtype() in EIGHT_BITS:
                raise ModelNotSupported(f"{name} is quantized, and its {base}{lacking[0]} is missing")
    if not found:
        raise ModelNotSupported(
            f"config.json says that weights are quantized by {scheme.method!r}, and none is"
        )
    return found


class Dequantized:
    """Stands in for a stored tensor where transformers reads them: it is read with ``[...]``."""

    def __init__(self, weight: StoredWeight, dtype: torch.dtype) -> None:
        self.weight, self.dtype = weight, dtype
        self.was_read = False
        self.failure: Exception | None = None
        """Why it could not be read: transformers would go on without it."""

    def __getitem__(self, _: Any) -> Tensor:
        self.was_read = True
        try:
            return self.weight.dequantized(self.dtype)
        except Exception as error:
            self.failure = error
            raise


def plain_tensors(files: Mapping[str, Any], weights: list[StoredWeight]) -> dict[str, Any]:
    """The tensors of a checkpoint that are no part of these weights, by their names, to be read with ``[...]``."""
    parts = {weight.base + end for weight in weights for end in weight.parts}
    return {name: file.get_slice(name) for name, file in files.items() if name not in parts}
