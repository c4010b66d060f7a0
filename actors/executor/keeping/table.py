"""The table of an arena: which tensor of a model lies where, by the names that transformers has for them.

What `fuse` joins is one tensor, of which the layers that it was made of are views; so a model of transformers made of
the table is fused again without a copy.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor, nn

from ..model.findings import ModelFindings
from ..model.paged_model import PagedModel
from ..model.quantization.linear import QuantizedLinear
from ..ranks.quantized import in_place_of
from .arena import Arena, aligned


class StoredTensor(msgspec.Struct, frozen=True):
    """A tensor in an arena."""

    start: int
    """Byte."""
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def view(self, memory: Tensor) -> Tensor:
        """The tensor, of the bytes of an arena."""
        dtype = getattr(torch, self.dtype)
        extent = extent_of(self.shape, self.stride) * dtype.itemsize
        return memory[self.start : self.start + extent].view(dtype).as_strided(self.shape, self.stride)


class Table(msgspec.Struct):
    """What a keeper has of one model: where each tensor lies, and what else was found out when it was loaded."""

    dtype: str
    """The name of the model's dtype."""
    weights_format: str
    """`PagedModel.weights_format`."""
    unfused_because: str
    """`PagedModel.unfused_because`."""
    tensors: dict[str, StoredTensor]
    blocks: dict[str, tuple[int, int]]
    """For each layer whose weight is quantized, how many rows and columns share a scale."""
    piece_bytes: int
    """``Arena.piece_bytes``."""
    tails: bool
    """Adapters are written between the weights, so that nothing can protect these."""
    findings: ModelFindings


class Named(NamedTuple):
    """A parameter or buffer of a model of transformers, found again when ``fuse`` has taken that apart."""

    name: str
    module: nn.Module
    attribute: str

    @property
    def tensor(self) -> Tensor:
        return getattr(self.module, self.attribute)

    @property
    def is_buffer(self) -> bool:
        return self.attribute in self.module._buffers


def named_tensors(transformer: nn.Module) -> list[Named]:
    """All parameters and buffers, by each of their names."""
    found: list[Named] = []
    for path, module in transformer.named_modules(remove_duplicate=False):
        for attribute, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                found.append(Named(f"{path}.{attribute}" if path else attribute, module, attribute))
    return found


def extent_of(shape: Iterable[int], stride: Iterable[int]) -> int:
    """Elements from the first to the last of a tensor."""
    sizes = tuple(shape)
    return 0 if 0 in sizes else 1 + sum((size - 1) * step for size, step in zip(sizes, stride, strict=True))


class Region:
    """Bytes of a storage that belong together, and the tensors in them."""

    def __init__(self, start: int) -> None:
        self.start = self.end = start
        self.tensors: list[Tensor] = []

    @property
    def nbytes(self) -> int:
        return self.end - self.start


def regions_of(tensors: Iterable[Tensor]) -> list[Region]:
    """The memory of ``tensors``: each byte in one region alone, and each tensor in one."""
    extents: list[tuple[int, int, int, Tensor]] = []
    for tensor in {id(tensor): tensor for tensor in tensors}.values():
        storage = tensor.untyped_storage().data_ptr()
        start = tensor.data_ptr() - storage
        extents.append(
            (storage, start, start + extent_of(tensor.shape, tensor.stride()) * tensor.itemsize, tensor)
        )
    found: list[Region] = []
    last = None
    for storage, start, end, tensor in sorted(extents, key=lambda extent: extent[:2]):
        if storage != last or start >= found[-1].end:
            found.append(Region(start))
            last = storage
        found[-1].end = max(found[-1].end, end)
        found[-1].tensors.append(tensor)
    return found


