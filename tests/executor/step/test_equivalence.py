"""Overlap on and off gives the same tokens: the real scheduler, pipeline and runner on the CPU device.

The emulated device shows it over thousands of schedules (``test_simulation.py``); here torch computes.
"""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
import torch
from covering import few_of
from recurrent import alone_with, long_requests, model_with_states, scheduled
from rig import EOS, LENGTH, SLOTS, VOCAB, Rig
from slipstream.actors.executor.cache.state import StateCache
from slipstream.actors.executor.model.fused.fuse import fuse
from slipstream.actors.executor.model.invariant.apply import make_invariant
from slipstream.actors.executor.model.loading.load import from_config
from slipstream.actors.executor.model.paged_model import PagedModel
from slipstream.actors.executor.step.fields import JOIN, column
from slipstream.actors.executor.step.model_runner import ModelRunner
from slipstream.protocol.internal import Cancel
from slipstream.protocol.sampling import SamplingParams
from tiny_models import STATEFUL
from transformers import LlamaConfig

SCHEDULES = 25
"""Random schedules per depth; with ``--soak`` 500."""


@pytest.fixture(scope="module")
def model() -> PagedModel:
    torch.set_num_threads(1)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=LENGTH,
        initializer_range=1.0,  # decided logits, so that no tie hangs on the last bit
        eos_token_id=EOS,
    )
    return from_config(config, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module", params=["qwen3_next", "falcon_h1", "mamba"])
def stateful_model(request: pytest.FixtureRequest) -> PagedModel:
    """Recurrent layers beside layers that attend, both in one, and nothing else."""
    return model_with_states(request.param)


def requests(count: int) -> list[tuple[list[int], SamplingParams]]:
    rng = random.Random(5)
    made = []
    for seed in range(count):
        prompt = [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 30))]
        params = SamplingParams(
            max_tokens=rng.randrange(1, 25),
            temperature=rng.choice([0.0, 0.0, 0.7, 1.2]),
            top_p=rng.choice([1.0, 0.9]),
            seed=seed,
            ignore_eos=rng.random() < 0.2,
            regex=rng.choice([None, None, None, "([a-f]g?)+", "(abc|cba)*h", "[a-u]{5}"]),
        )
        made.append((prompt, params))
    return made


@pytest.fixture(scope="module")
def alone(model: PagedModel) -> list[list[int]]:
    """Each request by itself, synchronously."""
    answers = []
    for prompt, params in requests(40):
        rig = Rig(model, depth=1, blocks=40)
        rig.ask(0, prompt, params)
        rig.finish()
        answers.append(rig.tokens[0])
    return answers


@pytest.mark.covering(1)
@pytest.mark.parametrize(
    ("depth", "graphs"),
    [(1, "off"), (2, "off"), (3, "off"), (4, "off"), (2, "all"), (3, "all"), (2, "none"), (3, "meanwhile")],
)
def test_any_schedule_at_any_depth_gives_the_tokens_of_each_request_alone(
    model: PagedModel, alone: list[list[int]], depth: int, graphs: str, more: int
) -> None:
    known = requests(40)
    preempted, wasted, copied = 0.0, 0.0, 0.0
    for schedule in range(SCHEDULES * more):
        rng = random.Random(schedule)
        rig = Rig(model, depth, blocks=rng.choice([18, 24, 60]), graphs=graphs)
        chosen = [rng.randrange(len(known)) for _ in range(10)]
        aborted = set()
        for request, which in enumerate(chosen):
            rig.ask(request, *known[which])
            for _ in range(rng.randrange(3)):
                if rig.executor.pipeline.under_way:
                    rig.wait()
            if rng.random() < 0.1:
                victim = rng.randrange(request + 1)
                aborted.add(victim)
                rig.carry(rig.scheduler.receive("tokenizer", Cancel([victim]), 0.0))
        rig.finish()
        preempted += rig.scheduler.counters["num_preemptions"]
        wasted += rig.scheduler.counters["wasted_rows"]
        copied += rig.scheduler.counters["num_block_copies"]
        for request, which in enumerate(chosen):
            got, expected = rig.tokens[request], alone[which]
            assert got == (expected[: len(got)] if request in aborted else expected), (schedule, request)
    assert preempted > 0
    assert wasted > 0, "no row was under way for a request that had ended"
    assert copied > 0, "no request began with a copy of another's last block"


@pytest.mark.covering(1)
@pytest.mark.parametrize(
    ("depth", "graphs"), [(1, "off"), (2, "off"), (3, "off"), (4, "off"), (2, "all"), (3, "none")]
)
def test_states_are_those_of_each_request_alone_at_any_depth(
    stateful_model: PagedModel, depth: int, graphs: str, more: int
) -> None:
    known = long_requests()
    preempted = 0.0
    for schedule in range(more):
        rig = scheduled(stateful_model, depth, schedule, graphs)
        preempted += rig.scheduler.counters["num_preemptions"]
        assert not rig.scheduler.counters["prefix_cache_hits"]
        for request, answer in rig.tokens.items():
            assert answer == alone_with(stateful_model)[request % len(known)], (schedule, request)
    assert preempted > 0


