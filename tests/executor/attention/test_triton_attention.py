"""The Triton kernels against plain attention in float64."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from covering import few_of
from interpreter import (
    DEVICE,
    INTERPRETED,
    KERNELS_RUN,
    needs_interpreter,
    run_interpreted,
)
from slipstream.actors.executor.cache.kv_cache import KVCache, LayerScales
from slipstream.actors.executor.cache.paged_batch import PagedBatch
from slipstream.actors.executor.devices.float8 import FP8, FP8_MAX
from torch import Tensor

DTYPES = [torch.float32, torch.float16] + ([] if INTERPRETED else [torch.bfloat16])
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}


@needs_interpreter
def test_under_the_interpreter(selection: list[str]) -> None:
    run_interpreted(__file__, selection)


@dataclass(frozen=True)
class Case:
    """One step: the shapes of the model and what each row does in it."""

    decode: tuple[int, ...] = ()
    """Context of each row that decodes, its new token included; 0: a padding row."""
    prefill: tuple[tuple[int, int], ...] = ()
    """(tokens, context) of each row that prefills a chunk."""
    empty_rows: int = 0
    """Rows without tokens, in the null slot; a mixed step has them at its end, and some between the others."""
    spare_tokens: int = 0
    """Tokens at the end that belong to no row."""
    shuffled: bool = False
    """The rows come in any order, as a mixed step has them."""
    query_heads: int = 4
    kv_heads: int = 2
    key_dim: int = 32
    value_dim: int = 32
    block_size: int = 16
    window: int | None = None
    chunk: int | None = None
    softcap: float | None = None
    sinks: bool = False
    dtype: torch.dtype = torch.float32
    fp8: bool = False
    """The cache takes a byte a number."""
    target: int | None = None
    """Items per head that a step is divided into, so that keys come in parts. None: as many as the device wants."""
    tile: int | None = 16
    """Keys per step of the kernels; small, so that short contexts take many steps. None: production's."""
    queries: int = 16
    """Of a tile of the rows with several tokens, where ``tile`` is given."""
    seed: int = 0


