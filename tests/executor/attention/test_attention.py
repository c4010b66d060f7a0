"""The torch attention backend against attention written out in float64, one query at a time."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import pytest
import torch
from slipstream.actors.executor.attention import backend as attention
from slipstream.actors.executor.attention import torch_backend
from slipstream.actors.executor.cache.kv_cache import KVCache
from slipstream.actors.executor.cache.paged_batch import PagedBatch
from slipstream.protocol.errors import InvalidRequest
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

torch.set_num_threads(1)


@dataclass
class Case:
    """A random step: rows of no, one and many tokens in any order, over a cache of random earlier tokens."""

    batch: PagedBatch
    query: Tensor
    key: Tensor
    value: Tensor
    spans: list[tuple[int, int]]
    """(positions before this step, tokens of this step) of each row."""
    histories: list[tuple[Tensor, Tensor]]
    """All keys [kv_len, Hkv, D] and values of each row, this step's included."""


def make_case(draw: random.Random, dtype: torch.dtype = torch.float32) -> Case:
    torch.manual_seed(draw.randrange(1 << 30))
    block_size = draw.choice([1, 4, 16])
    kv_heads, group = draw.choice([1, 2, 3]), draw.choice([1, 2, 4])
    key_dim, value_dim = draw.choice([(8, 8), (12, 6), (16, 16)])
    spans = [(draw.randint(0, 40), 1) for _ in range(draw.randint(0, 5))]
    if draw.random() < 0.6:
        spans += [
            (draw.choice([0, 0, draw.randint(1, 40)]), draw.randint(1, 20)) for _ in range(draw.randint(0, 3))
        ]
        spans += [(draw.randint(1, 9), 0) for _ in range(draw.randint(0, 2))]
        draw.shuffle(spans)
        if draw.random() < 0.5:
            spans += spans[-1:] * 2  # neighbours of one shape
    if not any(tokens for _, tokens in spans):
        spans = [(5, 1)]
    decode_only = all(tokens == 1 for _, tokens in spans)
    spare = 0 if decode_only else draw.choice([0, 3])

    slots = draw.sample(range(len(spans) + 3), len(spans))
    width = -(-max(before + tokens for before, tokens in spans) // block_size) + draw.randint(0, 2)
    num_blocks = 1 + (len(spans) + 3) * width
    free = list(range(1, num_blocks))
    draw.shuffle(free)
    table = torch.zeros((len(spans) + 3, width), dtype=torch.int32)
    cache = KVCache(
        block_size,
        [torch.randn(num_blocks, block_size, kv_heads, key_dim, dtype=dtype) for _ in range(2)],
        [torch.randn(num_blocks, block_size, kv_heads, value_dim, dtype=dtype) for _ in range(2)],
    )
    total = sum(tokens for _, tokens in spans) + spare
    query = torch.randn(total, kv_heads * group, key_dim, dtype=dtype)
    key = torch.randn(total, kv_heads, key_dim, dtype=dtype)
    value = torch.randn(total, kv_heads, value_dim, dtype=dtype)

    write_index, starts, histories = [], [0], []
    for slot, (before, tokens) in zip(slots, spans, strict=True):
        used = -(-(before + tokens) // block_size)
        table[slot, :used] = torch.tensor([free.pop() for _ in range(used)])
        where = [
            int(table[slot, at // block_size]) * block_size + at % block_size for at in range(before + tokens)
        ]
        write_index += where[before:]
        fresh = slice(starts[-1], starts[-1] + tokens)
        starts.append(fresh.stop)
        past = [pool[1].flatten(0, 1)[where[:before]] for pool in (cache.keys, cache.values)]
        histories.append((torch.cat((past[0], key[fresh])), torch.cat((past[1], value[fresh]))))
    batch = PagedBatch(
        cache=cache,
        rows=torch.tensor(slots),
        kv_lens=torch.tensor([before + tokens for before, tokens in spans], dtype=torch.int32),
        query_start=torch.tensor(starts, dtype=torch.int32),
        write_index=torch.tensor([*write_index, *[0] * spare]),
        block_table=table,
        decode_only=decode_only,
        max_kv_len=min(
            max((before + 1 for before, tokens in spans if tokens == 1), default=0) + draw.randint(0, 9),
            width * block_size,
        ),
    )
    return Case(batch, query, key, value, spans, histories)


def reference(
    case: Case,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
    chunk: int | None = None,
) -> Tensor:
    heads, kv_heads = case.query.shape[1], case.key.shape[1]
    output, token = [], 0
    for (before, tokens), (keys, values) in zip(case.spans, case.histories, strict=True):
        for at in range(before, before + tokens):
            oldest = 0 if window is None else max(0, at - window + 1)
            if chunk is not None:
                oldest = at - at % chunk
            for head in range(heads):
                of = head * kv_heads // heads
                scores = keys[oldest : at + 1, of].double() @ case.query[token, head].double() * scale
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                if sinks is not None:
                    scores = torch.cat((scores, sinks[head].double()[None]))
                weights = scores.softmax(0)[: at + 1 - oldest]
                output.append(weights @ values[oldest : at + 1, of].double())
            token += 1
    spare = [torch.zeros_like(output[0])] * ((len(case.query) - token) * heads)
    return torch.stack(output + spare).view(len(case.query), heads, -1)


def attend(case: Case, **options: object) -> Tensor:
    given = dict(scale=0.3, sliding_window=None, softcap=None, sinks=None) | options
    return attention.create("torch")(case.query, case.key, case.value, 1, case.batch, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(160))
def test_equals_attention_in_float64(seed: int) -> None:
    draw = random.Random(seed)
    case = make_case(draw)
    window = draw.choice([None, None, 1, 2, 5, 16, 100])
    softcap = draw.choice([None, None, 1.5])
    sinks = draw.choice([None, None, torch.randn(case.query.shape[1])])
    found = attend(case, sliding_window=window, softcap=softcap, sinks=sinks)
    expected = reference(case, 0.3, window, softcap, sinks)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 4, 5, 16, 30, 100])
@pytest.mark.parametrize("seed", range(12))
def test_attention_within_chunks_equals_that_in_float64(seed: int, chunk: int) -> None:
    case = make_case(random.Random(seed))
    expected = reference(case, 0.3, None, None, None, chunk)
    torch.testing.assert_close(attend(case, attention_chunk=chunk).double(), expected, rtol=1e-5, atol=1e-5)


def test_memory_limits_split_the_work_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(20):
        case = make_case(random.Random(seed))
        options = dict(sliding_window=None, softcap=1.5 if seed % 2 else None)
        whole = attend(case, **options)
        with monkeypatch.context() as small:
            small.setattr(torch_backend, "CPU_GATHER_BYTES", 1)
            small.setattr(torch_backend, "SCORE_BYTES", 1)
            torch.testing.assert_close(attend(case, **options), whole, rtol=1e-5, atol=1e-5)


def test_bfloat16() -> None:
    case = make_case(random.Random(4), torch.bfloat16)
    torch.testing.assert_close(
        attend(case).double(), reference(case, 0.3, None, None, None), rtol=3e-2, atol=3e-2
    )


def test_a_second_step_with_the_same_tensors_sees_their_new_contents() -> None:
    backend = attention.create("torch")
    draw = random.Random(1)
    case = next(
        case for case in iter(lambda: make_case(draw), None) if case.spans[0][0] > 1 and case.spans[0][1] == 1
    )
    options = dict(scale=0.3, sliding_window=None, softcap=None, sinks=None)
    inputs = (case.query, case.key, case.value)
    for layer in (0, 1):
        before = backend(*inputs, layer, case.batch, **options)  # type: ignore[arg-type]
    case.batch.kv_lens[0] -= 1
    for layer in (0, 1):
        after = backend(*inputs, layer, case.batch, **options)  # type: ignore[arg-type]
    assert not torch.equal(before[0], after[0])
    assert torch.equal(before[1:], after[1:])


def test_another_batch_is_another_step_whichever_layer_comes_first() -> None:
    """A model whose first layer does not attend never calls with layer 0."""
    options = dict(scale=0.3, sliding_window=None, softcap=None, sinks=None)
    draw = random.Random(3)
    backend = attention.create("torch")
    for _ in range(6):
        case = make_case(draw)
        found = backend(case.query, case.key, case.value, 1, case.batch, **options)  # type: ignore[arg-type]
        torch.testing.assert_close(
            found.double(), reference(case, 0.3, None, None, None), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("options", [{}, {"softcap": 2.0}])
def test_what_is_not_finite_stays_in_its_own_row(options: dict[str, float]) -> None:
    """A sick row leaves nothing in its blocks that a later row, reading past its end, would suffer from."""
    case = make_case(random.Random(2))
    healthy = attend(case, **options)
    well = case.key.clone(), case.value.clone()
    for states in (case.key, case.value):
        states[:] = float("nan")
    attend(case, **options)
    case.key, case.value = well
    assert all(pool.isfinite().all() for pool in (*case.batch.cache.keys, *case.batch.cache.values))
    torch.testing.assert_close(attend(case, **options), healthy)


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("decode_only", [True, False])
@pytest.mark.parametrize("name", ["torch", "triton"])
def test_what_a_graph_may_hold_reads_nothing_on_the_host(
    name: str, decode_only: bool, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the host reads at the capture is the same in every replay. Fake tensors have no numbers to be read."""
    if name == "triton":
        pytest.importorskip("triton")
        from slipstream.actors.executor.attention import triton_backend, triton_partition, triton_write

        for module, kernel in [
            (triton_write, "write_kernel"),
            (triton_partition, "partition_kernel"),
            (triton_backend, "attend_kernel"),
        ]:
            monkeypatch.setattr(module, kernel, _NoKernel())
        monkeypatch.setattr(triton_backend, "interpreted", lambda: True)  # for the check that there is a GPU
    backend = attention.create(name)
    rows, tokens = (4, 4) if decode_only else (4, 50)
    with FakeTensorMode():
        batch = PagedBatch(
            cache=KVCache(16, [torch.empty(30, 16, 2, 32)] * 2, [torch.empty(30, 16, 2, 32)] * 2),
            rows=torch.empty(rows, dtype=torch.int64),
            kv_lens=torch.empty(rows, dtype=torch.int32),
            query_start=torch.empty(rows + 1, dtype=torch.int32),
            write_index=torch.empty(tokens, dtype=torch.int64),
            block_table=torch.empty(8, 20, dtype=torch.int32),
            decode_only=decode_only,
            max_kv_len=300,
        )
        query, key, value = (torch.empty(tokens, heads, 32) for heads in (4, 2, 2))
        options = dict(scale=1.0, sliding_window=window, softcap=None, sinks=None)
        expected = (
            nullcontext()
            if decode_only or backend.capturable
            else pytest.raises(DataDependentOutputException)
        )
        with expected:
            for layer in (0, 1):
                out = backend(query, key, value, layer, batch, **options)  # type: ignore[arg-type]
                assert out.shape == (tokens, 4, 32)


class _NoKernel:
    """A kernel that computes nothing."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *arguments, **constants: None


def test_unknown_backend_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidRequest, match=r"'warp'.*torch"):
        attention.create("warp")


def test_registered_backend_is_found() -> None:
    attention.register("mine", torch_backend.TorchAttention)
    try:
        assert "mine" in attention.names()
        assert attention.create("mine").name == "torch"
    finally:
        del attention._factories["mine"]
