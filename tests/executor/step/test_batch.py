"""What a plan becomes: the fields that are packed, and what the device makes of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checked_scheduler import CheckedScheduler
from slipstream.actors.executor.model.loading.load import from_config
from slipstream.actors.executor.sampling.sampler import IN_PROMPT
from slipstream.actors.executor.step import batch as batching
from slipstream.actors.executor.step.batch import RunningBatch
from slipstream.actors.executor.step.buckets import Buckets, buckets_of
from slipstream.actors.executor.step.description import Step
from slipstream.actors.executor.step.fields import BIAS, JOIN, NO_STOP_TOKEN, column
from slipstream.actors.executor.step.model_runner import ModelRunner
from slipstream.actors.scheduler import planner
from slipstream.protocol.internal import Join, Plan
from tiny_models import make_config

SLOTS, LENGTH, BLOCK, BUDGET = 4, 64, 8, 32


def join(slot: int, tokens: list[int], **wanted: object) -> Join:
    settings: dict[str, object] = {
        "prompt_len": len(tokens),
        "start": 0,
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "seed": 1,
        "min_tokens": 0,
        "stop_tokens": b"",
        "max_length": LENGTH,
    }
    return Join(slot=slot, tokens=np.array(tokens, np.int32).tobytes(), **settings | wanted)  # type: ignore[arg-type]


def pairs(*values: tuple[int, int]) -> bytes:
    return np.array(values, np.int32).tobytes()


class Rig:
    """A batch and a runner without a pipeline around them."""

    def __init__(self, buckets: Buckets | None) -> None:
        config = make_config("llama", max_position_embeddings=LENGTH)
        model = from_config(config, torch.device("cpu"), torch.float32)
        with torch.inference_mode():
            self.runner = ModelRunner(model, SLOTS, LENGTH, BLOCK, 40)
        self.batch = RunningBatch(SLOTS, BUDGET, LENGTH // BLOCK, buckets)
        self.number = 0

    @torch.inference_mode()
    def run(self, **plan: object) -> tuple[Step, list[int]]:
        staging = np.full(self.batch.input_capacity, 1 << 30, np.int32)
        step = self.batch.stage(Plan(self.number, **plan), staging)  # type: ignore[arg-type]
        self.number += 1
        outputs = torch.zeros(step.results.size, dtype=torch.int32)
        self.runner.run(torch.from_numpy(staging), outputs, step)
        return step, step.unpack(outputs.numpy())[0].tolist()

    def counts(self, slot: int) -> dict[int, int]:
        row = self.runner.sampler.counts[slot]
        return {token: int(row[token]) for token in row.nonzero()[:, 0].tolist()}


@pytest.fixture(params=["as large as it is", "padded"])
def rig(request: pytest.FixtureRequest) -> Rig:
    return Rig(buckets_of(SLOTS, BUDGET, LENGTH) if request.param == "padded" else None)


def test_a_penalty_counts_the_right_tokens_whenever_the_first_chunk_comes(rig: Rig) -> None:
    """The slot had another holder, whose counts are gone; cached blocks count; the chunk may follow later."""
    first = [5, 6, 7, 5, 9, 10, 11, 12, 13]
    rig.run(
        joins=[join(1, first, frequency_penalty=1.0)],
        blocks=pairs((1, 1), (1, 2)),
        chunks=pairs((1, len(first))),
    )
    _, [second] = rig.run()
    assert rig.counts(1)[5] & IN_PROMPT
    assert rig.counts(1)[second] & (IN_PROMPT - 1)

    known = [*first[:8], 20, 21]
    other = join(2, [30] * 40)
    step, _ = rig.run(
        leaves=np.array([1], np.int32).tobytes(),
        joins=[join(1, known, start=8, prompt_len=9, presence_penalty=1.0), other],
        blocks=pairs((1, 1), (1, 3), *((2, 4 + n) for n in range(5))),
        chunks=pairs((2, 30)),
    )
    assert step.penalised_joins == (1,)
    assert rig.counts(1) == dict.fromkeys(first[:8], IN_PROMPT)
    _, tokens = rig.run(chunks=pairs((1, 2), (2, 10)))
    assert len(tokens) == 2
    expected = dict.fromkeys([*first[:8], 20], IN_PROMPT) | {21: 1}
    expected[tokens[0]] = expected.get(tokens[0], 0) + 1
    assert rig.counts(1) == expected


def test_a_join_without_any_row_beside_it_runs_a_step_of_nothing(rig: Rig) -> None:
    step, tokens = rig.run(joins=[join(0, [1, 2, 3])], blocks=pairs((0, 1)))
    assert (step.num_samples, tokens) == (0, [])
    _, tokens = rig.run(chunks=pairs((0, 3)))
    assert len(tokens) == 1


def test_every_field_is_read_as_it_was_written() -> None:
    """numpy's view on the host, and the tensor's on the device, of the same numbers."""
    rng = np.random.default_rng(3)
    for dtype in (JOIN, BIAS):
        records = rng.integers(-9, 9, (3, dtype.itemsize // 4), dtype=np.int32)
        fields = dtype.names
        assert fields is not None
        for name in fields:
            ours = column(torch.from_numpy(records), dtype, name).numpy()
            assert np.array_equal(ours, records.view(dtype)[name][:, 0], equal_nan=True), name


def test_joins_say_what_the_request_asked_for() -> None:
    batch = RunningBatch(SLOTS, BUDGET, LENGTH // BLOCK)
    staging = np.zeros(batch.input_capacity, np.int32)
    asked = join(
        2,
        [1, 2, 3],
        temperature=0.5,
        top_p=0.25,
        top_k=7,
        min_p=0.125,
        seed=(3 << 32) | 5,
        min_tokens=4,
        repetition_penalty=1.5,
        presence_penalty=-0.5,
        frequency_penalty=2.0,
        max_length=9,
        stop_tokens=np.array([8, 9], np.int32).tobytes(),
    )
    step = batch.stage(Plan(0, joins=[asked], chunks=pairs((2, 3))), staging)
    [record] = step.layout.view(staging, "joins")
    packed = {name: record[name].tolist() for name in JOIN.names or ()}
    assert packed.pop("stop_tokens") == [8, 9] + [NO_STOP_TOKEN] * 62
    assert packed == {
        "slot": 2,
        "adapter": 0,
        "start": 0,
        "prompt_len": 3,
        "max_length": 9,
        "seed_low": 5,
        "seed_high": 3,
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": 7,
        "min_p": 0.125,
        "min_tokens": 4,
        "repetition_penalty": 1.5,
        "presence_penalty": -0.5,
        "frequency_penalty": 2.0,
    }


def test_only_a_least_length_bars_stop_tokens() -> None:
    """A step in which a prompt ends asks for no more than any other, and so has its graph from the start on."""
    batch = RunningBatch(SLOTS, BUDGET, LENGTH // BLOCK)
    staging = np.zeros(batch.input_capacity, np.int32)
    kinds = [batch.stage(Plan(0, joins=[join(0, [1] * 9)], chunks=pairs((0, 9))), staging).kind]
    kinds.append(
        batch.stage(Plan(1, joins=[join(1, [1] * 9, min_tokens=2)], chunks=pairs((1, 9))), staging).kind
    )
    kinds += [batch.stage(Plan(number), staging).kind for number in (2, 3)]
    assert [kind.min_tokens for kind in kinds] == [False, True, True, False]


def test_inputs_hold_what_a_scheduler_plans_at_once_and_grow_no_further(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prompts that are in the prefix cache join for a token each, as many as there are, with all of their blocks."""
    most, slots, length = 100, 32, 128
    for module in (planner, batching):
        monkeypatch.setattr(module, "MAX_JOINED_TOKENS", most)
    batch = RunningBatch(slots, BUDGET, length)
    staging = np.zeros(batch.input_capacity, np.int32)
    checked = CheckedScheduler(slots=slots, budget=BUDGET, length=length, blocks=1 + slots * length, size=1)
    for request in range(slots):
        checked.ask(request, [*range(2, most - 8), 500 + request], max_tokens=5, ignore_eos=True)
    checked.finish_all()
    blocks = []
    for plan in checked.plans:
        blocks.append(batch.stage(plan, staging).layout.blocks)
    assert len(checked.ends) == slots
    assert max(blocks) > 1.5 * most
    without = RunningBatch(slots, BUDGET, 0)
    assert max(blocks) <= (batch.input_capacity - without.input_capacity) // 3 <= most + length + slots