def check(case: Case) -> None:
    """Run ``case`` on a cache with blocks in random order, and compare every row with plain attention."""
    from slipstream.actors.executor.attention import triton_backend, triton_partition

    rng = random.Random(case.seed)
    torch.manual_seed(case.seed)
    work = [(1, max(kv_len, 1)) for kv_len in case.decode] + list(case.prefill)
    padding_rows = {row for row, kv_len in enumerate(case.decode) if kv_len == 0}
    if case.shuffled:
        assert not padding_rows
        work += [(0, rng.randint(1, 50)) for _ in range(case.empty_rows)]
        rng.shuffle(work)
    else:
        work += [(0, 1)] * case.empty_rows
    used = sum(count for count, _ in work)
    tokens = used + case.spare_tokens
    # What a row must not read is NaN: blocks of nobody, and the rest of its own last block.
    size = case.block_size
    needed = [-(-kv_len // size) for _, kv_len in work]
    blocks = list(range(1, 1 + sum(needed) + 3))
    rng.shuffle(blocks)
    slots = rng.sample(range(len(work) + 2), len(work))
    table = torch.full((len(work) + 2, max(needed) + 2), 10**6, dtype=torch.int32)
    shape, in_cache = (len(blocks) + 1, size, case.kv_heads), FP8 if case.fp8 else case.dtype
    keys = torch.full((*shape, case.key_dim), float("nan")).to(in_cache)
    values = torch.full((*shape, case.value_dim), float("nan")).to(in_cache)
    scales = None
    if case.fp8:
        heads = torch.arange(case.kv_heads)
        scales = LayerScales(0.25 * 2.0**heads, 2.0 ** (-heads))

    def stored(states: Tensor, scale: Tensor | None) -> Tensor:
        """What the cache holds of ``states``."""
        if scale is None:
            return states
        return (states.float() / scale.cpu()[:, None]).clamp(-FP8_MAX, FP8_MAX).to(FP8)

    def seen(states: Tensor, scale: Tensor | None) -> Tensor:
        """What attention gets back of ``states``."""
        return states if scale is None else stored(states, scale).float() * scale.cpu()[:, None]

    key_scale, value_scale = (None, None) if scales is None else (scales.keys, scales.values)
    # Views of one packed projection, as a model with fused weights hands them over.
    head_dim = case.query_heads * case.key_dim
    packed = torch.randn(tokens, head_dim + case.kv_heads * (case.key_dim + case.value_dim)).to(case.dtype)
    query, key, value = packed.to(DEVICE).split(
        [head_dim, case.kv_heads * case.key_dim, case.kv_heads * case.value_dim], dim=1
    )
    query, key, value = (
        query.unflatten(1, (case.query_heads, -1)),
        key.unflatten(1, (case.kv_heads, -1)),
        value.unflatten(1, (case.kv_heads, -1)),
    )
    if case.fp8 and INTERPRETED:
        # Where rounding carries into the exponent, the interpreter loses it: new states that need no rounding.
        key.copy_(seen(key, key_scale))
        value.copy_(seen(value, value_scale))
    sinks = torch.randn(case.query_heads) * 2 if case.sinks else None

    context: list[tuple[Tensor, Tensor]] = []
    write_index: list[int] = []
    start = 0
    for row, (count, kv_len) in enumerate(work):
        padding = row in padding_rows or count == 0
        mine = [0] if padding else [blocks.pop() for _ in range(needed[row])]
        if count == 0:
            context.append((key[:0].cpu(), value[:0].cpu()))
            continue
        table[slots[row], : len(mine)] = torch.tensor(mine)
        place = [mine[pos // size] * size + pos % size for pos in range(kv_len)]
        k = torch.randn(kv_len, case.kv_heads, case.key_dim).to(case.dtype)
        v = torch.randn(kv_len, case.kv_heads, case.value_dim).to(case.dtype)
        k[kv_len - count :] = key[start : start + count].cpu()
        v[kv_len - count :] = value[start : start + count].cpu()
        old = place[: kv_len - count]
        bits(keys).flatten(0, 1)[old] = bits(stored(k[: kv_len - count], key_scale))
        bits(values).flatten(0, 1)[old] = bits(stored(v[: kv_len - count], value_scale))
        write_index += place[kv_len - count :]
        context.append((seen(k, key_scale), seen(v, value_scale)))
        start += count

    write_index += [0] * case.spare_tokens
    starts = [sum(count for count, _ in work[:row]) for row in range(len(work) + 1)]
    batch = PagedBatch(
        cache=KVCache(
            size,
            [keys.to(DEVICE)],
            [values.to(DEVICE)],
            None if scales is None else [LayerScales(scales.keys.to(DEVICE), scales.values.to(DEVICE))],
        ),
        rows=torch.tensor(slots, device=DEVICE),
        kv_lens=torch.tensor(
            [0 if row in padding_rows else kv_len for row, (_, kv_len) in enumerate(work)],
            dtype=torch.int32,
            device=DEVICE,
        ),
        query_start=torch.tensor(starts, dtype=torch.int32, device=DEVICE),
        write_index=torch.tensor(write_index, device=DEVICE),
        block_table=table.to(DEVICE),
        decode_only=tokens == len(work) and all(count == 1 for count, _ in work),
        max_kv_len=max((kv_len for count, kv_len in work if count == 1), default=0),
    )
    scale = case.key_dim**-0.5
    with pytest.MonkeyPatch.context() as patch:
        if case.target is not None:
            # As finely as is allowed, whatever it costs.
            patch.setattr(triton_backend, "WAVES", case.target * case.kv_heads)
            patch.setattr(triton_partition, "OVERHEAD", -1e6)
        if case.tile is not None:
            config = triton_backend.LaunchConfig(
                max(case.queries, triton_backend.pad(case.query_heads // case.kv_heads)),
                case.tile,
                warps=4,
                stages=2,
                resident=1,
                least=case.tile,
            )
            patch.setattr(triton_backend, "launch_config", lambda *_: config)
        out = triton_backend.TritonAttention()(
            query,
            key,
            value,
            0,
            batch,
            scale=scale,
            sliding_window=case.window,
            attention_chunk=case.chunk,
            softcap=case.softcap,
            sinks=sinks.to(DEVICE) if sinks is not None else None,
        )

    assert out.shape == (tokens, case.query_heads, case.value_dim)
    assert out.dtype == case.dtype
    for cached, new, of_heads in (
        (batch.cache.keys[0], key, key_scale),
        (batch.cache.values[0], value, value_scale),
    ):
        live = [at for at in range(used) if write_index[at] >= size]  # padding rows overwrite each other
        found = bits(cached).flatten(0, 1)[batch.write_index[live]].cpu()
        assert torch.equal(found, bits(stored(new[live].cpu(), of_heads)))
    for row, (k, v) in enumerate(context):
        got = out[starts[row] : starts[row + 1]].double().cpu()
        if row in padding_rows:
            assert torch.equal(got, torch.zeros_like(got))
            continue
        if not len(got):
            continue
        q = query[starts[row] : starts[row + 1]].cpu()
        expected = plain_attention(q, k, v, scale, case.window, case.softcap, sinks, case.chunk)
        error = (got - expected).abs().max() / expected.abs().max()
        tolerance = max(TOLERANCE[case.dtype], TOLERANCE[torch.float16] if case.fp8 else 0.0)
        assert error < tolerance, f"row {row} of {case}: error {error:.2e}"
    assert torch.equal(out[used:], torch.zeros_like(out[used:]))


def bits(states: Tensor) -> Tensor:
    """``states``, or of numbers of a byte their bits, which torch can compare and copy by index."""
    return states.view(torch.uint8) if states.dtype == FP8 else states


def plain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
    chunk: int | None,
) -> Tensor:
    """``[count, Hq, DV]`` in float64, for the last ``count`` positions of one sequence."""
    count, kv_len = len(query), len(key)
    group = query.shape[1] // key.shape[1]
    key, value = (t.double().repeat_interleave(group, dim=1) for t in (key, value))
    score = torch.einsum("qhd,khd->hqk", query.double(), key) * scale
    if softcap is not None:
        score = softcap * torch.tanh(score / softcap)
    at, to = torch.arange(kv_len - count, kv_len)[:, None], torch.arange(kv_len)[None, :]
    hidden = to > at
    if window is not None:
        hidden |= to <= at - window
    if chunk is not None:
        hidden |= to // chunk != at // chunk
    score = score.masked_fill(hidden, float("-inf"))
    if sinks is not None:
        score = torch.cat([score, sinks.double()[:, None, None].expand(-1, count, 1)], dim=2)
    return torch.einsum("hqk,khd->qhd", score.softmax(dim=2)[:, :, :kv_len], value)


@pytest.mark.covering(1)
class TestKernels:
    __test__ = KERNELS_RUN

    @pytest.mark.parametrize("target", [None, 1, 2, 9, 40])
    def test_decode_at_the_borders_of_blocks(self, target: int | None) -> None:
        check(Case(decode=(1, 15, 16, 17, 31, 33, 64, 129), target=target))

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_tiles_of_production(self, dtype: torch.dtype) -> None:
        check(
            Case(
                decode=(1, 128, 129, 400),
                prefill=((150, 300),),
                key_dim=128,
                value_dim=128,
                dtype=dtype,
                tile=None,
            )
        )

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_prefill_whole_and_in_chunks(self, dtype: torch.dtype) -> None:
        check(Case(prefill=((1, 1), (17, 17), (5, 40), (64, 64), (1, 33)), dtype=dtype))

    @pytest.mark.parametrize("block_size", [1, 8, 16, 24, 32, 64, 128])
    def test_block_sizes(self, block_size: int) -> None:
        check(Case(decode=(1, 70, 128), prefill=((20, 100),), block_size=block_size, target=2))

    @pytest.mark.parametrize(("query_heads", "kv_heads"), [(1, 1), (4, 4), (6, 2), (7, 1), (20, 1), (10, 2)])
    def test_groups_of_query_heads(self, query_heads: int, kv_heads: int) -> None:
        check(Case(decode=(9, 50), prefill=((30, 41),), query_heads=query_heads, kv_heads=kv_heads, target=2))

    @pytest.mark.parametrize(
        ("key_dim", "value_dim"),
        [(16, 16), (8, 8), (80, 80), (96, 96), (192, 128), (24, 40), (256, 256), (512, 512)],
    )
    def test_head_sizes(self, key_dim: int, value_dim: int) -> None:
        check(Case(decode=(9, 50), prefill=((20, 41),), key_dim=key_dim, value_dim=value_dim, target=2))

    @pytest.mark.parametrize("chunk", [1, 7, 16, 48, 100, 1000])
    def test_attention_within_chunks_of_the_context(self, chunk: int) -> None:
        """Rows at the first and the last place of a chunk, and tiles that reach over its end."""
        check(
            Case(
                decode=(1, chunk, chunk + 1, 2 * chunk + 5, 130),
                prefill=((40, 40), (30, 95), (7, chunk + 7)),
                chunk=chunk,
                target=5,
            )
        )

    @pytest.mark.parametrize("window", [1, 7, 16, 100, 1000])
    @pytest.mark.parametrize("sinks", [False, True])
    def test_sliding_window(self, window: int, sinks: bool) -> None:
        check(
            Case(
                decode=(1, 17, 90, 130),
                prefill=((40, 40), (30, 95)),
                window=window,
                sinks=sinks,
                target=3,
            )
        )

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_softcap_and_sinks(self, dtype: torch.dtype) -> None:
        case = Case(decode=(1, 40, 90), prefill=((30, 70),), target=3, dtype=dtype)
        check(replace(case, softcap=2.0))
        check(replace(case, sinks=True))
        check(replace(case, softcap=30.0, sinks=True, window=20))

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("tile", [16, None])
    def test_a_cache_of_a_byte_a_number(self, dtype: torch.dtype, tile: int | None) -> None:
        case = Case(decode=(1, 40, 90, 0), prefill=((30, 70), (5, 5)), fp8=True, dtype=dtype, tile=tile)
        check(case)
        check(replace(case, softcap=2.0, sinks=True, target=3))
        check(replace(case, window=20, key_dim=80, value_dim=24))
        check(replace(case, key_dim=64))

    def test_what_is_too_large_for_a_byte_is_the_largest_of_its_sign(self) -> None:
        from slipstream.actors.executor.attention.triton_write import write

        key = torch.tensor([1e4, -1e4, 300.0, 0.0], device=DEVICE).view(1, 1, 4)
        keys, values = (torch.zeros(1, 16, 1, 4, device=DEVICE).to(FP8) for _ in range(2))
        one = torch.ones(1, device=DEVICE)
        write(key, key, keys, values, LayerScales(one, one), torch.tensor([3], device=DEVICE))
        for pool in (keys, values):
            assert pool[0, 3, 0].float().tolist() == [448.0, -448.0, 288.0, 0.0]

    def test_padding_rows_give_zeros_and_disturb_nobody(self) -> None:
        for target in (1, 3):
            check(Case(decode=(40, 0, 90, 0, 0), prefill=((20, 30),), target=target))

    @pytest.mark.parametrize("empty_rows", [0, 3, 300])
    @pytest.mark.parametrize("spare_tokens", [0, 1, 70])
    def test_rows_without_tokens_and_tokens_without_a_row(self, empty_rows: int, spare_tokens: int) -> None:
        case = Case(decode=(40, 1, 90), prefill=((20, 30), (2, 2), (70, 70)), target=2, shuffled=True)
        check(replace(case, empty_rows=empty_rows, spare_tokens=spare_tokens))

    @pytest.mark.parametrize("kernel", ["single", "several"])
    def test_what_is_not_finite_stays_in_its_own_row(self, kernel: str) -> None:
        from slipstream.actors.executor.attention.triton_backend import TritonAttention

        counts, kv_lens = [1, 20, 1, 20], [40, 40, 70, 70]
        table = torch.tensor([[3, 9, 1, 0, 0], [2, 7, 4, 0, 0], [5, 6, 8, 10, 11], [12, 13, 14, 15, 16]])
        starts = [0, 1, 21, 22, 42]
        places = [
            int(table[row, at // 16]) * 16 + at % 16
            for row, (count, kv_len) in enumerate(zip(counts, kv_lens, strict=True))
            for at in range(kv_len - count, kv_len)
        ]
        pools = [torch.randn(17, 16, 1, 16) for _ in range(2)]
        batch = PagedBatch(
            cache=KVCache(16, [pools[0].to(DEVICE)], [pools[1].to(DEVICE)]),
            rows=torch.arange(4, device=DEVICE),
            kv_lens=torch.tensor(kv_lens, dtype=torch.int32, device=DEVICE),
            query_start=torch.tensor(starts, dtype=torch.int32, device=DEVICE),
            write_index=torch.tensor([*places, 0, 0, 0], device=DEVICE),
            block_table=table.int().to(DEVICE),
            decode_only=False,
            max_kv_len=70,
        )
        query, key, value = (torch.randn(45, heads, 16).to(DEVICE) for heads in (2, 1, 1))
        healthy = TritonAttention()(query, key, value, 0, batch, scale=0.25)
        sick = 0 if kernel == "single" else 1
        new = slice(starts[sick], starts[sick + 1])
        for states in (query, key, value):
            states[new] = float("nan")
            states[starts[-1] :] = float("nan")  # the tokens without a row, which go to the null block
        for pool in (batch.cache.keys[0], batch.cache.values[0]):
            pool[batch.block_table[sick].long()] = float("inf")  # with the null block, where the table ends
        found = TritonAttention()(query, key, value, 0, batch, scale=0.25)
        well = [token for token in range(45) if token not in range(new.start, new.stop)]
        assert torch.equal(found[well], healthy[well])
        assert not found[starts[-1] :].any()

    def test_a_step_of_nothing_but_padding(self) -> None:
        check(Case(empty_rows=2, spare_tokens=5))

    @pytest.mark.parametrize("seed", few_of(range(24), *range(8)))
    def test_random_steps(self, seed: int) -> None:
        rng = random.Random(seed)
        group, kv_heads = rng.choice([1, 2, 3, 4, 8]), rng.choice([1, 2, 3])
        key_dim = rng.choice([16, 32, 48, 64, 80, 128])
        prefill = []
        for _ in range(rng.randrange(3)):
            kv_len = rng.randint(1, 120)
            prefill.append((rng.randint(1, kv_len), kv_len))
        decode = [
            rng.choice([0, 1, rng.randint(2, 150)]) for _ in range(rng.randrange(0 if prefill else 1, 4))
        ]
        check(
            Case(
                decode=tuple(decode),
                prefill=tuple(prefill),
                query_heads=group * kv_heads,
                kv_heads=kv_heads,
                key_dim=key_dim,
                value_dim=rng.choice([key_dim, key_dim, 32]),
                block_size=rng.choice([16, 32, 64, 256]),
                window=(width := rng.choice([None, None, rng.randint(1, 80)])),
                chunk=rng.randint(1, 80) if width is None and rng.random() < 0.5 else None,
                softcap=rng.choice([None, None, 5.0]),
                sinks=rng.random() < 0.3,
                dtype=rng.choice(DTYPES),
                target=rng.choice([None, 1, 2, 3, 7]),
                tile=rng.choice([None, 16, 32]),
                empty_rows=rng.choice([0, 0, 5]),
                spare_tokens=rng.choice([0, 0, 9]),
                shuffled=0 not in decode,
                seed=seed,
            )
        )

    def test_wrong_shapes_are_refused(self) -> None:
        from slipstream.actors.executor.attention.triton_backend import TritonAttention

        cache = KVCache(16, [torch.zeros(2, 16, 2, 32)], [torch.zeros(2, 16, 2, 32)])
        none = torch.zeros(0, dtype=torch.int64)
        batch = PagedBatch(cache, none, none, none, none, none, True, 0)
        attend = TritonAttention()
        kv = torch.zeros(1, 2, 32)
        with pytest.raises(ValueError, match="do not match"):
            attend(torch.zeros(1, 3, 32), kv, kv, 0, batch, scale=1.0)
        with pytest.raises(ValueError, match="do not match"):
            attend(torch.zeros(1, 4, 48), kv, kv, 0, batch, scale=1.0)


@pytest.mark.skipif(not KERNELS_RUN, reason="needs a CUDA device or the interpreter")
@pytest.mark.parametrize(("decode_only", "chunk"), [(True, None), (False, None), (True, 24), (False, 24)])
def test_a_graph_follows_what_is_in_its_tensors(
    decode_only: bool, chunk: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Captured once with the tensors and bounds of a bucket, and replayed over other rows, lengths and tokens.

    On a CPU the launches of the capture take the place of the graph: the same kernels with the same arguments, and
    before each replay, whatever memory the graph took for itself is overwritten, as by another graph of its pool.
    """
    from slipstream.actors.executor.attention import triton_backend, triton_partition

    config = triton_backend.LaunchConfig(16, 16, warps=4, stages=2, resident=5, least=16)
    monkeypatch.setattr(triton_backend, "launch_config", lambda *_: config)
    monkeypatch.setattr(triton_partition, "OVERHEAD", -1e6)  # as many parts as are allowed
    draw = random.Random(0)
    slots, bound, size, heads, dim = 4, 160, 16, 2, 32
    rows, tokens = (slots, slots) if decode_only else (slots + 2, 50)
    dtype = torch.float32
    table = torch.randperm(slots * bound // size).add(1).view(slots, -1)
    table = torch.cat([table, torch.zeros_like(table[:1])]).int()  # the null slot
    pools = [torch.randn(slots * bound // size + 1, size, heads, dim, dtype=dtype) for _ in range(2)]
    batch = PagedBatch(
        cache=KVCache(size, [pools[0].to(DEVICE)], [pools[1].to(DEVICE)]),
        rows=torch.full((rows,), slots, device=DEVICE),
        kv_lens=torch.ones(rows, dtype=torch.int32, device=DEVICE),
        query_start=torch.zeros(rows + 1, dtype=torch.int32, device=DEVICE),
        write_index=torch.zeros(tokens, dtype=torch.int64, device=DEVICE),
        block_table=table.to(DEVICE),
        decode_only=decode_only,
        max_kv_len=bound,
    )
    query, key, value = (torch.randn(tokens, n * heads, dim, dtype=dtype).to(DEVICE) for n in (2, 1, 1))
    attend = triton_backend.TritonAttention()
    if decode_only:
        batch.query_start.copy_(torch.arange(rows + 1))

    def step() -> Tensor:
        return attend(query, key, value, 0, batch, scale=dim**-0.5, attention_chunk=chunk)

    inputs = [query, key, value, batch.rows, batch.kv_lens, batch.query_start, batch.write_index]
    inputs += [batch.block_table, batch.cache.keys[0], batch.cache.values[0]]
    replay = capture(step, inputs, monkeypatch)
    for _ in range(4):
        spans = [(draw.randrange(slots), 1) for _ in range(draw.randint(1, rows))]
        if not decode_only:
            spans = [(slot, draw.choice([0, 1, 1, 9, 30])) for slot in draw.sample(range(slots), slots)]
            while sum(count for _, count in spans) > tokens:
                spans.pop()
        else:
            spans = [(slot, 1) for slot in draw.sample(range(slots), len(spans))]
        lengths = [draw.randint(max(count, 1), bound) for _, count in spans]
        padding = rows - len(spans)
        counts = [count for _, count in spans] + [int(decode_only)] * padding
        batch.rows.copy_(torch.tensor([slot for slot, _ in spans] + [slots] * padding))
        batch.kv_lens.copy_(torch.tensor(lengths + [1] * padding))
        batch.query_start[1:] = torch.tensor(counts).cumsum(0).int().to(DEVICE)
        places = [
            int(table[slot, at // size]) * size + at % size
            for (slot, count), kv_len in zip(spans, lengths, strict=True)
            for at in range(kv_len - count, kv_len)
        ]
        batch.write_index.copy_(torch.tensor(places + [0] * (tokens - len(places))))
        for states in (query, key, value):
            states.normal_()
        replayed = replay().double().cpu()
        for row, ((slot, count), kv_len) in enumerate(zip(spans, lengths, strict=True)):
            start = int(batch.query_start[row])
            k, v = (
                pool[0][batch.block_table[slot].long()].flatten(0, 1)[:kv_len].cpu()
                for pool in (batch.cache.keys, batch.cache.values)
            )
            q = query[start : start + count].cpu()
            expected = plain_attention(q, k, v, dim**-0.5, None, None, None, chunk)
            torch.testing.assert_close(replayed[start : start + count], expected, rtol=1e-5, atol=1e-5)
        assert replayed.isfinite().all()
        if not decode_only:
            assert not replayed[len(places) :].any()


def capture(
    step: Callable[[], Tensor], inputs: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Tensor]:
    """Something that does anew what ``step`` launched, and returns the tensor that ``step`` returned."""
    if DEVICE.type == "cuda":
        step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = step()
        return lambda: (graph.replay(), out)[1]

    from slipstream.actors.executor.attention import triton_backend, triton_partition, triton_write

    launches: list[tuple[Any, Any, tuple[Any, ...], dict[str, Any]]] = []
    kernels = [
        (triton_partition, "partition_kernel"),
        (triton_write, "write_kernel"),
        (triton_backend, "attend_kernel"),
    ]
    with monkeypatch.context() as patch:
        for module, name in kernels:
            patch.setattr(module, name, Recorded(getattr(module, name), launches))
        out = step()
    assert len(launches) >= 3
    given = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    own = [
        argument
        for _, _, arguments, _ in launches
        for argument in arguments
        if isinstance(argument, Tensor) and argument.untyped_storage().data_ptr() not in given
    ]
    assert any(tensor is out for tensor in own)

    def replay() -> Tensor:
        for tensor in own:
            tensor.fill_(float("nan") if tensor.is_floating_point() else 1)
        for kernel, grid, arguments, constants in launches:
            kernel[grid](*arguments, **constants)
        return out

    return replay


class Recorded:
    """A kernel whose launches are noted, with the tensors that they were given."""

    def __init__(self, kernel: Any, launches: list[tuple[Any, Any, tuple[Any, ...], dict[str, Any]]]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **constants: Any) -> None:
            self.launches.append((self.kernel, grid, arguments, constants))
            self.kernel[grid](*arguments, **constants)

        return launch


@pytest.mark.skipif(not KERNELS_RUN, reason="needs a CUDA device or the interpreter")
@pytest.mark.parametrize("seed", range(20))
def test_a_partition_gives_every_key_of_every_tile_to_one_item(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slipstream.actors.executor.attention import triton_partition

    draw = random.Random(seed)
    rows, spare, single = draw.choice([1, 5, 300]), draw.choice([0, 40]), draw.random() < 0.5
    counts = [draw.choice([0, 1, 1, draw.randint(2, 90)]) for _ in range(rows)]
    kv_lens = [count + draw.choice([0, 0, draw.randint(1, 5000)]) for count in counts]
    starts = [sum(counts[:row]) for row in range(rows + 1)]
    num_tokens = starts[-1] + spare
    window, chunked = draw.choice([(0, False), (7, False), (600, False), (7, True), (600, True)])
    tokens, target = 1 if single else draw.choice([7, 32]), draw.choice([2, 8, 200])
    keys, least, block_size = 16, draw.choice([16, 64]), draw.choice([1, 8, 16, 24])
    align = 1 if block_size == 24 else block_size  # only whole blocks fill a tile
    none = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    batch = PagedBatch(
        cache=KVCache(block_size, [], []),
        rows=torch.arange(rows, device=DEVICE) + 7,
        kv_lens=torch.tensor(kv_lens, dtype=torch.int32, device=DEVICE),
        query_start=torch.tensor(starts, dtype=torch.int32, device=DEVICE),
        write_index=torch.zeros(num_tokens, dtype=torch.int64, device=DEVICE),
        block_table=none,
        decode_only=False,
        max_kv_len=draw.choice([max(kv_lens), 100]),  # too low a bound makes fewer parts, and loses no keys
    )
    monkeypatch.setattr(triton_partition, "OVERHEAD", draw.choice([3.0, -1e6]))
    partition = triton_partition.partition_work(
        batch,
        single=single,
        tokens=tokens,
        window=window,
        chunked=chunked,
        keys=keys,
        block_size=block_size,
        least=least,
        target=target,
        kv_heads=3,
        multiprocessors=draw.choice([1, 40]),
        resident=2,
    )

    expected: dict[tuple[int, int], list[int]] = {}
    """Slot, tokens, position, first key and last key + 1 of each tile, by its first token."""
    for row, (count, kv_len) in enumerate(zip(counts, kv_lens, strict=True)):
        for first in range(0, count, tokens) if (count == 1) == single else ():
            many = min(tokens, count - first)
            position = kv_len - count + first
            oldest = position - position % window if chunked else max(0, position - window + 1)
            low = oldest // align * align if window else 0
            expected[starts[row] + first, many] = [row + 7, position, low, position + many]
    if not single:
        for first in range(starts[-1], num_tokens, tokens):
            expected[first, min(tokens, num_tokens - first)] = [0, 0, 0, 0]

    found: dict[tuple[int, int], list[int]] = {}
    split: list[tuple[int, int]] = []
    """First result and number of parts of each tile in several."""
    parts_of: dict[tuple[int, int], list[int]] = {}
    ended = False
    for slot, first, many, position, low, high, first_result, part, parts in partition.items.tolist():
        if many == 0:
            ended = True
            continue
        assert not ended, "an item that is needed after one that is not"
        parts_of.setdefault((first, many), []).append(part)
        assert part < parts <= 32
        if part == 0:
            found[first, many] = [slot, position, low, high]
            assert (first_result >= 0) == (parts > 1)
            if parts > 1:
                split.append((first_result, parts))
        else:
            assert split[-1] == (first_result, parts)
            tile = found[first, many]
            if low < high:
                assert tile[3] == low, "a part begins where the one before it ends"
                tile[3] = high
    assert found == expected
    assert all(numbers == list(range(len(numbers))) for numbers in parts_of.values())
    assert sorted(len(numbers) for numbers in parts_of.values() if len(numbers) > 1) == sorted(
        parts for _, parts in split
    )

    end = 0
    for first_result, parts in split:
        assert first_result == end
        end += parts
    assert end <= target
    assert (partition.arrived is not None) or not split
    if partition.arrived is not None:
        assert end <= len(partition.arrived)
        assert not partition.arrived.any()


@pytest.mark.skipif(not KERNELS_RUN, reason="needs a CUDA device or the interpreter")
@pytest.mark.parametrize(
    ("contexts", "parts"),
    [
        ([1024], {16}),  # one row has the device for itself
        ([100], {1}),  # nothing is gained by two parts of so few keys
        (
            [1024] * 32,
            {1},
        ),  # 256 programs, at most two a multiprocessor: a second wave would cost more than it balances
        (
            [1024] * 20,
            {4},
        ),  # 160 programs would leave most multiprocessors with half of the work of the others
        ([1024] * 256, {1}),
        ([8192] * 8, {2}),  # one program a multiprocessor
        ([1100], {9}),  # 18 steps of 64 keys: two for each of 72 programs, and no part is empty
        ([4200], {11}),
        ([100] * 63 + [32768], {1, 32}),  # one long row does not go through its keys alone
    ],
)
def test_keys_are_divided_so_that_multiprocessors_end_together(contexts: list[int], parts: set[int]) -> None:
    """A device of 132 multiprocessors, three programs on each at once, and 8 heads."""
    from slipstream.actors.executor.attention.triton_partition import partition_work

    rows = len(contexts)
    batch = PagedBatch(
        cache=KVCache(16, [], []),
        rows=torch.arange(rows, device=DEVICE),
        kv_lens=torch.tensor(contexts, dtype=torch.int32, device=DEVICE),
        query_start=torch.arange(rows + 1, dtype=torch.int32, device=DEVICE),
        write_index=torch.zeros(rows, dtype=torch.int64, device=DEVICE),
        block_table=torch.zeros(0, dtype=torch.int32, device=DEVICE),
        decode_only=True,
        max_kv_len=max(contexts),
    )
    partition = partition_work(
        batch,
        single=True,
        tokens=1,
        window=0,
        chunked=False,
        keys=64,
        block_size=16,
        least=64,
        target=4 * 3 * 132 // 8,
        kv_heads=8,
        multiprocessors=132,
        resident=3,
    )
    items = [record for record in partition.items.tolist() if record[2]]
    assert {record[8] for record in items} == parts
    assert all(record[4] < record[5] for record in items), "each part has keys"
