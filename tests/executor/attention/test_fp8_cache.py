"""A cache that takes a byte a number: the scales, what it costs in accuracy, and what it saves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from slipstream.actors.executor.cache.kv_cache import KVCache, LayerScales, allocate
from slipstream.actors.executor.cache.paged_batch import PagedBatch
from slipstream.actors.executor.devices.float8 import FP8, FP8_MAX
from slipstream.actors.executor.model.loading.load import load_model
from slipstream.actors.executor.model.paged_model import PagedModel
from slipstream.actors.executor.model.scales import HEADROOM, measure_scales, scale_of
from slipstream.actors.executor.start.memory import Memory, bytes_per_block, count_blocks
from slipstream.actors.executor.step.model_runner import ModelRunner
from slipstream.actors.options import ExecutorOptions, ModelOptions
from torch import Tensor

from slipstream.options.serve import ServeOptions
from slipstream.serving.service import BUNDLED_MODEL, executor_options

CPU = torch.device("cpu")
BLOCK = 16


@pytest.fixture(scope="module")
def model() -> PagedModel:
    return load_model(str(BUNDLED_MODEL), device=CPU, dtype="float32")


def test_scales_are_powers_of_two_with_room_for_more_than_was_seen() -> None:
    greatest = torch.tensor([0.0, 1e-3, 1.0, 112.0, 113.0, 1e6])
    scales = scale_of(greatest)
    assert torch.equal(scales.log2(), scales.log2().round())
    assert torch.all(greatest * HEADROOM / scales <= FP8_MAX)
    assert torch.all(greatest[1:] * HEADROOM / scales[1:] > FP8_MAX / 2)  # and no more than is needed
    assert scales[0] == 1.0


def test_values_of_a_byte_are_padded_to_as_many_as_triton_reads_rightly() -> None:
    pytest.importorskip("triton")
    from slipstream.actors.executor.attention.triton_common import MIN_BYTES, pad, pad_value

    for size in (1, 16, 24, 32, 64, 80, 128):
        assert pad_value(size, torch.zeros(1).to(FP8)) == max(MIN_BYTES, pad(size))
        assert pad_value(size, torch.zeros(1)) == pad(size)


def test_a_model_has_the_same_scales_each_time_and_its_backend_back(model: PagedModel) -> None:
    backend = model.backend
    first, second = measure_scales(model), measure_scales(model)
    assert model.backend is backend
    assert len(first) == len(model.kv_layout.layers)
    for one, other, layer in zip(first, second, model.kv_layout.layers, strict=True):
        assert one.keys.shape == one.values.shape == (layer.kv_heads,)
        assert torch.equal(one.keys, other.keys)
        assert torch.equal(one.values, other.values)


def test_twice_the_tokens_fit_into_the_same_memory(model: PagedModel) -> None:
    def options(dtype: str) -> ExecutorOptions:
        asked = ServeOptions(kv_cache_dtype=dtype, dtype="bfloat16")
        about = ModelOptions(
            model=str(BUNDLED_MODEL), vocab_size=model.vocab_size, max_model_len=512, eos_token_ids=()
        )
        return replace(executor_options(asked, about), kv_cache_memory=64 << 20)

    half = load_model(str(BUNDLED_MODEL), device=CPU, dtype="bfloat16")
    memory = Memory(free=1 << 32, total=1 << 32)
    own, fp8 = options("auto"), options("fp8")
    assert bytes_per_block(own, half) == 2 * bytes_per_block(fp8, half)
    assert count_blocks(fp8, half, memory) // count_blocks(own, half, memory) == 2


def forward(model: PagedModel, cache: KVCache, tokens: Tensor, steps: list[int]) -> Tensor:
    """Logits of a text that comes in ``steps`` of tokens."""
    blocks = -(-len(tokens) // BLOCK)
    table = torch.arange(blocks, 0, -1, dtype=torch.int32)[None]
    found, done = [], 0
    for count in steps:
        positions = torch.arange(done, done + count)
        done += count
        batch = PagedBatch(
            cache=cache,
            rows=torch.zeros(1, dtype=torch.int64),
            kv_lens=torch.tensor([done], dtype=torch.int32),
            query_start=torch.tensor([0, count], dtype=torch.int32),
            write_index=table[0, positions // BLOCK].long() * BLOCK + positions % BLOCK,
            block_table=table,
            decode_only=count == 1,
            max_kv_len=done,
        )
        found.append(model.forward(tokens[positions], positions, batch, torch.arange(count)))
    return torch.cat(found)


def test_a_prompt_sees_the_same_cache_however_it_is_cut_and_nearly_that_of_full_width(
    model: PagedModel,
) -> None:
    tokens = torch.arange(60) * 7919 % model.vocab_size
    scales = measure_scales(model)

    def logits(steps: list[int], fp8: bool) -> Tensor:
        dtype = FP8 if fp8 else model.dtype
        cache = allocate(model.kv_layout, 5, BLOCK, CPU, dtype, scales if fp8 else None)
        return forward(model, cache, tokens, steps)

    exact = logits([60], fp8=False)
    whole = logits([60], fp8=True)
    cut = logits([17, 1, 1, 20, 21], fp8=True)

    def error(one: Tensor, other: Tensor) -> float:
        return float((one - other).norm() / other.norm())

    # A last bit that differs may round a key to its neighbour; it is far below what FP8 itself rounds.
    assert error(cut, whole) < 0.01
    assert 0.001 < error(whole, exact) < 0.1


def test_with_wrong_scales_the_logits_are_wrong(model: PagedModel) -> None:
    """What the comparison above would miss, it would miss everywhere."""
    tokens = torch.arange(60) * 7919 % model.vocab_size
    exact = forward(model, allocate(model.kv_layout, 5, BLOCK, CPU, model.dtype), tokens, [60])
    tiny = [LayerScales(one.keys / 2**12, one.values / 2**12) for one in measure_scales(model)]
    found = forward(model, allocate(model.kv_layout, 5, BLOCK, CPU, FP8, tiny), tokens, [60])
    assert float((found - exact).norm() / exact.norm()) > 0.2


def test_blocks_are_copied_bit_by_bit(model: PagedModel) -> None:
    runner = ModelRunner(model, 2, 64, BLOCK, 4, scales=measure_scales(model))
    pool = runner.cache.keys[0]
    assert pool.dtype == FP8
    pool.view(torch.uint8)[1] = torch.arange(256).to(torch.uint8)[: pool.shape[-1]]
    runner.cache.copy_blocks(torch.tensor([1]), torch.tensor([3]))
    assert torch.equal(pool.view(torch.uint8)[3], pool.view(torch.uint8)[1])
