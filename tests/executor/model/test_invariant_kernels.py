"""``--batch-invariant`` on a GPU: products and attention have the same bits however many rows there are.

In the interpreter a product of tiles is numpy's, whose order depends on the tile. There it is replaced by sums in the
order of the columns, which is that of the matrix unit: what then differs is what a kernel adds, or when.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from interpreter import DEVICE, INTERPRETED, needs_interpreter, needs_kernels, run_interpreted
from slipstream.actors.executor.cache.kv_cache import KVCache, LayerScales
from slipstream.actors.executor.cache.paged_batch import PagedBatch
from slipstream.actors.executor.devices.float8 import FP8
from slipstream.actors.executor.triton_tools.arrivals import arrivals
from torch import Tensor

DTYPES = [torch.float32, torch.float16] + ([] if INTERPRETED else [torch.bfloat16])


@needs_interpreter
def test_under_the_interpreter() -> None:
    run_interpreted(__file__)


@pytest.fixture(autouse=True)
def in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter adds in the order of the columns."""
    if not INTERPRETED:
        return
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def create_dot(self: Any, a: Any, b: Any, d: Any, *others: Any) -> Any:
        left, right = (np.asarray(one.data, dtype=np.float32) for one in (a, b))
        total = np.array(d.data, dtype=np.float32)
        for column in range(left.shape[1]):
            total = total + left[:, column, None] * right[column]
        return TensorHandle(total, d.dtype.scalar)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


def draw_of(seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator)


# --- products ---------------------------------------------------------------------------------------------


