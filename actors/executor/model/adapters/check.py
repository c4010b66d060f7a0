"""Compares what the kernels add for adapters with plain torch, before any adapter is served."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .....protocol.errors import ModelNotSupported
from ...triton_tools.compilation import compile_ahead
from .products import Products, Stack, Tail, TorchProducts

CHECKED_TOKENS = (5, 40, 100)
"""One number for each way that the kernels go."""

ROWS_OF_SUBLAYER = 16
"""Rows of a weight with a tail that are checked, which torch multiplies: our kernel does not know how many there
are."""

TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""The error allowed in what is added, relative to its size: in half precision ten times what an H200 has shown."""


def check_products(products: Products, stacks: Sequence[Stack]) -> None:
    """Compare what ``products`` add beside one projection of each kind; ModelNotSupported if it is something else."""
    kinds = {kind_of(stack): stack for stack in stacks}
    dtype, device = stacks[0].down.dtype, stacks[0].down.device
    compile_ahead(device, lambda: [added(products, stack) for stack in kinds.values()])
    for stack in kinds.values():
        for found, expected in added(products, stack):
            error = float((found.float() - expected).norm() / expected.norm())
            if not error <= TOLERANCE[dtype]:
                raise ModelNotSupported(
                    f"what adapters add to {stack.up.shape[1]} outputs in {dtype} differs by {error:.2g} of its size"
                    " from what torch computes; leave out --lora, or take another --dtype"
                )


def kind_of(stack: Stack) -> tuple[object, ...]:
    """The properties of a projection that its kernels depend on."""
    if isinstance(stack, Tail):
        return stack.down.shape, len(stack.starts)
    return stack.down.shape[1:], stack.up.shape[1:], stack.starts


class Random:
    """Numbers in the dtype and on the device of a tensor."""

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.generator = torch.Generator().manual_seed(7)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator).to(self.like)


def added(products: Products, like: Stack) -> list[tuple[Tensor, Tensor]]:
    """The results of ``products`` for adapters of random weights, in the sizes of ``like``, and the same in float32."""
    random = Random(like.down)
    if isinstance(like, Tail):
        return added_by_tail(products, like, random)
    (_, ranks, width), (_, rows, rank) = like.down.shape, like.up.shape
    down, up = random(2, ranks, width) / width**0.5, random(2, rows, rank)
    stack = Stack(down, up, like.starts, like.rank)
    pairs: list[tuple[Tensor, Tensor]] = []
    for states, ids in inputs(2, width, random):
        found = states.new_zeros(len(states), rows)
        products.begin(ids)
        products.add(found, states, stack)
        pairs.append((found, expected(torch.zeros_like(found).float(), states, ids, stack)))
    return pairs


def added_by_tail(products: Products, like: Tail, random: Random) -> list[tuple[Tensor, Tensor]]:
    """As `added`, for a weight with a tail, whose own product is in it."""
    count, ranks, width = like.down.shape
    rows = ROWS_OF_SUBLAYER * len(like.starts)
    weight = random(rows, width + like.columns) / width**0.5
    weight[:, width:] = 0
    down = random(count, ranks, width) / width**0.5
    tail = Tail.of(weight, down, tuple(range(0, rows, ROWS_OF_SUBLAYER)))
    for id in range(1, count + 1):
        for sublayer in range(len(like.starts)):
            tail.b(id, sublayer).copy_(random(ROWS_OF_SUBLAYER, like.rank))
    pairs: list[tuple[Tensor, Tensor]] = []
    for states, ids in inputs(count, width, random):
        products.begin(ids)
        found = F.linear(products.extend(states, tail), weight)
        own = F.linear(states.float(), weight[:, :width].float())
        pairs.append((found, expected(own, states, ids, tail)))
    return pairs


def inputs(count: int, width: int, random: Random) -> list[tuple[Tensor, Tensor]]:
    """States, and the ids of the adapters of their tokens: each in turn, and none."""
    return [
        (
            random(tokens, width),
            torch.arange(tokens, dtype=torch.int32, device=random.like.device) % (count + 1),
        )
        for tokens in CHECKED_TOKENS
    ]


def expected(output: Tensor, states: Tensor, ids: Tensor, stack: Stack) -> Tensor:
    """Plain torch adds it to ``output``, in float32."""
    products = TorchProducts()
    products.begin(ids)
    products.add(output, states.float(), as_float32(stack))
    return output


def as_float32(stack: Stack) -> Stack:
    """The same weights in float32, and without a tail."""
    outputs = torch.cat(
        [
            torch.stack([stack.b(id, sublayer) for id in range(1, len(stack.down) + 1)])
            for sublayer in range(len(stack.starts))
        ],
        1,
    )
    return Stack(stack.down.float(), outputs.float(), stack.starts, stack.rank)
