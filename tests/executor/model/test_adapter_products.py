"""What adapters add to a product, by the kernels and in plain torch, against one token after the other."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from interpreter import DEVICE, INTERPRETED, needs_interpreter, needs_kernels, run_interpreted
from slipstream.actors.executor.model.adapters.check import check_products
from slipstream.actors.executor.model.adapters.products import Products, Stack, Tail, TorchProducts
from slipstream.actors.executor.triton_tools.arrivals import arrivals
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
    from slipstream.actors.executor.model.adapters.triton_products import TritonProducts

    return TritonProducts()


@pytest.fixture(
    params=[
        pytest.param(TorchProducts, id="torch"),
        pytest.param(triton_products, id="triton", marks=needs_kernels),
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
            for outputs, ranks in stack.sublayers:
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


# --- weights with a tail --------------------------------------------------------------------------------


def tail_of(count: int, parts: list[int], width: int, rank: int, dtype: torch.dtype) -> tuple[Tensor, Tail]:
    """A weight of random numbers and the tail in it, which has columns to spare."""
    columns = -(-count * len(parts) * rank // 64) * 64
    weight = random(sum(parts), width + columns, dtype=dtype) / width**0.5
    weight[:, width:] = 0
    down = random(count, len(parts) * rank, width, dtype=dtype) / width**0.5
    tail = Tail.of(weight, down, tuple(sum(parts[:part]) for part in range(len(parts))))
    for id in range(1, count + 1):
        for part, rows in enumerate(parts):
            tail.b(id, part).copy_(random(rows + id, rank, dtype=dtype)[id:])
    return weight, tail


def product_with_tail(weight: Tensor, states: Tensor, ids: Tensor, tail: Tail) -> Tensor:
    """In float32, for each token and each part."""
    found = states.float() @ weight[:, : states.shape[1]].float().T
    for token, id in enumerate(ids.tolist()):
        if id:
            for part, (outputs, _) in enumerate(tail.sublayers):
                small = tail.a(id, part).float() @ states[token].float()
                found[token, outputs] += tail.b(id, part).float() @ small
    return found


TAILS = [
    (8, [24], 40, 4, 1),
    (8, [24], 40, 16, 5),
    (3, [16, 8, 8], 300, 8, 33),
    (8, [16, 16], 520, 16, 40),
    (2, [24], 1100, 64, 20),
    (3, [12, 20], 64, 24, 70),
    (4, [16, 8, 8], 96, 16, 100),
    (2, [16], 72, 8, 2000),
]
"""Adapters, outputs of the parts, inputs, the rank, and tokens: less than a tile of each, several, and odd ones."""


def ids_of(tokens: int, count: int) -> Tensor:
    return torch.tensor([(5 * token) % (count + 1) for token in range(tokens)], dtype=torch.int32).to(DEVICE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", TAILS, ids=str)
def test_the_product_with_a_tail_is_the_layers_and_the_adapters(
    products: Products, case: tuple[int, list[int], int, int, int], dtype: torch.dtype
) -> None:
    count, parts, width, rank, tokens = case
    weight, tail = tail_of(count, parts, width, rank, dtype)
    states, ids = random(tokens, width, dtype=dtype), ids_of(tokens, count)
    products.begin(ids)
    extended = products.extend(states, tail)
    assert torch.equal(extended[:, :width], states)
    behind = extended[:, width:].unflatten(1, (-1, rank))
    of = torch.arange(behind.shape[1], device=DEVICE) // len(parts) + 1
    assert not behind[ids[:, None] != of].any(), "zero for all adapters but the token's own"
    expected = product_with_tail(weight, states, ids, tail)
    found = F.linear(extended.float(), weight.float())
    assert float((found - expected).norm() / expected.norm()) <= TOLERANCE[dtype]


@pytest.mark.parametrize("tokens", [7, 70])
def test_states_of_which_each_rank_has_columns_lie_apart(products: Products, tokens: int) -> None:
    _, tail = tail_of(3, [16], 80, 8, torch.float32)
    states = random(tokens, 160, dtype=torch.float32)[:, 80:]
    products.begin(ids_of(tokens, 3))
    assert torch.equal(products.extend(states, tail), products.extend(states.contiguous(), tail))


@pytest.mark.parametrize("tokens", [7, 40, 70])
def test_tokens_without_an_adapter_are_copied(products: Products, tokens: int) -> None:
    weight, tail = tail_of(8, [16, 8], 600, 16, torch.float32)
    states = random(tokens, 600, dtype=torch.float32)
    products.begin(torch.zeros(tokens, dtype=torch.int32, device=DEVICE))
    assert torch.equal(products.extend(states, tail), F.pad(states, (0, weight.shape[1] - 600)))


def test_what_is_not_a_number_stays_with_its_token(products: Products) -> None:
    _, tail = tail_of(3, [16], 300, 8, torch.float32)
    states, ids = random(20, 300, dtype=torch.float32), ids_of(20, 3)
    products.begin(ids)
    expected = products.extend(states, tail)
    states[4] = torch.nan
    found = products.extend(states, tail)
    others = torch.arange(20, device=DEVICE) != 4
    assert torch.equal(found[others], expected[others])


@needs_kernels
def test_the_kernel_counts_from_zero_again_and_gives_the_same_bits() -> None:
    products = triton_products()
    _, tail = tail_of(8, [16, 8, 8], 4096, 16, torch.float32)
    states = random(5, 4096, dtype=torch.float32)
    products.begin(ids_of(5, 8))
    expected = products.extend(states, tail)
    assert not arrivals("extend", 1, states.device).any()
    assert all(torch.equal(products.extend(states, tail), expected) for _ in range(3))


# --- before any is served -------------------------------------------------------------------------------


def test_products_are_compared_with_torch_before_any_is_served(products: Products) -> None:
    for dtype in DTYPES:
        check_products(products, [stack_of(2, [40, 24], 96, 8, dtype), stack_of(2, [48], 40, 8, dtype)])
        check_products(products, [tail_of(3, [40, 24], 96, 8, dtype)[1], tail_of(8, [48], 80, 8, dtype)[1]])


@pytest.mark.parametrize("tailed", [False, True])
@pytest.mark.parametrize(
    "fault", ["of the other adapter", "left out", "of the first part alone", "the states are not there"]
)
def test_a_planted_fault_of_the_products_is_seen(fault: str, tailed: bool) -> None:
    class Faulty(TorchProducts):
        def begin(self, ids: Tensor) -> None:
            super().begin(ids.where(ids == 0, 3 - ids) if fault == "of the other adapter" else ids)

        def add(self, output: Tensor, states: Tensor, stack: Stack) -> None:
            if fault not in ("left out", "the states are not there"):
                super().add(output, states, stack)
            if fault == "of the first part alone":
                output[:, stack.sublayers[0][0].stop :] = 0

        def extend(self, states: Tensor, tail: Tail) -> Tensor:
            extended = super().extend(states, tail)
            width = states.shape[1]
            if fault == "left out":
                extended[:, width:] = 0
            if fault == "of the first part alone":
                extended[:, width:].unflatten(1, (-1, tail.rank))[:, 1::2] = 0
            if fault == "the states are not there":
                extended[:, :width] = 0
            return extended

    like = (
        tail_of(2, [40, 24], 96, 16, torch.float32)[1]
        if tailed
        else stack_of(2, [40, 24], 96, 8, torch.float32)
    )
    with pytest.raises(ModelNotSupported, match=r"differs by .* of its size"):
        check_products(Faulty(), [like])
