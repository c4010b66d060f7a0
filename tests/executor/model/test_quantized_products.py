"""Products with quantized weights equal those with the weights that they stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from interpreter import DEVICE, INTERPRETED, KERNELS_RUN, needs_interpreter, needs_kernels, run_interpreted
from slipstream.actors.executor.model.quantization.linear import QuantizedLinear
from slipstream.actors.executor.model.quantization.weight import QuantizedWeight
from slipstream.actors.executor.triton_tools.arrivals import arrivals
from torch import Tensor

if TYPE_CHECKING or KERNELS_RUN:
    import triton
    import triton.language as tl
    from slipstream.actors.executor.model.quantization import conversion, product_kernels

HALVES = [torch.bfloat16, torch.float16]
ONES = torch.ones(20, device=DEVICE)
STORED = [torch.float8_e4m3fn, torch.int8]
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""Of the difference relative to the size: what comes out is rounded, by the interpreter downwards."""


@needs_interpreter
def test_under_the_interpreter() -> None:
    run_interpreted(__file__)


def weight_of(
    height: int, width: int, dtype: torch.dtype, block: tuple[int, int] | None = None
) -> QuantizedWeight:
    torch.manual_seed(height + width)
    rows, columns = block or (1, width)
    values = (torch.randn(height, width) * 40).to(dtype)
    scales = torch.rand(-(-height // rows), -(-width // columns)) * 0.01 + 0.001
    return QuantizedWeight(values.to(DEVICE), scales.to(DEVICE), (rows, columns))


def states_of(rows: int, width: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(rows)).to(DEVICE, dtype)


def assert_close(found: Tensor, states: Tensor, weight: QuantizedWeight, bias: Tensor | None = None) -> None:
    expected = F.linear(
        states.float(), weight.dequantized(torch.float32), None if bias is None else bias.float()
    )
    assert found.dtype == states.dtype
    assert found.shape == expected.shape
    error = float((found.float() - expected).norm() / expected.norm())
    assert error <= TOLERANCE[states.dtype], error


@needs_kernels
@pytest.mark.parametrize("dtype", [*HALVES, torch.float32], ids=str)
@pytest.mark.parametrize("stored", STORED, ids=str)
@pytest.mark.parametrize("shape", [(16, 64), (37, 1100)], ids=str)
def test_one_row(shape: tuple[int, int], stored: torch.dtype, dtype: torch.dtype) -> None:
    weight, states = weight_of(*shape, stored), states_of(1, shape[1], dtype)
    bias = states_of(1, shape[0], dtype)[0]
    given = (weight.values, weight.scales, weight.block)
    assert_close(product_kernels.one_row(states, *given, None), states, weight)
    assert_close(product_kernels.one_row(states, *given, bias), states, weight, bias)


@needs_kernels
@pytest.mark.parametrize("stored", STORED, ids=str)
def test_every_number_is_read_as_what_it_stands_for(stored: torch.dtype) -> None:
    @triton.jit
    def read(bits, out, FLOAT8: tl.constexpr):
        place = tl.arange(0, 256)
        numbers = conversion.numbers_of(tl.load(bits + place), FLOAT8)
        tl.store(out + place, numbers * conversion.shift_of(FLOAT8))

    kernel: Any = read
    bits = torch.arange(256, device=DEVICE).to(torch.int8)
    expected = bits.view(stored).float()
    if INTERPRETED and stored.is_floating_point:  # it loses what is below the least normal number
        expected[expected.abs() < 2**-6] = 0.0
    found = torch.empty(256, device=DEVICE)
    kernel[(1,)](bits, found, FLOAT8=stored.is_floating_point)
    numbers = expected.isfinite() & (expected != 0)
    assert torch.equal(found[numbers], expected[numbers])
    assert numbers.sum() >= 238


@needs_kernels
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("stored", STORED, ids=str)
@pytest.mark.parametrize("shares", [1, 3])
@pytest.mark.parametrize("rows", [2, 33])
def test_few_rows(rows: int, shares: int, stored: torch.dtype, dtype: torch.dtype) -> None:
    """Sizes that fill no tile, and columns that fill no share."""
    weight, states = weight_of(70, 300, stored), states_of(rows, 300, dtype)
    config = product_kernels.LaunchConfig(32, 64, 4, 2, shares)
    given = (weight.values, weight.scales, weight.block)
    assert_close(product_kernels.few_rows(states, *given, None, config), states, weight)
    bias = states_of(1, 70, dtype)[0]
    assert_close(product_kernels.few_rows(states, *given, bias, config), states, weight, bias)
    assert not arrivals("few rows", 1, states.device).any(), "the next product begins with none arrived"


@needs_kernels
@pytest.mark.parametrize("stored", STORED, ids=str)
def test_states_as_two_terms_are_as_precise_as_bfloat16(stored: torch.dtype) -> None:
    largest = torch.tensor([[1e-3], [1.0], [30.0], [1e4]]).to(DEVICE)
    states = states_of(4, 300, torch.float32) * largest
    terms, scales = conversion.two_terms(states, stored)
    rest = conversion.FLOAT8_REST if stored.is_floating_point else conversion.INT8_REST
    found = (terms[0].float() + terms[1].float() * rest.value) * scales[:, None]
    least = states.abs().amax(1, keepdim=True) * (2**-18 if stored.is_floating_point else 2**-15)
    assert bool(((found - states).abs() <= states.abs() * 2**-8 + least).all())


@needs_kernels
def test_rows_of_zeros_stay_zeros() -> None:
    weight = weight_of(20, 64, torch.int8)
    for states in (torch.zeros(3, 64), torch.eye(3, 64)):
        states = states.to(DEVICE, torch.float16)
        assert_close(
            product_kernels.few_rows(states, weight.values, weight.scales, weight.block, None) + 1.0,
            states,
            weight,
            ONES,
        )


@needs_kernels
@pytest.mark.parametrize("columns", [8, 48, 300])
def test_columns_of_any_number(columns: int) -> None:
    for rows, product in ((1, product_kernels.one_row), (3, product_kernels.few_rows)):
        weight, states = weight_of(20, columns, torch.int8), states_of(rows, columns, torch.float16)
        assert_close(product(states, weight.values, weight.scales, weight.block, None), states, weight)


@needs_kernels
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("block", [(32, 64), (1, 16)], ids=str)
def test_scales_of_blocks(rows: int, block: tuple[int, int]) -> None:
    weight, states = (
        weight_of(70, 300, torch.float8_e4m3fn, block),
        states_of(rows, 300, torch.float16),
    )
    product = product_kernels.one_row if rows == 1 else product_kernels.few_rows
    assert_close(product(states, weight.values, weight.scales, weight.block, None), states, weight)


@needs_kernels
@pytest.mark.parametrize("stored", STORED, ids=str)
def test_dequantized(stored: torch.dtype) -> None:
    for block in (None, (32, 64)):
        weight = weight_of(70, 1300, stored, block)
        for dtype in (torch.float32,) if INTERPRETED else (torch.float32, torch.bfloat16):
            found = conversion.dequantized(weight.values, weight.scales, weight.block, dtype)
            assert torch.equal(found, weight.dequantized(dtype))


@needs_kernels
def test_states_are_quantized_with_a_scale_for_each_row() -> None:
    states = (
        states_of(5, 300, torch.bfloat16)
        * torch.tensor([[1e-3], [1.0], [30.0], [0.0], [1e4]]).to(DEVICE).bfloat16()
    )
    numbers, scales = conversion.quantized(states)
    found = numbers.float() * scales
    assert bool(found.isfinite().all())
    most = states.float().abs().amax(1, keepdim=True)
    assert torch.equal(found.abs().amax(1, keepdim=True) > 0, most > 0)
    # A number is off by a sixteenth of itself or by half of the least step at most. The interpreter rounds downwards,
    # what is below the least normal number to zero, and is wrong where rounding carries into the exponent.
    near, least = (1 / 8, 2**-6) if INTERPRETED else (1 / 16, 2**-10)
    right = (found - states.float()).abs() <= states.float().abs() * near + most / 448 * least
    if INTERPRETED:
        right |= (states.float() / scales).frexp().mantissa.abs() >= 1 - 2**-5
    assert bool(right.all())


@needs_kernels
def test_scales_that_lie_otherwise_in_memory() -> None:
    """GPTQ and AWQ store them transposed."""
    weight, states = weight_of(32, 64, torch.int8, (1, 16)), states_of(1, 64, torch.float16)
    layer = QuantizedLinear(weight.values, weight.scales.T.contiguous().T, weight.block, None)
    assert_close(
        product_kernels.one_row(states, layer.weight, layer.scales, layer.block, None), states, weight
    )
