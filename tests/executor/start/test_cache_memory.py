"""What the cache of a CPU takes of the machine's memory."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import torch
from slipstream.actors.executor.cache.kv_cache import allocate, untouched_zeros
from slipstream.actors.executor.cache.kv_layout import KVLayout, LayerLayout
from slipstream.actors.executor.devices.float8 import FP8
from slipstream.actors.executor.model.loading.load import load_model
from slipstream.actors.executor.start import memory
from slipstream.actors.options import ModelOptions
from slipstream.protocol.errors import SlipstreamError

from slipstream.options.serve import ServeOptions
from slipstream.serving.service import BUNDLED_MODEL, executor_options

CPU = torch.device("cpu")
MIB = 1 << 20
BOUNDS = ModelOptions(model=str(BUNDLED_MODEL), vocab_size=512, max_model_len=512, eos_token_ids=())


def resident() -> int:
    """Bytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_a_cache_takes_memory_as_it_is_filled() -> None:
    layout = KVLayout((LayerLayout(kv_heads=2, key_dim=32, value_dim=32),) * 4)
    blocks = 512 * MIB // layout.bytes_per_block(16, torch.float32)
    before = resident()
    cache = allocate(layout, blocks, 16, CPU, torch.float32)
    assert resident() - before < 16 * MIB
    for pool in (*cache.keys, *cache.values):
        pool[: blocks // 4] = 1.0
    assert 96 * MIB < resident() - before < 160 * MIB


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, FP8])
def test_it_is_zeros_until_it_is_written_and_then_what_was_written(dtype: torch.dtype) -> None:
    layout = KVLayout((LayerLayout(2, 8, 4), LayerLayout(0, 0, 0)))
    cache = allocate(layout, 3, 16, CPU, dtype)
    gc.collect()  # nothing but the tensors holds the memory
    assert [tuple(pool.shape) for pool in (*cache.keys, *cache.values)] == [
        (3, 16, 2, 8),
        (3, 16, 0, 0),
        (3, 16, 2, 4),
        (3, 16, 0, 0),
    ]
    assert all(pool.dtype == dtype and pool.is_contiguous() for pool in (*cache.keys, *cache.values))
    assert not any(pool.float().any() for pool in (*cache.keys, *cache.values))
    cache.keys[0][1] = 1.0
    assert cache.keys[0].float().sum() == 16 * 2 * 8
    assert not cache.values[0].float().any()


def test_what_the_system_does_not_promise_is_told_with_its_size_and_what_to_do() -> None:
    with pytest.raises(SlipstreamError, match=f"gives no {1 << 48} bytes") as refused:
        untouched_zeros((1 << 48,), torch.uint8)  # more than a process has addresses
    assert refused.value.hint == "lower --kv-cache-memory"


@pytest.mark.parametrize("ranks", [1, 2])
def test_more_than_the_machine_has_left_is_refused_at_the_start_and_not_found_while_serving(
    monkeypatch: pytest.MonkeyPatch, ranks: int
) -> None:
    model = load_model(str(BUNDLED_MODEL), device=CPU)
    asked = ServeOptions(kv_cache_memory=8 * MIB, tensor_parallel_size=ranks)
    options = executor_options(asked, BOUNDS)
    blocks = memory.count_blocks(options, model, None)
    taken = blocks * memory.bytes_per_block(options, model)
    assert 7 * MIB < taken <= 8 * MIB
    monkeypatch.setattr(memory, "available", lambda: ranks * taken)
    assert memory.count_blocks(options, model, None) == blocks
    monkeypatch.setattr(memory, "available", lambda: ranks * taken - 1)
    with pytest.raises(SlipstreamError, match=f"{blocks} blocks are needed") as refused:
        memory.count_blocks(options, model, None)
    assert refused.value.hint == "lower --kv-cache-memory"
