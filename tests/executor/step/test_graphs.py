"""Which graphs there are, when they are captured, and what may not leak through them.

That a step computes the same by its graphs is in ``test_sampler.py`` and ``test_equivalence.py``, by the stand-in of
``replay.py``. Capturing itself needs a GPU and is measured there.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from replay import Replays
from slipstream.actors.executor.background_work import CATCHING_UP_SHARE, FIRST_TOKENS_S, IDLE_S
from slipstream.actors.executor.devices.emulated import EmulatedDevice
from slipstream.actors.executor.executor import Executor
from slipstream.actors.executor.model.loading.load import from_config
from slipstream.actors.executor.pipeline import Pipeline
from slipstream.actors.executor.step import graphs
from slipstream.actors.executor.step.batch import RunningBatch
from slipstream.actors.executor.step.buckets import Buckets, buckets_of, padded
from slipstream.actors.executor.step.description import Step
from slipstream.actors.executor.step.emulated_runner import EmulatedRunner
from slipstream.actors.executor.step.graph_keys import ForwardKey, SamplingKey
from slipstream.actors.executor.step.graphs import GraphRunner
from slipstream.actors.executor.step.layout import StepLayout
from slipstream.actors.executor.step.model_runner import ModelRunner
from slipstream.actors.executor.step.sampling_kind import SamplingKind
from slipstream.actors.executor.step.warm_up import decode_layout, mixed_layout, null_inputs
from slipstream.protocol.events import Completed, PeerUp
from slipstream.protocol.internal import Capacity, Plan
from tiny_models import make_config

SLOTS, LENGTH, BLOCK = 4, 64, 8
BUCKETS = buckets_of(SLOTS, 32, LENGTH)


@given(st.integers(1, 600), st.integers(1, 9000), st.integers(0, 1 << 30))
def test_a_step_is_padded_to_less_than_a_quarter_more_than_its_tokens(
    slots: int, budget: int, size: int
) -> None:
    buckets = buckets_of(slots, budget, 1 << 20)
    tokens = 1 + size % budget
    for sizes, wanted in ((buckets.mixed, tokens), (buckets.decode, 1 + size % slots)):
        assert list(sizes) == sorted(set(sizes))
        found = padded(wanted, sizes)
        assert wanted <= found <= sizes[-1]
        assert found in sizes
    assert padded(tokens, buckets.mixed) < max(1.25 * tokens if tokens < 256 else 1.125 * tokens, 17)
    assert buckets.mixed[-1] == budget
    assert buckets.decode[-1] == slots
    sampling = padded(min(tokens, slots), buckets.decode)
    assert sampling <= buckets.rows_for(padded(tokens, buckets.mixed)) <= slots, "each has its own logits"


@pytest.fixture(scope="module")
def runner() -> ModelRunner:
    model = from_config(
        make_config("llama", max_position_embeddings=LENGTH),
        torch.device("cpu"),
        torch.float32,
        attention_backend="torch",
    )
    with torch.inference_mode():
        return ModelRunner(model, SLOTS, LENGTH, BLOCK, 1 + SLOTS * LENGTH // BLOCK)


class Graphs(GraphRunner):
    """Notes what is captured, and what runs as it is."""

    def __init__(self, runner: ModelRunner, buckets: Buckets = BUCKETS) -> None:
        self.replays = Replays()
        with torch.inference_mode():
            super().__init__(runner, self.replays.capture, LENGTH, buckets)
        self.order: list[ForwardKey | SamplingKey] = []

    def capture_next(self) -> bool:
        wanted = self.queue.next
        done = super().capture_next()
        if done:
            assert wanted is not None
            self.order.append(wanted)
        return done

    @torch.inference_mode()
    def step(self, step: Step) -> int:
        """Run a step of null rows; how many graphs it replayed."""
        inputs = torch.zeros(step.layout.input_size, dtype=torch.int32)
        null_inputs(inputs, step.layout, SLOTS, LENGTH)
        before = self.replays.replays[0]
        self.run(inputs, torch.zeros(step.results.size, dtype=torch.int32), step)
        return self.replays.replays[0] - before


def step_of(rows: int, **kind: object) -> Step:
    return Step(decode_layout(BUCKETS, rows), SamplingKind(**kind), num_samples=rows, max_kv_len=8)  # type: ignore[arg-type]


def test_every_size_has_a_graph_of_its_forward_pass_and_two_of_its_sampling_the_largest_first(
    runner: ModelRunner,
) -> None:
    made = Graphs(runner)
    made.capture_all()
    forwards = [key for key in made.order if isinstance(key, ForwardKey)]
    mixed = [key.tokens for key in forwards if not key.decode_only]
    decode = [key.rows for key in forwards if key.decode_only]
    assert mixed == sorted(BUCKETS.mixed, reverse=True)
    assert decode == sorted(BUCKETS.decode, reverse=True)
    samplings = [key for key in made.order if isinstance(key, SamplingKey)]
    assert {(key.samples, key.kind) for key in samplings} == {
        (rows, SamplingKind(greedy=greedy)) for rows in BUCKETS.decode for greedy in (True, False)
    }
    assert not made.capture_next()


def test_every_step_replays_a_forward_pass_and_a_sampling(runner: ModelRunner) -> None:
    made = Graphs(runner)
    made.capture_all()
    for rows in BUCKETS.decode:
        assert made.step(step_of(rows)) == 2
    for tokens in BUCKETS.mixed:
        layout = mixed_layout(BUCKETS, tokens)
        assert made.step(Step(layout, SamplingKind(greedy=False), num_samples=1, max_kv_len=LENGTH)) == 2
    assert not made.queue.common


def test_no_plan_makes_a_step_without_a_graph_of_its_forward_pass(runner: ModelRunner) -> None:
    """So serving meets no kernel that was not compiled at the start."""
    buckets = buckets_of(24, 96, LENGTH)
    made = Graphs(runner, buckets)
    rng = random.Random(0)
    for _ in range(300):
        batch = RunningBatch(24, 96, 8, buckets)
        batch.decoding[rng.sample(range(24), rng.randrange(24))] = True
        free = [slot for slot in range(24) if not batch.decoding[slot]]
        budget, chunks = 96 - int(batch.decoding.sum()), []
        for slot in rng.sample(free, rng.randrange(len(free))):
            count = rng.randrange(1, min(budget, LENGTH) + 1)
            batch.prompts[slot] = np.ones(count + rng.randrange(3), np.int32)
            budget -= count
            chunks.append((slot, count))
            if not budget:
                break
        staging = np.zeros(batch.input_capacity, np.int32)
        step = batch.stage(Plan(0, chunks=np.array(chunks, np.int32).tobytes()), staging)
        assert step.layout.forward_key in made.queue.common
        assert SamplingKey(step.layout.samples, step.kind) in made.queue.common or not step.num_samples


def test_what_is_met_without_a_graph_runs_as_it_is_and_is_captured_next(runner: ModelRunner) -> None:
    made = Graphs(runner)
    made.queue.common.clear()
    met = step_of(2, greedy=False)
    assert made.step(met) == 0
    assert set(made.queue.common) == {met.layout.forward_key, SamplingKey(2, met.kind)}
    made.capture_all()
    assert made.step(met) == 2
    reports = mixed_layout(BUCKETS, 16, reports=True)
    assert made.step(Step(reports, met.kind, num_samples=1, max_kv_len=LENGTH)) == 0
    made.capture_all()
    assert made.step(Step(reports, met.kind, num_samples=1, max_kv_len=LENGTH)) == 2


def test_what_was_met_last_is_captured_first(runner: ModelRunner) -> None:
    made = Graphs(runner)
    met = step_of(1)
    made.step(met)
    made.capture_next()
    made.capture_next()
    assert made.step(met) == 2


def mixed_step(tokens: int) -> Step:
    return Step(mixed_layout(BUCKETS, tokens), SamplingKind(), num_samples=1, max_kv_len=LENGTH)


def test_the_first_graph_with_prompts_is_the_largest_unless_a_smaller_one_was_missed_again(
    runner: ModelRunner,
) -> None:
    """In whose memory the others fit."""
    made, small, other = Graphs(runner), mixed_step(16), mixed_step(BUCKETS.mixed[1])
    made.step(small)
    assert not made.queue.missed_twice
    made.capture_all()
    forwards = [key for key in made.order if isinstance(key, ForwardKey)]
    assert [key.tokens for key in forwards[:2]] == [BUCKETS.mixed[-1], 16]
    made = Graphs(runner)
    for met in (small, small, other):
        made.step(met)
    assert made.queue.missed_twice
    for _ in range(2):
        made.capture_next()
    assert small.layout.forward_key in made.forward_graphs, "before what was met last"
    assert other.layout.forward_key not in made.forward_graphs
    assert not made.queue.missed_twice
    made.capture_next()
    assert made.order[-1] == mixed_layout(BUCKETS, BUCKETS.mixed[-1]).forward_key


def test_what_has_run_in_a_step_does_not_run_once_more_to_be_captured(runner: ModelRunner) -> None:
    made, ran = Graphs(runner), []
    forward = runner.forward

    def counted(inputs: torch.Tensor, layout: StepLayout, *more: Any) -> torch.Tensor:
        ran.append(layout.forward_key)
        return forward(inputs, layout, *more)

    runner.forward = counted  # type: ignore[method-assign]
    try:
        met = step_of(2)
        made.step(met)
        assert ran == [met.layout.forward_key]
        made.capture_next()
        made.capture_next()
        assert ran == [met.layout.forward_key]
        assert made.step(met) == 2
        made.capture_all()
        assert ran.count(met.layout.forward_key) == 2, "and as a replay"
    finally:
        runner.forward = forward  # type: ignore[method-assign]
    assert set(ran) == set(made.forward_graphs)


@pytest.mark.parametrize(
    "kind",
    [
        {"logprobs": 3},
        {"greedy": False, "truncated": True, "nucleus": True},
        {"greedy": False, "truncated": True, "candidates": 64},
        {"penalties": True},
        {"biased": True},
        {"min_tokens": True},
    ],
    ids=str,
)
def test_whatever_is_asked_of_its_sampling_a_step_replays_its_forward_pass(
    runner: ModelRunner, kind: dict[str, object]
) -> None:
    made = Graphs(runner)
    made.capture_all()
    met = step_of(2, **kind)
    assert made.step(met) == 1
    assert made.capture_next()
    assert made.step(met) == 2
    forwards = len(made.forward_graphs)
    assert forwards == len(BUCKETS.decode) + len(BUCKETS.mixed), "kinds do not multiply sizes"


def test_rare_kinds_of_sampling_never_take_the_place_of_what_is_common(
    runner: ModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many kinds there are: the common come first, and there is room for all of them."""
    monkeypatch.setattr(graphs, "MAX_RARE_GRAPHS", 3)
    made = Graphs(runner)
    for columns in range(1, 9):
        made.step(step_of(2, logprobs=columns))
    made.capture_all()
    common = BUCKETS.num_forward_graphs + 2 * len(BUCKETS.decode)
    assert not any(isinstance(key, SamplingKey) and key.rare for key in made.order[:common])
    assert made.num_graphs == common + 3
    assert [made.step(step_of(rows)) for rows in BUCKETS.decode] == [2] * len(BUCKETS.decode)
    assert [made.step(step_of(2, logprobs=columns)) for columns in (6, 7, 8)] == [2, 2, 2], "those met last"


