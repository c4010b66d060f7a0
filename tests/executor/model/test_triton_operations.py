"""The kernels of a decoder against the modules of transformers that they stand for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from interpreter import (
    DEVICE,
    INTERPRETED,
    needs_interpreter,
    needs_kernels,
    run_interpreted,
)
from slipstream.actors.executor.model.fused.operations import ACTIVATIONS, Norm, Operations, TorchOperations
from torch import Tensor, nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""Of the difference relative to the size; transformers rounds to the dtype more often."""


@needs_interpreter
def test_under_the_interpreter() -> None:
    run_interpreted(__file__)


@pytest.mark.skipif(not INTERPRETED, reason="only the interpreter looks for it")
@pytest.mark.parametrize("operation", ["add", "sub", "mul"])
def test_an_integer_that_overflows_is_found(operation: str) -> None:
    import overflows
    from triton.runtime.errors import InterpreterError

    numbers = torch.tensor([3, 2**30, -(2**30)], dtype=torch.int32)
    result = torch.zeros(3, dtype=torch.int32)
    most = {"add": 2**30 - 1, "sub": 2**30, "mul": 1}[operation]
    overflows.KERNELS[operation][(1,)](numbers, result, most, 2)
    assert result[1] == {"add": 2**31 - 1, "sub": 0, "mul": 2**30}[operation]
    with pytest.raises(InterpreterError, match=f"int32: {operation} gives -?{2**31}"):
        overflows.KERNELS[operation][(1,)](
            numbers, result, {"add": 2**30, "sub": -(2**30), "mul": 2}[operation], 2
        )


def triton_operations() -> Operations:
    from slipstream.actors.executor.model.fused.triton_operations import TritonOperations

    return TritonOperations()


@pytest.fixture(
    params=[
        pytest.param(TorchOperations, id="torch"),
        pytest.param(triton_operations, id="triton", marks=needs_kernels),
    ]
)
def operations(request: pytest.FixtureRequest) -> Operations:
    return request.param()


def random(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return (torch.randn(*shape, generator=generator) * scale).to(DEVICE, dtype)


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == expected.dtype
    error = float((found.float() - expected.float()).norm() / expected.float().norm())
    assert error <= TOLERANCE[found.dtype], error


def llama_norm(width: int, dtype: torch.dtype) -> tuple[nn.Module, Norm]:
    module = LlamaRMSNorm(width, 1e-3).to(DEVICE)
    module.weight.data = random(width, dtype=dtype)
    return module, Norm(module.weight, 1e-3, 0.0)


def gemma_norm(width: int, dtype: torch.dtype) -> tuple[nn.Module, Norm]:
    module = Gemma3RMSNorm(width, 1e-3).to(DEVICE)
    module.weight.data = random(width, dtype=dtype)
    return module, Norm(module.weight, 1e-3, 1.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [32, 48, 1000])
@pytest.mark.parametrize("make", [llama_norm, gemma_norm])
def test_add_norm(operations: Operations, make: Any, width: int, dtype: torch.dtype) -> None:
    module, norm = make(width, dtype)
    # As small as epsilon, so that it counts.
    residual = random(5, width, dtype=dtype, scale=0.03)
    update = random(5, width + 3, dtype=dtype, scale=0.03)[:, :width]
    with torch.no_grad():
        assert_close(operations.add_norm(residual.clone(), None, None, 1.0, norm), module(residual))

        total, found = residual.clone(), None
        found = operations.add_norm(total, update, None, 0.5, norm)
        assert_close(total, residual + update * 0.5)
        assert_close(found, module(total))

        total = residual.clone()
        found = operations.add_norm(total, update, norm, 1.0, norm)
        assert_close(total, residual + module(update))
        assert_close(found, module(total))

        total = residual.clone()
        assert operations.add_norm(total, update, norm, 1.0, None) is total
        assert_close(total, residual + module(update))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norm_of_rows_that_lie_apart(operations: Operations, dtype: torch.dtype) -> None:
    module, norm = llama_norm(24, dtype)
    states = random(5, 60, dtype=dtype)
    with torch.no_grad():
        expected = torch.cat((states[:, :10], module(states[:, 10:34]), states[:, 34:]), 1)
        operations.norm(states[:, 10:34], norm)
    assert_close(states, expected)
    assert torch.equal(states[:, :10], expected[:, :10])
    assert torch.equal(states[:, 34:], expected[:, 34:])


def test_angles_of_far_positions(operations: Operations) -> None:
    positions = torch.tensor([0, 1, 77, 4096, 131071], device=DEVICE)
    frequencies = 1e6 ** -(torch.arange(0, 24, 2, device=DEVICE) / 24)
    angles = positions[:, None].double() * frequencies.double()
    expected = torch.cat((angles.cos(), angles.sin()), -1) * 1.5
    found = operations.angles(positions, frequencies, 1.5)
    assert found.dtype == torch.float32
    # A float32 angle of 131,071 is exact to a 128th part.
    assert float((found[:3] - expected[:3]).abs().max()) < 2e-5
    assert float((found - expected).abs().max()) < 2e-2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize(
    ("queries", "keys", "dims", "turned"), [(4, 2, 16, 16), (7, 1, 8, 8), (3, 3, 24, 12), (1, 1, 80, 20)]
)
def test_rotate(
    operations: Operations,
    queries: int,
    keys: int,
    dims: int,
    turned: int,
    normalised: bool,
    dtype: torch.dtype,
) -> None:
    heads = queries + 2 * keys
    states = random(5, heads * dims, dtype=dtype).view(5, heads, dims)
    before = states.clone()
    positions = torch.tensor([0, 1, 5, 70, 3], device=DEVICE)
    frequencies = 100.0 ** -(torch.arange(0, turned, 2, device=DEVICE) / turned)
    angles = operations.angles(positions, frequencies, 1.0)
    query_module, query_norm = llama_norm(dims, dtype)
    key_module, key_norm = llama_norm(dims, dtype)
    key_norm.weight.data = key_norm.weight.data.flip(0)
    key_module.weight.data = key_norm.weight.data
    norms = (query_norm, key_norm) if normalised else (None, None)
    with torch.no_grad():
        operations.rotate(states, queries, keys, *norms, angles)
        q, k = before[:, :queries], before[:, queries : queries + keys]
        if normalised:
            q, k = query_module(q), key_module(k)
        cosines, sines = (part.repeat(1, 2)[None] for part in angles.chunk(2, -1))
        q_turned, k_turned = apply_rotary_pos_emb(
            q.float().transpose(0, 1)[None, ..., :turned],
            k.float().transpose(0, 1)[None, ..., :turned],
            cosines,
            sines,
        )
    for found, kept, expected in (
        (states[:, :queries], q, q_turned),
        (states[:, queries : queries + keys], k, k_turned),
    ):
        assert_close(found[..., :turned], expected[0].transpose(0, 1).to(dtype))
        if turned < dims:
            assert_close(found[..., turned:], kept[..., turned:])
    assert torch.equal(states[:, queries + keys :], before[:, queries + keys :])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [8, 1100])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gate(operations: Operations, activation: str, width: int, dtype: torch.dtype) -> None:
    states = random(3, 2 * width, dtype=dtype, scale=3.0)
    gate, up = states.chunk(2, -1)
    expected = ACTIVATIONS[activation](gate.float()) * up.float()
    assert_close(operations.gate(states, activation), expected.to(dtype))