@pytest.mark.parametrize(
    "family", few_of(STATEFUL, "qwen3_5_text", "kimi_linear", "lfm2", "mamba2", "jamba", "zamba2")
)
def test_states_of_any_family_are_computed_again_after_a_preemption_and_after_a_death(family: str) -> None:
    model = model_with_states(family)
    rig = scheduled(model, 2, 0, many=3, deaths=(2, 4))
    assert rig.scheduler.counters["num_preemptions"] > 0
    for request, answer in rig.tokens.items():
        assert answer == alone_with(model, 3)[request % 3], request


@pytest.mark.parametrize("fault", ["kept", "of the neighbour"])
def test_a_planted_fault_of_a_state_slot_is_seen(
    stateful_model: PagedModel, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state that outlives its holder, or ends with another's."""
    expected = alone_with(stateful_model)
    clear = StateCache.clear

    def cleared(self: StateCache, slots: torch.Tensor) -> None:
        if fault == "of the neighbour":
            clear(self, (slots + 1) % SLOTS)

    monkeypatch.setattr(StateCache, "clear", cleared)
    found = scheduled(stateful_model, 2, 0).tokens
    assert any(answer != expected[request % len(expected)] for request, answer in found.items())


# --- batch-invariant ----------------------------------------------------------------------------------------


def in_bfloat16(*, invariant: bool) -> PagedModel:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        initializer_range=0.5,
        eos_token_id=EOS,
    )
    model = from_config(config, torch.device("cpu"), torch.bfloat16)
    fuse(model)
    if invariant:
        make_invariant(model)
    return model


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, int], set[bytes]]:
    """The bits of all logits, by the seed of the request and the position of the token."""
    found: dict[tuple[int, int], set[bytes]] = {}
    sample = ModelRunner.sample

    def sample_and_note(self: ModelRunner, logits: torch.Tensor, slots: torch.Tensor, *others: Any) -> None:
        rows = slots.long()
        seeds = column(self.table.requests[rows], JOIN, "seed_low").tolist()
        given = zip(
            seeds, self.table.position[rows].tolist(), self.table.finished[rows].tolist(), strict=True
        )
        for row, (seed, position, finished) in enumerate(given):
            if not finished:
                bits = logits[row].view(torch.int16).numpy().tobytes()
                found.setdefault((seed, position), set()).add(bits)
        sample(self, logits, slots, *others)

    monkeypatch.setattr(ModelRunner, "sample", sample_and_note)
    return found


def bits_in_random_schedules(model: PagedModel, depth: int, schedules: int) -> tuple[float, float]:
    """Run some; how many sequences gave way, and how much of the prompts was found in the cache."""
    preempted, found = 0.0, 0.0
    for schedule in range(schedules):
        rng = random.Random(schedule)
        rig = Rig(model, depth, blocks=rng.choice([18, 24, 60]))
        for request in range(10):
            prompt, params = long_requests()[rng.randrange(8)]
            rig.ask(request, prompt, params)
            for _ in range(rng.randrange(3)):
                if rig.executor.pipeline.under_way:
                    rig.wait()
            if rng.random() < 0.1 and rig.executor.pipeline.under_way:
                rig.kill()
        rig.finish()
        preempted += rig.scheduler.counters["num_preemptions"]
        found += rig.scheduler.counters["prefix_cache_hits"]
    return preempted, found


@pytest.mark.parametrize("depth", [2, *(pytest.param(depth, marks=pytest.mark.rest) for depth in (1, 3))])
def test_a_batch_invariant_model_gives_every_token_logits_of_the_same_bits(
    depth: int, seen: dict[tuple[int, int], set[bytes]], more: int
) -> None:
    """In bfloat16, in any company, however prompts are cut, found in the cache, or computed again after a death."""
    preempted, found = bits_in_random_schedules(in_bfloat16(invariant=True), depth, 6 * more)
    assert preempted > 0
    assert found > 0
    assert len(seen) > 60
    assert {len(bits) for bits in seen.values()} == {1}


def test_another_model_does_not(seen: dict[tuple[int, int], set[bytes]]) -> None:
    bits_in_random_schedules(in_bfloat16(invariant=False), 2, 6)
    assert max(len(bits) for bits in seen.values()) > 1


def test_answers_with_a_grammar_match_it(alone: list[list[int]]) -> None:
    whole = 0
    for answer, (_, params) in zip(alone, requests(40), strict=True):
        if params.regex is not None:
            text = "".join("abcdefghijklmnopqrstuvw"[token] for token in answer).removesuffix("v")
            ended = len(answer) < (params.max_tokens or 0)
            whole += ended
            assert re.fullmatch(params.regex, text) or not ended, (params.regex, text)
    assert whole > 3


def test_the_schedules_have_real_ends_by_stop_token(alone: list[list[int]]) -> None:
    ended = [
        answer[-1] == EOS
        for answer, (_, params) in zip(alone, requests(40), strict=True)
        if not params.ignore_eos
    ]
    assert 5 < sum(ended) < len(ended)
