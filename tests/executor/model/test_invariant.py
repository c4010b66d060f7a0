"""``--batch-invariant``: the same bits whatever else is computed, on a CPU.

Where what is added up nearly cancels, all that is left is rounding, and every other order of the sum shows.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from slipstream.actors.executor.attention.torch_backend import TorchAttention
from slipstream.actors.executor.attention.torch_invariant import InvariantTorchAttention
from slipstream.actors.executor.cache.kv_cache import KVCache
from slipstream.actors.executor.cache.paged_batch import PagedBatch
from slipstream.actors.executor.model.comparison import COMPARED_TOKENS, compared_tokens, paged_logits
from slipstream.actors.executor.model.fused.fuse import fuse
from slipstream.actors.executor.model.fused.operations import Norm
from slipstream.actors.executor.model.invariant import apply
from slipstream.actors.executor.model.invariant.apply import make_invariant, prove_invariant
from slipstream.actors.executor.model.invariant.on_cpu import BlockedLinear, FewRowsOperations
from slipstream.actors.executor.model.loading.load import from_config
from slipstream.actors.executor.model.paged_model import PagedModel
from slipstream.actors.executor.sampling.invariant import invariant_sampler
from slipstream.actors.executor.step.sampling_kind import SamplingKind
from slipstream.protocol.errors import InvalidRequest
from slipstream.runtime.options.sources import resolve
from tiny_models import make_config
from torch import Tensor, nn

from slipstream.options.serve import ServeOptions

CPU = torch.device("cpu")
HALF = (torch.bfloat16, torch.float16)
DTYPES = (*HALF, torch.float32)
COUNTS = (1, 7, 8, 9, 70)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """More of them than rows divide evenly among."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def random_of(seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator)


def cancelling(outputs: int, columns: int, dtype: torch.dtype) -> tuple[nn.Linear, Tensor]:
    """A layer and a row [columns] whose product is all rounding."""
    draw = random_of(0)
    half, states = 16 * draw(outputs, columns // 2), 16 * draw(columns // 2)
    order = torch.randperm(columns, generator=torch.Generator().manual_seed(0))
    layer = nn.Linear(columns, outputs, bias=False)
    layer.weight = nn.Parameter(torch.cat((half, -half), 1)[:, order].to(dtype), requires_grad=False)
    return layer, torch.cat((states, states))[order].to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("outputs", "columns"), [(384, 128), (37, 66), (896, 896), (200, 2432)])
def test_a_row_of_a_product_is_the_same_wherever_it_stands(
    outputs: int, columns: int, dtype: torch.dtype
) -> None:
    layer, row = cancelling(outputs, columns, dtype)
    blocked = BlockedLinear(layer)
    draw = random_of(1)
    expected = blocked(row[None])
    assert bool(expected.any()), "nothing is left of the sums that could differ"
    for count in COUNTS:
        for place in {0, count // 2, count - 1}:
            states = draw(1, count, columns).to(dtype)
            states[0, place] = row
            assert torch.equal(blocked(states)[0, place], expected[0]), (count, place)


def test_torchs_own_product_differs_from_one_number_of_rows_to_another() -> None:
    layer, row = cancelling(896, 896, torch.float32)
    assert not torch.equal(layer(row[None])[0], layer(row.expand(70, -1).contiguous())[0])


def test_where_the_places_of_a_block_are_not_alike_rows_are_computed_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    linear = torch.nn.functional.linear

    def other_at_the_end(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        found = linear(input, weight, bias)
        if len(found) > 1:
            found[-1] += 2.0**-20
        return found

    layer, _ = cancelling(64, 64, torch.float32)
    monkeypatch.setattr(torch.nn.functional, "linear", other_at_the_end)
    assert BlockedLinear(layer).rows == 1


def norm_of(width: int, dtype: torch.dtype, offset: float = 0.0) -> Norm:
    return Norm(nn.Parameter(random_of(2)(width).to(dtype), requires_grad=False), 1e-6, offset)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "dims"), [(6, 32), (3, 20), (1, 8), (40, 128)])
