"""What adapters add to a product, by the kernels and in plain torch, against one token after the other."""

from __future__ import annotations

import pytest
import torch
from interpreter import DEVICE, INTERPRETED, KERNELS_RUN, needs_interpreter, run_interpreted
from slipstream.actors.executor.model.adapters.check import check_products
from slipstream.actors.executor.model.adapters.products import Products, Stack, TorchProducts
from slipstream.protocol.errors import ModelNotSupported
from torch import Tensor

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""Of the difference relative to the size; in half precision the small product is rounded too."""

DTYPES = [torch.float32, torch.float16, *([] if INTERPRETED else [torch.bfloat16])]
"""The interpreter takes the bits of bfloat16 for whole numbers in a product."""


@needs_interpreter
def test_under_the_interpreter() -> None:
    run_interpreted(__file__)


def triton_products() -> Products:
    from slipstream.actors.executor.model.adapters.kernels import TritonProducts

    return TritonProducts()


@pytest.fixture(
    params=[
        pytest.param(TorchProducts, id="torch"),
        pytest.param(
            triton_products,
            id="triton",
            marks=pytest.mark.skipif(not KERNELS_RUN, reason="needs a GPU or the interpreter"),
        ),
    ]
)
def products(request: pytest.FixtureRequest) -> Products:
    return request.param()


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype)


def stack_of(count: int, parts: list[int], width: int, rank: int, dtype: torch.dtype) -> Stack:
    starts = tuple(sum(parts[:part]) for part in range(len(parts)))
    down = random(count, len(parts) * rank, width, dtype=dtype) / width**0.5
    return Stack(down, random(count, sum(parts), rank, dtype=dtype), starts, rank)


def one_by_one(output: Tensor, states: Tensor, ids: Tensor, stack: Stack) -> Tensor:
    """In float32, for each token and each part."""
    found = output.float()
    for token, id in enumerate(ids.tolist()):
        if id:
            for outputs, ranks in stack.parts:
                small = stack.down[id - 1, ranks].float() @ states[token].float()
                found[token, outputs] += stack.up[id - 1, outputs].float() @ small
    return found


CASES = [
    ([40], 24, 4, 1),
    ([40], 24, 4, 7),
    ([64, 16, 16], 32, 8, 33),
    ([130, 130], 300, 16, 20),
    ([48], 520, 24, 70),
    ([20, 36], 64, 80, 5),
]
"""Outputs of the parts, inputs, the rank, and tokens: less than a tile of each, several, and odd ones."""


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_token_gets_what_its_own_adapter_makes_of_it(
    products: Products, case: tuple[list[int], int, int, int], dtype: torch.dtype
) -> None:
    parts, width, rank, tokens = case
    stack = stack_of(3, parts, width, rank, dtype)
    states = random(tokens, width, dtype=dtype)
    before = random(tokens, sum(parts), dtype=dtype)
    ids = torch.tensor([(5 * token) % 4 for token in range(tokens)], dtype=torch.int32, device=DEVICE)
    output = before.clone()
    products.begin(ids)
    products.add(output, states, stack)
    expected = one_by_one(before, states, ids, stack)
    error = float((output.float() - expected).norm() / expected.norm())
    assert error <= TOLERANCE[dtype]
    assert torch.equal(output[ids == 0], before[ids == 0]), "nothing is added without an adapter"


def test_a_token_gets_the_same_whoever_is_beside_it(products: Products) -> None:
    stack = stack_of(3, [64, 16, 16], 128, 8, torch.float32)
    states = random(18, 128, dtype=torch.float32)
    ids = torch.tensor([token % 4 for token in range(18)], dtype=torch.int32, device=DEVICE)
    together = torch.zeros(18, 96, device=DEVICE)
    products.begin(ids)
    products.add(together, states, stack)
    for token in (0, 5, 17):
        own = torch.zeros(1, 96, device=DEVICE)
        products.begin(ids[token : token + 1])
        products.add(own, states[token : token + 1], stack)
        assert torch.allclose(own[0], together[token], rtol=1e-5, atol=1e-5)


def test_products_are_compared_with_torch_before_any_is_served(products: Products) -> None:
    for dtype in DTYPES:
        check_products(products, [stack_of(2, [40, 24], 96, 8, dtype), stack_of(2, [48], 40, 8, dtype)])


@pytest.mark.parametrize("fault", ["of the other adapter", "left out", "of the first part alone"])
def test_a_planted_fault_of_the_products_is_seen(fault: str) -> None:
    class Faulty(TorchProducts):
        def begin(self, ids: Tensor) -> None:
            super().begin(ids.where(ids == 0, 3 - ids) if fault == "of the other adapter" else ids)

        def add(self, output: Tensor, states: Tensor, stack: Stack) -> None:
            if fault != "left out":
                super().add(output, states, stack)
            if fault == "of the first part alone":
                output[:, stack.parts[0][0].stop :] = 0

    with pytest.raises(ModelNotSupported, match=r"differs by .* of its size"):
        check_products(Faulty(), [stack_of(2, [40, 24], 96, 8, torch.float32)])
