"""Whether kernels add what adapters are to add: compared with plain torch before any is served."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .....protocol.errors import ModelNotSupported
from ...attention.ahead import compile_ahead
from .products import Products, Stack, TorchProducts

CHECKED_TOKENS = (5, 40, 100)
"""One number for each way that the kernels go."""

TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""Of what is added, relative to its size: in half precision ten times what an H200 has shown."""


def check_products(products: Products, stacks: Sequence[Stack]) -> None:
    """Compare what ``products`` add beside one projection of each kind; ModelNotSupported if it is something else."""
    kinds = {(stack.down.shape[1:], stack.up.shape[1:], stack.starts): stack for stack in stacks}
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


def added(products: Products, like: Stack) -> list[tuple[Tensor, Tensor]]:
    """What ``products`` add for two adapters of random weights, in the sizes of ``like``; and the same in float32."""
    dtype, device = like.down.dtype, like.down.device
    generator = torch.Generator().manual_seed(7)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    width, outputs = like.down.shape[2], like.up.shape[1]
    down, up = random(2, like.down.shape[1], width) / width**0.5, random(2, outputs, like.rank)
    stack = Stack(down, up, like.starts, like.rank)
    exact = Stack(down.float(), up.float(), like.starts, like.rank)
    pairs: list[tuple[Tensor, Tensor]] = []
    for tokens in CHECKED_TOKENS:
        ids = torch.arange(tokens, dtype=torch.int32, device=device) % 3
        states = random(tokens, width)
        found = torch.zeros(tokens, outputs, dtype=dtype, device=device)
        expected = torch.zeros(tokens, outputs, device=device)
        for own, output, given, weights in (
            (products, found, states, stack),
            (TorchProducts(), expected, states.float(), exact),
        ):
            own.begin(ids)
            own.add(output, given, weights)
        pairs.append((found, expected))
    return pairs
