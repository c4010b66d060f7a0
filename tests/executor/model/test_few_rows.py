"""Products of few rows: the kernels compute what torch does, and take the place of a model's linear layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from interpreter import DEVICE, INTERPRETED, needs_interpreter, needs_kernels, run_interpreted
from slipstream.actors.executor.model.adapters.tail import TailedLinear
from slipstream.actors.executor.model.linear import GivenLinear
from slipstream.actors.executor.ranks.layers import RowParallelLinear
from slipstream.protocol.errors import ModelNotSupported
from torch import Tensor, nn

DTYPES = [torch.float16] + ([] if INTERPRETED else [torch.bfloat16])
TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 8e-3}


@needs_interpreter
def test_under_the_interpreter() -> None:
    run_interpreted(__file__)


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def error_of(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("outputs", "columns"), [(1, 16), (7, 24), (40, 1000), (64, 4096), (9, 5000)])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 17])
def test_a_product_of_few_rows_is_that_of_torch(
    rows: int, outputs: int, columns: int, with_bias: bool, dtype: torch.dtype
) -> None:
    from slipstream.actors.executor.model.products.few_rows import linear

    states, weight = random(rows, columns, dtype=dtype), random(outputs, columns, dtype=dtype, seed=1)
    bias = random(outputs, dtype=dtype, seed=2) if with_bias else None
    expected = F.linear(states.double(), weight.double(), None if bias is None else bias.double())
    found = linear(states[None], weight, bias)
    assert found.shape == (1, rows, outputs)
    assert error_of(found[0], expected) < TOLERANCE[dtype]


@needs_kernels
def test_no_rows_and_many_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    from slipstream.actors.executor.model.products import few_rows

    def refuse(*given: object) -> Tensor:
        raise AssertionError("no kernel is for this")

    monkeypatch.setattr(few_rows, "product", refuse)
    monkeypatch.setattr(few_rows, "product_of_row", refuse)
    weight = random(8, 16, dtype=torch.float16)
    for rows in (0, few_rows.MAX_ROWS + 1):
        assert few_rows.linear(random(rows, 16, dtype=torch.float16), weight, None).shape == (rows, 8)
    with pytest.raises(AssertionError, match="no kernel"):
        few_rows.linear(random(few_rows.MAX_ROWS, 16, dtype=torch.float16), weight, None)


@needs_kernels
def test_a_row_that_lies_apart_is_read_where_it_is() -> None:
    from slipstream.actors.executor.model.products.few_rows import linear

    wide, weight = random(1, 64, dtype=torch.float16), random(6, 32, dtype=torch.float16, seed=1)
    every_other = wide[:, ::2]
    expected = F.linear(every_other.double(), weight.double())
    assert error_of(linear(every_other, weight, None), expected) < 1e-3


class Layers(nn.Module):
    """What a model's linear layers can be."""

    def __init__(self) -> None:
        super().__init__()
        draw = nn.Parameter(random(24, 32, dtype=torch.float16), requires_grad=False)
        self.plain = nn.Linear(32, 24, bias=False)
        self.plain.weight = draw
        self.of_a_rank = RowParallelLinear(draw, None, None, of_whole=False)  # type: ignore[arg-type]
        self.with_tail = TailedLinear(draw, None, 24)
        self.with_tail.extend = lambda states: F.pad(states, (0, 8), value=1.0)
        self.exact = nn.Linear(32, 24).to(DEVICE)
        self.apart = nn.Linear(24, 32, bias=False)
        self.apart.weight = nn.Parameter(draw.T, requires_grad=False)


@pytest.fixture
def any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels are for the device of these tests."""
    from slipstream.actors.executor.model.products import few_rows

    def fits(layer: nn.Linear) -> bool:
        return layer.weight.dtype in few_rows.DTYPES and layer.weight.is_contiguous()

    if INTERPRETED:
        monkeypatch.setattr(few_rows, "fits", fits)


@needs_kernels
def test_layers_that_fit_are_replaced_and_keep_their_weights(any_device: None) -> None:
    from slipstream.actors.executor.model.products.few_rows import begin_products_early, linear

    model = Layers()
    weight = model.plain.weight
    begin_products_early(model, checked=False)
    assert isinstance(model.plain, GivenLinear)
    assert model.plain.product is linear
    assert model.plain.weight is weight
    assert model.of_a_rank.product is linear
    assert model.of_a_rank.weight is weight
    assert type(model.exact) is nn.Linear
    assert type(model.apart) is nn.Linear
    states = random(3, 32, dtype=torch.float16, seed=1)
    expected = F.linear(states.double(), weight.double())
    assert model.with_tail.product is linear
    extended = F.linear(F.pad(states[:, :24].double(), (0, 8), value=1.0), weight.double())
    assert error_of(model.with_tail(states[:, :24]), extended) < 1e-3
    for found in (model.plain(states), model.of_a_rank.multiply(states)):
        assert error_of(found, expected) < 1e-3


@needs_kernels
@pytest.mark.parametrize("kernel", ["product", "product_of_row"])
def test_a_kernel_that_computes_something_else_is_refused(
    kernel: str, any_device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slipstream.actors.executor.model.products import few_rows

    own = getattr(few_rows, kernel)

    def without_last_columns(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        shorter = states.clone()
        shorter[..., -4:] = 0
        return own(shorter, weight, bias)

    monkeypatch.setattr(few_rows, kernel, without_last_columns)
    with pytest.raises(ModelNotSupported, match=r"products of (1|2) rows with a weight of \(24, 32\)"):
        few_rows.begin_products_early(Layers(), checked=False)
    few_rows.begin_products_early(Layers(), checked=True)