def test_the_rare_kind_that_was_used_longest_ago_makes_room(
    runner: ModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "MAX_RARE_GRAPHS", 2)
    made = Graphs(runner)
    for columns in (1, 2, 1, 3):  # the second of kind 1 replays, so that 2 is older
        made.step(step_of(2, logprobs=columns))
        made.capture_all()
    assert made.step(step_of(2, logprobs=1)) == 2
    assert made.step(step_of(2, logprobs=3)) == 2
    assert made.step(step_of(2, logprobs=2)) == 1
    made.capture_all()
    assert made.step(step_of(2, logprobs=2)) == 2, "it comes back when it is met again"


@pytest.mark.parametrize("slots", [1, 256, 5000, 65_536])
def test_graphs_of_every_size_are_few_enough_to_be_captured(slots: int) -> None:
    buckets = buckets_of(slots, max(slots, 2048), 8192)
    assert buckets.num_forward_graphs + 2 * len(buckets.decode) < 1200


@torch.inference_mode()
def test_a_graph_reads_nothing_but_its_static_inputs(runner: ModelRunner) -> None:
    """Bounds that are larger than the step, other slots, and other lengths than at the capture: all come anew."""
    made = Graphs(runner)
    made.capture_all()
    table = runner.table
    saved = table.tokens.clone(), table.position.clone(), table.block_table.clone(), table.finished.clone()
    try:
        table.tokens[:SLOTS] = torch.arange(SLOTS)[:, None] + 1
        table.block_table[:SLOTS] = torch.arange(1, SLOTS * LENGTH // BLOCK + 1).view(SLOTS, -1)
        for pool in (*runner.cache.keys, *runner.cache.values):
            pool.normal_(generator=torch.Generator().manual_seed(3))
            pool[0] = float("nan")  # whatever padding leaves in the null block, nobody sees it
        for slots, lengths in (([2, 0], [5, 40]), ([3], [63]), ([1, 2, 3], [9, 8, 7])):
            layout = decode_layout(BUCKETS, padded(len(slots), BUCKETS.decode))
            inputs = torch.full((layout.input_size,), SLOTS, dtype=torch.int32)
            inputs[: len(slots)] = torch.tensor(slots, dtype=torch.int32)
            step = Step(layout, SamplingKind(), num_samples=len(slots), max_kv_len=max(lengths) + 1)
            results = []
            for run in (runner.run, made.run):
                table.position[slots], table.finished[slots] = torch.tensor(lengths), False
                outputs = torch.zeros(step.results.size, dtype=torch.int32)
                run(inputs, outputs, step)
                assert (table.position[slots] == torch.tensor(lengths) + 1).all()
                results.append(outputs[: len(slots)].clone())
            assert torch.equal(*results)
            assert torch.isfinite(made.logits[: len(slots)]).all()
    finally:
        table.tokens[:], table.position[:], table.block_table[:], table.finished[:] = saved
        for pool in (*runner.cache.keys, *runner.cache.values):
            pool.zero_()


def test_the_executor_captures_only_while_there_is_nothing_to_run() -> None:
    pieces = [3]

    def background_work() -> float | None:
        pieces[0] -= 1
        return 0.02 if pieces[0] >= 0 else None

    clock = [0]
    device = EmulatedDevice(1.0, clock_ns=lambda: clock[0], realtime=False)
    batch = RunningBatch(2, 8, 2)
    runner = EmulatedRunner(2, 16, 50)
    pipeline = Pipeline(device, runner, 2, batch.input_capacity, batch.output_capacity)
    executor = Executor(pipeline, batch, Capacity(5, 8), {}, background_work)
    assert executor.wake_at == 0.0
    executor.wake(0.0)
    assert pieces == [2]
    assert executor.wake_at == 0.0

    executor.receive("scheduler", Plan(0), 0.0)
    executor.wake(0.0)
    assert pieces == [2], "a step is under way"
    assert executor.wake_at is None
    clock[0] = 10_000_000
    executor.receive("device", Completed(), 0.01)
    assert executor.wake_at == 0.01 + IDLE_S
    for _ in range(3):
        executor.wake(1.0)
    assert executor.wake_at is None, "nothing is left, and an idle service uses no CPU"


def test_after_a_restart_graphs_are_captured_between_steps_in_a_bounded_share_of_the_time() -> None:
    pieces = [3]

    def background_work() -> float | None:
        pieces[0] -= 1
        return 0.02 if pieces[0] >= 0 else None

    clock = [0]
    device = EmulatedDevice(30.0, clock_ns=lambda: clock[0], realtime=False)
    batch = RunningBatch(2, 8, 2)
    pipeline = Pipeline(device, EmulatedRunner(2, 16, 50), 2, batch.input_capacity, batch.output_capacity)
    executor = Executor(pipeline, batch, Capacity(5, 8), {}, background_work, catching_up=True)
    executor.receive("scheduler", Plan(0), 0.0)
    captured_at: list[float] = []
    for step in range(1, 90):
        executor.receive("scheduler", Plan(step), clock[0] * 1e-9)  # a step is always under way
        completed_at = executor.next_completion()
        assert completed_at is not None
        clock[0] = max(clock[0], round(completed_at * 1e9))
        now = clock[0] * 1e-9
        executor.receive("device", Completed(), now)
        if executor.wake_at is not None:
            before = pieces[0]
            executor.wake(now)
            if pieces[0] < before:
                captured_at.append(now)
                clock[0] += 20_000_000 if pieces[0] >= 0 else 0
        assert (executor.full_speed_at is None) == (pieces[0] >= 0)
    assert len(captured_at) == 4, "three, and the look that found nothing more"
    assert captured_at[0] >= FIRST_TOKENS_S, "first tokens come first"
    pauses = [later - sooner for sooner, later in itertools.pairwise(captured_at)]
    rest = 0.02 / CATCHING_UP_SHARE
    assert all(rest - 1e-6 <= pause < rest + 0.031 for pause in pauses), f"at the next step's end: {pauses}"
    assert executor.full_speed_at == captured_at[-1]


def test_graphs_are_captured_where_each_step_is_over_when_it_is_launched() -> None:
    """Kernel by kernel, launching a step of a large model takes longer than the device needs for it: no step is under
    way when one has come back, and the service is not idle either."""
    pieces = [3]

    def background_work() -> float | None:
        pieces[0] -= 1
        return 0.02 if pieces[0] >= 0 else None

    clock = [0]
    device = EmulatedDevice(8.0, clock_ns=lambda: clock[0], realtime=False)
    batch = RunningBatch(2, 8, 2)
    pipeline = Pipeline(device, EmulatedRunner(2, 16, 50), 2, batch.input_capacity, batch.output_capacity)
    executor = Executor(pipeline, batch, Capacity(5, 8), {}, background_work, catching_up=True)
    for step in range(90):
        executor.receive("scheduler", Plan(step), clock[0] * 1e-9)
        clock[0] += 33_000_000
        now = clock[0] * 1e-9
        executor.receive("device", Completed(), now)
        assert pipeline.idle
        if executor.wake_at is not None and executor.wake_at <= now:
            executor.wake(now)
            clock[0] += 20_000_000
        if executor.full_speed_at is not None:
            break
    rest = 0.02 / CATCHING_UP_SHARE
    assert executor.full_speed_at is not None
    assert 3 * rest <= executor.full_speed_at - FIRST_TOKENS_S <= 3 * (rest + 2 * 0.053) + 2 * 0.053


@pytest.mark.parametrize("crashed", [False, True])
def test_what_was_slow_twice_is_captured_at_once_while_suspects_are_tried(crashed: bool) -> None:
    device = EmulatedDevice(1.0, clock_ns=lambda: 0, realtime=False)
    batch = RunningBatch(2, 8, 2)
    pipeline = Pipeline(device, EmulatedRunner(2, 16, 50), 2, batch.input_capacity, batch.output_capacity)
    slow = [False]
    executor = Executor(
        pipeline,
        batch,
        Capacity(5, 8, crashed),
        {},
        lambda: 0.02,
        catching_up=True,
        missed_twice=lambda: slow[0],
    )
    assert executor.background_work is not None
    executor.receive("scheduler", Plan(0), 1.0)
    assert not executor.background_work.may_catch_up(1.1), "first tokens come first"
    slow[0] = True
    assert executor.background_work.may_catch_up(1.1) == crashed
    pipeline.awaiting_masks = pipeline.slots[0]
    assert not executor.background_work.may_catch_up(1.1)
    pipeline.awaiting_masks = None
    slow[0] = False
    assert executor.background_work.may_catch_up(1.0 + FIRST_TOKENS_S)


def test_nothing_is_captured_before_the_first_tokens_nor_between_steps_that_it_would_not_help() -> None:
    """An executor that was just forked has no step under way, and neither has one between two steps of suspects."""
    pieces: list[float] = []
    clock = [0]
    device = EmulatedDevice(1.0, clock_ns=lambda: clock[0], realtime=False)
    batch = RunningBatch(2, 8, 2)
    pipeline = Pipeline(device, EmulatedRunner(2, 16, 50), 2, batch.input_capacity, batch.output_capacity)
    slow = [False]

    def background_work() -> float:
        pieces.append(clock[0] * 1e-9)
        slow[0] = False
        return 0.02

    executor = Executor(
        pipeline,
        batch,
        Capacity(5, 8, True),
        {},
        background_work,
        catching_up=True,
        missed_twice=lambda: slow[0],
    )
    clock[0] = 1_000_000_000
    executor.receive("scheduler", PeerUp("scheduler", 1), 1.0)
    executor.wake(1.0)
    assert pieces == []
    assert executor.wake_at == 1.0 + IDLE_S, "it looks again"
    for step in range(4):
        executor.receive("scheduler", Plan(step), clock[0] * 1e-9)
        clock[0] += 30_000_000
        slow[0] = step == 2
        executor.receive("device", Completed(), clock[0] * 1e-9)
        for _ in range(3):
            if executor.wake_at is not None and executor.wake_at <= clock[0] * 1e-9:
                executor.wake(clock[0] * 1e-9)
    assert len(pieces) == 1, "that of the step that was slow again"
    later = clock[0] * 1e-9 + IDLE_S
    executor.wake(later)
    assert len(pieces) == 2, "nobody asks for anything any more"


def test_no_graph_is_captured_while_a_step_waits_for_its_masks() -> None:
    """Its logits are where those of a graph would be."""
    device = EmulatedDevice(1.0, clock_ns=lambda: 0, realtime=False)
    batch = RunningBatch(2, 8, 2)
    pipeline = Pipeline(device, EmulatedRunner(2, 16, 50), 2, batch.input_capacity, batch.output_capacity)
    executor = Executor(pipeline, batch, Capacity(5, 8), {}, lambda: 0.02, catching_up=True)
    assert executor.background_work is not None
    assert executor.background_work.may_catch_up(1.0)
    pipeline.awaiting_masks = pipeline.slots[0]
    assert not executor.background_work.may_catch_up(1.0)


def test_a_step_that_only_decodes_is_laid_out_once() -> None:
    """Until the batch changes, its layout is the same object, and its packed inputs are the same numbers."""
    batch = RunningBatch(SLOTS, 32, 8, BUCKETS)
    batch.decoding[[0, 2]] = True
    staging = np.zeros(batch.input_capacity, np.int32)
    first = batch.stage(Plan(0), staging)
    packed = staging[: first.layout.input_size].copy()
    staging[:] = 7
    second = batch.stage(Plan(1), staging)
    assert second.layout is first.layout
    assert second.max_kv_len == first.max_kv_len + 1
    assert packed.tolist() == staging[: second.layout.input_size].tolist() == [0, 2, SLOTS, SLOTS]
    third = batch.stage(Plan(2, leaves=np.array([2], np.int32).tobytes()), staging)
    assert staging[: third.layout.input_size].tolist() == [0, SLOTS, SLOTS, SLOTS]
    assert replace(third, max_kv_len=0).layout.rows == 1