def test_a_row_of_the_small_operations_is_the_same_wherever_it_stands(
    heads: int, dims: int, dtype: torch.dtype
) -> None:
    operations, draw = FewRowsOperations(), random_of(3)
    width = heads * dims
    norm, head_norm = norm_of(width, dtype, 1.0), norm_of(dims, dtype)
    frequencies = draw(dims // 2).abs()

    def everything(residual: Tensor, update: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        residual = residual.clone()
        normalised = operations.add_norm(residual, update, norm, 0.7, norm)
        angles = operations.angles(positions, frequencies, 1.1)
        turned = update.clone()
        operations.rotate(turned.view(len(turned), heads, dims), heads - 1, 1, head_norm, head_norm, angles)
        in_place = update.clone()
        operations.norm(in_place, norm)
        gated = [operations.gate(update, name) for name in ("silu", "gelu", "gelu_tanh")]
        return (residual, normalised, angles, turned, in_place, *gated)

    row, more = draw(1, width).to(dtype), draw(1, width).to(dtype)
    expected = everything(row, more, torch.tensor([77]))
    for count in COUNTS:
        for place in {0, count // 2, count - 1}:
            residual, update = draw(count, width).to(dtype), draw(count, width).to(dtype)
            positions = torch.arange(count) * 13
            residual[place], update[place], positions[place] = row[0], more[0], 77
            for found, alone in zip(everything(residual, update, positions), expected, strict=True):
                assert torch.equal(found[place], alone[0]), (count, place)


# --- attention --------------------------------------------------------------------------------------------

SIZE, BLOCKS, SLOTS = 16, 12, 3
LENGTH = SIZE * BLOCKS - 3


class Texts:
    """Some sequences with their queries, keys and values, and a cache that they are written to step by step."""

    def __init__(self, group: int, dims: int, value_dims: int, dtype: torch.dtype) -> None:
        draw = random_of(4)
        kv_heads = 2
        self.query = draw(SLOTS, LENGTH, kv_heads * group, dims).to(dtype)
        self.key = draw(SLOTS, LENGTH, kv_heads, dims).to(dtype)
        self.value = draw(SLOTS, LENGTH, kv_heads, value_dims).to(dtype)
        self.sinks = draw(kv_heads * group).to(dtype)
        self.table = torch.randperm(SLOTS * BLOCKS, generator=torch.Generator().manual_seed(5))
        self.table = (1 + self.table).view(SLOTS, BLOCKS).int()

    def attended(self, backend: Any, seed: int, **how: Any) -> Tensor:
        """What all tokens are given [slots, LENGTH, Hq, Dv], in steps of a random number of tokens of each."""
        rng = random.Random(seed)
        pools = [
            torch.zeros(1 + SLOTS * BLOCKS, SIZE, *states.shape[2:], dtype=states.dtype)
            for states in (self.key, self.value)
        ]
        cache = KVCache(SIZE, [pools[0]], [pools[1]])
        found = torch.zeros(*self.query.shape[:3], self.value.shape[3], dtype=self.query.dtype)
        done = [0] * SLOTS
        while min(done) < LENGTH:
            step = [min(LENGTH - at, rng.choice((0, 1, 1, 1, 5, 40, 200))) for at in done]
            slots = [slot for slot in range(SLOTS) if step[slot]]
            if not slots:
                continue
            rng.shuffle(slots)
            where = [(slot, at) for slot in slots for at in range(done[slot], done[slot] + step[slot])]
            slot, position = torch.tensor(where).unbind(1)
            starts = [sum(step[slot] for slot in slots[:n]) for n in range(len(slots) + 1)]
            after = [done[slot] + step[slot] for slot in slots]
            batch = PagedBatch(
                cache=cache,
                rows=torch.tensor(slots),
                kv_lens=torch.tensor(after, dtype=torch.int32),
                query_start=torch.tensor(starts, dtype=torch.int32),
                write_index=self.table[slot, position // SIZE].long() * SIZE + position % SIZE,
                block_table=self.table,
                decode_only=all(step[slot] == 1 for slot in slots),
                max_kv_len=max(after),
            )
            rows = (states[slot, position] for states in (self.query, self.key, self.value))
            found[slot, position] = backend(*rows, 0, batch, scale=0.2, **how)
            for one in slots:
                done[one] += step[one]
        return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("kind", "group", "dims", "value_dims"),
    [
        ("plain", 3, 32, 32),
        ("window", 1, 16, 16),
        ("chunks", 4, 64, 64),
        ("softcap and sinks", 2, 24, 16),
    ],
)
def test_a_token_is_given_the_same_however_its_text_is_cut_and_whoever_is_beside_it(
    kind: str, group: int, dims: int, value_dims: int, dtype: torch.dtype
) -> None:
    texts = Texts(group, dims, value_dims, dtype)
    how: dict[str, Any] = {"sliding_window": None, "softcap": None, "sinks": None}
    if kind == "window":
        how["sliding_window"] = 50
    if kind == "chunks":
        how["attention_chunk"] = 48
    if kind == "softcap and sinks":
        how |= {"softcap": 3.0, "sinks": texts.sinks, "sliding_window": 200}
    expected = texts.attended(InvariantTorchAttention(), 0, **how)
    assert torch.equal(texts.attended(InvariantTorchAttention(), 1, **how), expected)
    usual = texts.attended(TorchAttention(), 2, **how)
    torch.testing.assert_close(expected.float(), usual.float(), atol=2e-2 if dtype in HALF else 1e-5, rtol=0)


# --- models -----------------------------------------------------------------------------------------------


def invariant(family: str, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> PagedModel:
    model = from_config(make_config(family, **changes), CPU, dtype)
    fuse(model)
    make_invariant(model)
    return model


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("llama", torch.float32),
        *((family, torch.bfloat16) for family in ("qwen2", "qwen3", "mistral", "olmo2", "gemma3_text")),
    ],
)
def test_logits_are_the_same_bits_in_random_steps(family: str, dtype: torch.dtype, more: int) -> None:
    model = invariant(family, dtype)
    tokens = compared_tokens(model)
    with torch.inference_mode():
        expected = paged_logits(model, tokens, [(COMPARED_TOKENS, 0), (0, COMPARED_TOKENS)])
        for seed in range(more):
            assert torch.equal(paged_logits(model, tokens, random_steps(seed)), expected), seed
    prove_invariant(model)


def random_steps(seed: int) -> list[tuple[int, int]]:
    rng = random.Random(seed)
    left, steps = [COMPARED_TOKENS, COMPARED_TOKENS], []
    while any(left):
        step = [min(most, rng.choice((0, 1, 1, 2, 7))) for most in left]
        if any(step):
            steps.append((step[0], step[1]))
            left = [most - count for most, count in zip(left, step, strict=True)]
    return steps


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_experts_are_given_one_token_at_a_time(family: str) -> None:
    prove_invariant(invariant(family))


@pytest.mark.parametrize("part", ["product", "operations", "attention"])
def test_a_part_that_stays_as_it_was_is_found_by_the_proof(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if part == "product":
        monkeypatch.setattr(apply, "replaced", lambda part, on_cpu: part)
    model = invariant("llama", torch.float32, hidden_size=256, intermediate_size=512)
    if part == "attention":
        model.backend = TorchAttention()
    if part == "operations":
        norm = FewRowsOperations.add_norm

        def by_count(self: FewRowsOperations, residual: Tensor, *others: Any) -> Tensor:
            return norm(self, residual, *others) * (1 if len(residual) < 8 else 1 + 2.0**-7)

        monkeypatch.setattr(FewRowsOperations, "add_norm", by_count)
    with pytest.raises(InvalidRequest, match=r"tokens have other logits; leave out --batch-invariant$"):
        prove_invariant(model)


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("gpt2", "its decoder stays as transformers has it"),
        ("cohere2", "its decoder stays as transformers has it"),
        ("gemma2", "its logits are bent by a function that torch computes otherwise at the ends"),
        ("qwen3_next", "its recurrent layers compute a chunk of a prompt in another way than single tokens"),
    ],
)
def test_a_model_that_cannot_be_is_refused_with_the_reason(family: str, reason: str) -> None:
    with pytest.raises(
        InvalidRequest, match=f"^batch_invariant is not possible: {reason}.*; leave out --batch-invariant$"
    ):
        invariant(family)


def test_a_row_is_drawn_for_and_its_logprobs_are_the_same_whoever_is_beside_it() -> None:
    vocab, draw = 40_001, random_of(6)
    logits = draw(20, vocab)
    sampler = invariant_sampler(1, vocab, CPU)
    parameters = {
        "temperature": draw(20).abs(),
        "top_k": torch.arange(20, dtype=torch.int32) % 3 * 50,
        "top_p": torch.linspace(0.5, 1.0, 20),
        "min_p": torch.zeros(20),
        "prompt_len": torch.zeros(20, dtype=torch.int32),
        "seed_low": torch.arange(20, dtype=torch.int32),
        "seed_high": torch.zeros(20, dtype=torch.int32),
    }
    position = torch.arange(20)
    kind = SamplingKind(greedy=False, truncated=True, candidates=100, nucleus=True)
    tokens = sampler.draw(logits, position, parameters.__getitem__, kind)
    totals = sampler.totals(logits)
    for row in range(20):
        one = slice(row, row + 1)

        def asked(name: str, one: slice = one) -> Tensor:
            return parameters[name][one]

        assert torch.equal(sampler.draw(logits[one], position[one], asked, kind), tokens[one])
        assert torch.equal(sampler.totals(logits[one]), totals[one])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"tensor_parallel_size": 2}, "is not possible with tensor_parallel_size=2: the sums of ranks"),
        ({"lora": ["a=/a"]}, "what adapters add is made of as many rows as have one"),
        ({"device": "emulated"}, "batch_invariant=True has no effect with device=emulated"),
    ],
)
def test_what_it_does_not_go_with_is_refused_before_anything_starts(
    options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        resolve(ServeOptions, keywords={"batch_invariant": True} | options)
