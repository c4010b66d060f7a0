"""The adapters that a model has loaded, and what they add to its projections.

Each projection has slots for the weights of ``count`` adapters, so that loading one allocates nothing and changes no
address: the graphs that were captured before stay right. A step carries the id of each token's adapter, in device
memory, and a token without one has 0.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .....protocol.errors import InvalidRequest
from .....protocol.internal import Adapter
from ...ranks.layers import WHOLE, Division, RowParallel
from .check import check_products
from .folder import AdapterFolder, Pair
from .products import Products, Stack, Tail, TorchProducts
from .tail import TailedLinear

Sublayers = list[tuple[str, int]]
"""The layers of the checkpoint that a projection consists of, and how many rows each has."""


class Target(NamedTuple):
    """A layer of the model that an adapter can be beside."""

    stack: Stack
    sublayer: int
    division: Division
    """What of the layer this rank has."""


class Adapters:
    """The adapters of a model."""

    def __init__(
        self,
        transformer: PreTrainedModel,
        projections: Mapping[str, Sublayers],
        divided: Mapping[str, Division],
        count: int,
        max_rank: int,
    ) -> None:
        """Room for ``count`` of them, whose ids count from 1, of ranks up to ``max_rank``, beside ``projections``,
        by their names. ``divided`` as in ``PagedModel``."""
        self.max_rank = max_rank
        self.count = count
        self.products: Products = products_for(transformer.device)
        self.targets: dict[str, Target] = {}
        """By the name of the layer in the model's checkpoint."""
        self.stacks: list[Stack] = []
        self.device = transformer.device
        for name, sublayers in projections.items():
            module = transformer.get_submodule(name)
            stack = self.stack(module, [rows for _, rows in sublayers], transformer)
            for sublayer, (layer, _) in enumerate(sublayers):
                self.targets[layer] = Target(stack, sublayer, divided.get(layer, WHOLE))
            if isinstance(module, TailedLinear) and isinstance(stack, Tail):
                module.extend = functools.partial(self.extend, stack)
            elif isinstance(module, RowParallel):
                module.adding = functools.partial(self.add, stack)
            else:
                module.register_forward_hook(self.hook(stack))
        if self.stacks and self.device.type == "cuda":
            with torch.inference_mode():
                check_products(self.products, self.stacks)

    def stack(self, module: nn.Module, rows: list[int], transformer: PreTrainedModel) -> Stack:
        columns, outputs = size_of(module)
        starts = tuple(sum(rows[:sublayer]) for sublayer in range(len(rows)))
        made = functools.partial(torch.zeros, dtype=transformer.dtype, device=transformer.device)
        down = made(self.count, len(rows) * self.max_rank, columns)
        if isinstance(module, TailedLinear):
            stack = Tail.of(module.weight.detach(), down, starts)
            stack.up.zero_()  # an incarnation before may have left some in weights that were kept
        else:
            stack = Stack(down, made(self.count, outputs, self.max_rank), starts, self.max_rank)
        self.stacks.append(stack)
        return stack

    @property
    def bytes(self) -> int:
        """The memory that the slots take."""
        return sum(stack.bytes for stack in self.stacks)

    def description(self) -> str:
        """A line for the log about the memory of adapters."""
        return f"room for {self.count} adapters of ranks up to {self.max_rank}, {self.bytes >> 20} MiB"

    def add(self, stack: Stack, input: Tensor, output: Tensor) -> None:
        """Add to what a projection makes of its input, in place."""
        self.products.add(output.flatten(0, -2), input.flatten(0, -2), stack)

    def extend(self, tail: Tail, input: Tensor) -> Tensor:
        """The input of a layer whose weight has a tail."""
        return self.products.extend(input.flatten(0, -2), tail).unflatten(0, input.shape[:-1])

    def hook(self, stack: Stack) -> Any:
        def added(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            self.add(stack, given[0], output)

        return added

    def begin(self, ids: Tensor) -> None:
        """A forward pass begins; ``ids`` int32 [T] are those of its tokens."""
        self.ids = ids
        self.products.begin(ids)

    def select(self, tokens: Tensor) -> None:
        """The forward pass goes on with ``tokens`` int64 [S] of those that it has begun with."""
        self.begin(self.ids[tokens])

    # --- loading ------------------------------------------------------------------------------------

    def load(self, adapter: Adapter) -> Iterator[None]:
        """Read an adapter into its slot, which no step under way reads, layer by layer.

        InvalidRequest says why it cannot be; all but numbers that are not finite is seen before anything is
        written.
        """
        id = adapter.id
        try:
            folder = AdapterFolder(adapter.path)
            self.check(folder)
            self.clear(id)
            for layer, pair in folder.pairs.items():
                yield
                with on_one_thread() if self.device.type == "cuda" else nullcontext():
                    self.write(id, folder, pair, self.targets[layer])
        except InvalidRequest as error:
            raise InvalidRequest(
                f"the adapter {adapter.name!r:.200} at {adapter.path!r} cannot be loaded: {error}"
            ) from None
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()  # steps run on another

    def check(self, folder: AdapterFolder) -> None:
        """Whether its layers are the model's, and within the rank that there is room for."""
        for layer, pair in folder.pairs.items():
            target = self.targets.get(layer)
            if target is None:
                raise InvalidRequest(
                    f"it has weights for {layer!r:.200}, and this model has no layer of this name that adapters are"
                    f" served for; it was trained for {folder.base}"
                )
            stack, sublayer, division = target
            outputs = stack.sublayers[sublayer][0]
            a, b = folder.shape(pair.a), folder.shape(pair.b)
            rank = a[0]
            if rank > self.max_rank:
                raise InvalidRequest(
                    f"its rank is {rank}, and there is room for {self.max_rank}; raise --max-lora-rank"
                )
            columns, rows = stack.down.shape[2], outputs.stop - outputs.start
            expected = [rank, columns * division.inputs[0]], [rows * division.outputs[0], rank]
            if (a, b) != expected:
                raise InvalidRequest(
                    f"beside {layer!r:.200} it has weights of the shapes {a} and {b}, and this model takes"
                    f" {expected[0]} and {expected[1]}; it was trained for {folder.base}"
                )
        self.check_complete(folder)

    def check_complete(self, folder: AdapterFolder) -> None:
        """Refuse a folder that lacks a layer that it was trained for, as far as its configuration names them."""
        config = folder.config
        if config.get("layers_to_transform") is not None or config.get("exclude_modules"):
            return
        ends = tuple(f".{target}" for target in folder.targets)
        missing = [
            layer for layer in self.targets if f".{layer}".endswith(ends) and layer not in folder.pairs
        ]
        if missing:
            raise InvalidRequest(
                f"it has no weights for {missing[0]!r} and {len(missing) - 1} other layers that its target_modules"
                f" name; it is incomplete, or was trained for another model ({folder.base})"
            )

    def clear(self, id: int) -> None:
        for stack in self.stacks:
            stack.clear(id)

    def write(self, id: int, folder: AdapterFolder, pair: Pair, target: Target) -> None:
        stack, sublayer, (outputs_here, inputs_here) = target
        a = cut(folder.read(pair.a), 1, *inputs_here)
        b = cut(folder.read(pair.b), 0, *outputs_here)
        rank = a.shape[0]
        a, b = (weight.to(stack.down.dtype) for weight in (a, b.float() * pair.scaling))
        if not bool(a.isfinite().all() and b.isfinite().all()):
            # In a tail they would be multiplied by the zeros of all tokens without this adapter, which gives no number.
            raise InvalidRequest(
                f"{pair.b!r:.200} is out of the range of {stack.down.dtype} with its scaling"
            )
        stack.a(id, sublayer)[:rank].copy_(a)
        stack.b(id, sublayer)[:, :rank].copy_(b)


@contextmanager
def on_one_thread() -> Iterator[None]:
    """Small matrices are looked through on the CPU. With a thread for each core of a GPU's host a look took 7 ms: an
    executor had an adapter of 224 layers after 9 s, and one of two ranks after 36. Not where steps run on the CPU
    themselves: a thread keeps the number that it finds when it first computes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def cut(weight: Tensor, dim: int, size: int, part: int) -> Tensor:
    """One of ``size`` equal parts along ``dim``."""
    return weight.tensor_split(size, dim)[part]


def products_for(device: torch.device) -> Products:
    if device.type != "cuda":
        return TorchProducts()
    from .triton_products import TritonProducts  # triton comes with torch where there is a GPU

    return TritonProducts()


def size_of(module: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a projection."""
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.weight.shape[1]
    assert isinstance(module, nn.Linear)
    return module.in_features, module.out_features


def projections_of(transformer: PreTrainedModel) -> dict[str, Sublayers]:
    """The projections of a decoder that is as transformers has it: each is a layer of the checkpoint.

    Experts have only some of a step's tokens, and so none of the ids.
    """
    prefix = f"{transformer.base_model_prefix}."
    return {
        name: [(name, size_of(module)[1])]
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and name.startswith(prefix) and ".experts." not in name
    }