def cancelling(outputs: int, columns: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A weight and a row [columns] whose product is all rounding, so that every other order of the sum shows."""
    draw = draw_of(0)
    half, states = 16 * draw(outputs, columns // 2), 16 * draw(columns // 2)
    order = torch.randperm(columns, generator=torch.Generator().manual_seed(0))
    weight = torch.cat((half, -half), 1)[:, order].to(DEVICE, dtype)
    return weight, torch.cat((states, states))[order].to(DEVICE, dtype)


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("outputs", "columns", "splits"), [(40, 512, 4), (65, 200, 2), (8448, 128, 1)])
def test_a_row_of_a_product_is_the_same_wherever_it_stands(
    outputs: int, columns: int, splits: int, dtype: torch.dtype
) -> None:
    from slipstream.actors.executor.model.products import fixed_order as kernels

    assert kernels.splits_of(outputs, columns)[0] == splits
    if INTERPRETED and outputs > 1000:
        pytest.skip("too large for the interpreter")
    weight, row = cancelling(outputs, columns, dtype)
    bias = draw_of(1)(outputs).to(DEVICE, dtype)
    expected = kernels.product(row[None], weight, None)
    assert bool(expected.any()), "nothing is left of the sums that could differ"
    with_bias = kernels.product(row[None], weight, bias)
    draw, states, place = draw_of(2), row[None], 0
    for rows in (3, 16, 40, 300):
        for place in {0, rows - 1}:
            states = draw(rows, columns).to(DEVICE, dtype)
            states[place] = row
            assert torch.equal(kernels.product(states, weight, None)[place], expected[0]), (rows, place)
    assert torch.equal(kernels.product(states, weight, bias)[place], with_bias[0])
    assert not bool(arrivals("fixed order", 1, weight.device).any())


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 20, 260])
def test_a_product_is_that_of_torch(rows: int, dtype: torch.dtype) -> None:
    from slipstream.actors.executor.model.products.fixed_order import product

    draw = draw_of(3)
    states, weight, bias = (draw(*shape).to(DEVICE, dtype) for shape in ((rows, 300), (70, 300), (70,)))
    expected = torch.nn.functional.linear(states.double(), weight.double(), bias.double())
    error = (product(states, weight, bias).double() - expected).abs().max() / expected.abs().max()
    assert float(error) < {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]


@needs_kernels
def test_a_split_that_is_cut_by_the_number_of_rows_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from slipstream.actors.executor.model.products import fixed_order as kernels

    weight, row = cancelling(40, 512, torch.float32)
    expected = kernels.product(row[None], weight, None)
    monkeypatch.setattr(kernels, "splits_of", lambda outputs, columns: (2, 256))
    assert not torch.equal(kernels.product(row[None], weight, None), expected)


# --- attention --------------------------------------------------------------------------------------------

SIZE, BLOCKS, SLOTS = 4, 10, 2
LENGTH = SIZE * BLOCKS - 3


class Texts:
    """Some sequences with their queries, keys and values, and a cache that they are written to step by step."""

    def __init__(self, group: int, dims: int, value_dims: int, dtype: torch.dtype, *, fp8: bool) -> None:
        draw = draw_of(4)
        shape = (SLOTS, LENGTH, 2)
        self.query = draw(SLOTS, LENGTH, 2 * group, dims).to(DEVICE, dtype)
        self.key, self.value = (draw(*shape, size).to(DEVICE, dtype) for size in (dims, value_dims))
        self.sinks = draw(2 * group).to(DEVICE, dtype)
        self.table = torch.randperm(SLOTS * BLOCKS, generator=torch.Generator().manual_seed(5))
        self.table = (1 + self.table).view(SLOTS, BLOCKS).int().to(DEVICE)
        self.fp8 = fp8

    def cache(self) -> KVCache:
        dtype = FP8 if self.fp8 else self.query.dtype
        pools = [
            torch.zeros(1 + SLOTS * BLOCKS, SIZE, *states.shape[2:], device=DEVICE).to(dtype)
            for states in (self.key, self.value)
        ]
        scales = [LayerScales(*(torch.full((2,), 2.0**-5, device=DEVICE) for _ in range(2)))]
        return KVCache(SIZE, [pools[0]], [pools[1]], scales if self.fp8 else None)

    def attended(self, backend: Any, steps: Iterator[list[int]], **how: Any) -> Tensor:
        """What all tokens are given [slots, LENGTH, Hq, Dv]; a step is how many tokens of each it computes."""
        cache, done = self.cache(), [0] * SLOTS
        found = torch.zeros(*self.query.shape[:3], self.value.shape[3], dtype=self.query.dtype, device=DEVICE)
        for step in steps:
            slots = [slot for slot in range(SLOTS) if step[slot]]
            where = [(slot, at) for slot in slots for at in range(done[slot], done[slot] + step[slot])]
            slot, position = torch.tensor(where, device=DEVICE).unbind(1)
            starts = [sum(step[slot] for slot in slots[:n]) for n in range(len(slots) + 1)]
            after = [done[slot] + step[slot] for slot in slots]
            batch = PagedBatch(
                cache=cache,
                rows=torch.tensor(slots, device=DEVICE),
                kv_lens=torch.tensor(after, dtype=torch.int32, device=DEVICE),
                query_start=torch.tensor(starts, dtype=torch.int32, device=DEVICE),
                write_index=self.table[slot, position // SIZE].long() * SIZE + position % SIZE,
                block_table=self.table,
                decode_only=all(step[slot] == 1 for slot in slots),
                max_kv_len=max(after),
            )
            rows = (states[slot, position] for states in (self.query, self.key, self.value))
            found[slot, position] = backend(*rows, 0, batch, scale=0.3, **how)
            done = [at + count for at, count in zip(done, step, strict=True)]
        return found


def random_steps(seed: int) -> Iterator[list[int]]:
    rng = random.Random(seed)
    left = [LENGTH] * SLOTS
    while any(left):
        step = [min(most, rng.choice((0, 1, 5, 12, 30))) for most in left]
        if any(step):
            yield step
        left = [most - count for most, count in zip(left, step, strict=True)]


def ends(last: int) -> Iterator[list[int]]:
    """Whole texts at once but for their ``last`` tokens, which decode."""
    yield [LENGTH - last] * SLOTS
    for _ in range(last):
        yield [1] * SLOTS


@needs_kernels
@pytest.mark.parametrize(
    ("kind", "group", "dims", "value_dims", "dtype"),
    [
        ("plain", 3, 16, 16, torch.float32),
        ("window", 1, 16, 32, torch.float16),
        ("chunks", 2, 16, 16, torch.float32),
        ("softcap and sinks", 4, 16, 16, torch.float32),
        ("fp8", 2, 16, 16, torch.float16),
    ],
)
def test_a_token_is_given_the_same_however_its_text_is_cut_and_whoever_is_beside_it(
    kind: str, group: int, dims: int, value_dims: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slipstream.actors.executor.attention import triton_partition
    from slipstream.actors.executor.attention.triton_backend import TritonAttention

    how: dict[str, Any] = {}
    texts = Texts(group, dims, value_dims, dtype, fp8=kind == "fp8")
    if kind in ("window", "softcap and sinks"):
        how["sliding_window"] = 19
    if kind == "chunks":
        how["attention_chunk"] = 12
    if kind == "softcap and sinks":
        how |= {"softcap": 3.0, "sinks": texts.sinks}
    backend = small()
    expected = texts.attended(backend, random_steps(0), **how)
    usual = texts.attended(TritonAttention(), ends(2), **how)
    torch.testing.assert_close(
        expected.float(), usual.float(), atol=1e-5 if dtype == torch.float32 else 5e-3, rtol=0
    )
    assert torch.equal(texts.attended(backend, ends(2), **how)[:, -2:], expected[:, -2:])
    # Rows that decode, though they are many: one program goes through all parts.
    monkeypatch.setattr(triton_partition, "MAX_FIXED", 1)
    assert torch.equal(texts.attended(backend, ends(2), **how)[:, -2:], expected[:, -2:])


def small() -> Any:
    """With several parts and several tiles even in short texts."""
    from slipstream.actors.executor.attention.triton_invariant import InvariantTritonAttention, LaunchConfig

    backend = InvariantTritonAttention()
    backend.least_split = 16
    backend.keys = dict.fromkeys((1, 2, 4), 16)
    backend.several = LaunchConfig(16, 4, 2)
    return backend


@needs_kernels
def test_parts_that_the_load_decides_are_seen() -> None:
    texts = Texts(2, 16, 16, torch.float32, fp8=False)
    backend = small()
    expected = texts.attended(backend, ends(1))
    backend.least_split = 32
    assert not torch.equal(texts.attended(backend, ends(1)), expected)


@needs_kernels
def test_any_number_of_rows_has_a_tile() -> None:
    from slipstream.actors.executor.model.products.fixed_order import launch_config

    for rows in range(1, 600):
        config = launch_config(rows, 2, 1 << 17)
        assert config.rows >= rows or config.rows == 128