def move(regions: list[Region], arena: Arena) -> None:
    """Move the memory of all tensors into the arena, region by region; who holds a tensor holds it there."""
    for region in regions:
        storage = region.tensors[0].untyped_storage()
        offsets = [tensor.data_ptr() - storage.data_ptr() - region.start for tensor in region.tensors]
        source = torch.empty(0, dtype=torch.uint8, device=region.tensors[0].device)
        source.set_(storage, region.start, (region.nbytes,), (1,))  # type: ignore[call-overload]
        target = arena.allocate(region.nbytes)
        target.copy_(source)
        for tensor, offset in zip(region.tensors, offsets, strict=True):
            tensor.data = typed(target[offset:], tensor.dtype).as_strided(tensor.shape, tensor.stride())


def typed(memory: Tensor, dtype: torch.dtype) -> Tensor:
    """As many numbers as the bytes have room for."""
    return memory[: memory.numel() // dtype.itemsize * dtype.itemsize].view(dtype)


def put(buffers: list[Named], arena: Arena) -> dict[str, StoredTensor]:
    """Copies of buffers in the arena. They stay where they are: they are small, and some are written to."""
    memory = arena.whole()
    found: dict[str, StoredTensor] = {}
    for each in buffers:
        tensor = each.tensor.contiguous()
        target = arena.allocate(tensor.nbytes)
        target.copy_(tensor.view(-1).view(torch.uint8))
        found[each.name] = stored_at(tensor, target.data_ptr() - memory.data_ptr())
    return found


def stored_at(tensor: Tensor, start: int) -> StoredTensor:
    name = str(tensor.dtype).removeprefix("torch.")
    return StoredTensor(start, name, tuple(tensor.shape), tuple(tensor.stride()))


def fill(arena: Arena, model: PagedModel, named: list[Named]) -> Table:
    """Move a model's tensors into an arena of ``bytes_of`` them; ``named`` before it was fused, and now no more."""
    parameters = [each for each in named if not each.is_buffer]
    move(regions_of(tensors_of(model, parameters)), arena)
    base = arena.whole().data_ptr()
    stored = {each.name: stored_at(each.tensor, each.tensor.data_ptr() - base) for each in parameters}
    stored |= put([each for each in named if each.is_buffer], arena)
    blocks = {
        each.name.rpartition(".")[0]: each.module.block
        for each in named
        if isinstance(each.module, QuantizedLinear)
    }
    dtype = str(model.dtype).removeprefix("torch.")
    return Table(
        dtype,
        model.weights_format,
        model.unfused_because,
        stored,
        blocks,
        arena.piece_bytes,
        model.has_tails,
        model.findings,
    )


def bytes_of(model: PagedModel, named: list[Named]) -> int:
    """The bytes that an arena needs."""
    regions = regions_of(tensors_of(model, [each for each in named if not each.is_buffer]))
    moved = sum(aligned(region.nbytes) for region in regions)
    return moved + sum(aligned(each.tensor.nbytes) for each in named if each.is_buffer)


def tensors_of(model: PagedModel, parameters: list[Named]) -> list[Tensor]:
    """The model's tensors: the parameters of transformers, and what was made of them."""
    return [*(each.tensor for each in parameters), *model.transformer.parameters()]


def bind(transformer: nn.Module, table: Table, memory: Tensor) -> None:
    """Give a model without memory the tensors of the table; ValueError where they are not those that it has."""
    for name, block in table.blocks.items():
        weight, scales = (table.tensors[f"{name}.{part}"].view(memory) for part in ("weight", "scales"))
        bias = table.tensors.get(f"{name}.bias")
        layer = QuantizedLinear(weight, scales, block, None if bias is None else bias.view(memory))
        plain: Any = transformer.get_submodule(name)
        transformer.set_submodule(name, in_place_of(plain, layer))
    known: dict[StoredTensor, nn.Parameter] = {}
    for each in named_tensors(transformer):
        stored = table.tensors.get(each.name)
        if stored is None:
            raise ValueError(f"nothing is kept of {each.name}")
        if each.is_buffer:
            each.module._buffers[each.attribute] = stored.view(memory).clone()
            continue
        if stored not in known:
            known[stored] = nn.Parameter(stored.view(memory), requires_grad=False)
        each.module._parameters[each.attribute] = known[stored]
