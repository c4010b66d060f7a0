"""The race checker finds every race and nothing else, and the pipeline has none."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import select
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import simulation
import torch
from covering import few_of
from graphed import RecordedGraphs, TensorDevice, TensorRunner
from race_faults import CHECKER, CHECKER_FAULTS, FAULTS, HARMLESS, REAL, SLOT, Code, Fault, edited, plant
from race_oracle import Pair, by_execution, by_reachability, random_program, used_after_loss
from races import Race, races
from recording import (
    HOST,
    KV_BLOCK,
    SEQUENCE_SLOT,
    STATE_SLOT,
    RecordedBatch,
    RecordedRunner,
    Recording,
    RecordingDevice,
)
from replay import Replays
from simulation import EOS, MODEL_LEN, VOCAB, World, grammar_compiler
from slipstream.actors.executor.devices.device import Buffer, Device
from slipstream.actors.executor.devices.emulated import EmulatedDevice
from slipstream.actors.executor.executor import Executor
from slipstream.actors.executor.pipeline import StepRunner
from slipstream.actors.executor.sampling.masks import Masks
from slipstream.actors.executor.step.buckets import buckets_of
from slipstream.actors.executor.step.description import Step
from slipstream.actors.executor.step.emulated_runner import EmulatedRunner
from slipstream.actors.scheduler.config import SchedulerConfig
from slipstream.actors.scheduler.scheduler import Scheduler
from slipstream.protocol.events import Completed, PeerUp
from slipstream.protocol.internal import Capacity, Enqueue, Tokens
from slipstream.protocol.sampling import SamplingParams
from slipstream.runtime.actor import Actor
from slipstream.runtime.simulator import Simulator
from tiny_models import make_config
from workers import ThreeWorkers

BLOCK_SIZE, BUDGET = 8, 12
PROGRAMS = 40_000


# --- the checker --------------------------------------------------------------------------------------


def found_by(
    checker: Callable[[Recording], Iterator[Race]], program: Recording
) -> tuple[set[Pair], set[Pair]]:
    """What the checker says: pairs that nothing orders, and uses of what was lost."""
    unordered: set[Pair] = set()
    lost: set[Pair] = set()
    for race in checker(program):
        pairs = lost if race.known >= race.first.number else unordered
        pairs.add((race.first.number, race.second.number, race.place))
    return unordered, lost


def test_the_checker_finds_every_racing_pair_of_any_program_and_no_other(more: int) -> None:
    rng = random.Random(0)
    racy = clean = 0
    for number in range(PROGRAMS * more):
        program = random_program(rng, most=14)
        expected = by_reachability(program.operations)
        assert found_by(races, program) == (expected, used_after_loss(program.operations)), number
        racy += bool(expected)
        clean += not expected
    assert min(racy, clean) > PROGRAMS * more // 4


def test_operations_race_when_some_run_does_one_first_and_some_run_the_other(more: int) -> None:
    rng = random.Random(1)
    for number in range(PROGRAMS * more // 10):
        program = random_program(rng, most=12)
        assert found_by(races, program)[0] == by_execution(program.operations), number


@pytest.mark.parametrize("fault", CHECKER_FAULTS)
def test_a_wrong_checker_does_not_pass(fault: str) -> None:
    wrong = edited(CHECKER, CHECKER_FAULTS[fault]).races
    rng = random.Random(2)
    programs = [random_program(rng, most=14) for _ in range(1000)]
    assert any(
        found_by(wrong, program) != (by_reachability(program.operations), used_after_loss(program.operations))
        for program in programs
    )


def test_a_report_names_operations_streams_buffer_step_and_the_missing_order() -> None:
    recording = Recording()
    device = RecordingDevice(EmulatedDevice(1.0, clock_ns=lambda: 0, realtime=False), recording)
    staging, inputs = device.staging(4), device.buffer(4)
    recording.step = 7
    device.h2d.copy(inputs, staging, 4)
    device.array(staging)[0] = 1
    assert list(map(str, races(recording))) == [
        "staging 0: overwritten before it is read: copy on h2d (operation 2, step 7), then write on host"
        " (operation 3, step 7); missing: host waits for no event recorded on h2d after operation 2,"
        " it knows of nothing there"
    ]


def test_the_host_is_seen_reading_and_writing_however_it_does() -> None:
    recording = Recording()
    device = RecordingDevice(EmulatedDevice(1.0, clock_ns=lambda: 0, realtime=False), recording)
    view = device.array(device.staging(6))

    def kinds(access: Callable[[], object]) -> list[str]:
        recording.add(HOST, "synchronize")  # the same access twice in a row is one
        before = len(recording.operations)
        access()
        return [operation.kind for operation in recording.operations[before:]]

    for read in (
        lambda: view[0],
        lambda: view[2:4].copy(),
        lambda: view[[1, 2]],
        lambda: view.reshape(2, 3).tolist(),
        lambda: view.tobytes(),
        lambda: view + 1,
        lambda: view.max(),
    ):
        assert kinds(read) == ["read"]
    for write in (
        lambda: view.__setitem__(0, 1),
        lambda: view[2:4].__setitem__(slice(None), 5),
        lambda: view.reshape(2, 3).view(np.float32).__setitem__((0, 1), 0.5),
        lambda: np.add(1, 2, out=view[:1]),
    ):
        assert kinds(write) == ["write"]
    assert kinds(lambda: view[1:3]) == []  # a slice alone is no access
    copied = view.copy()
    assert kinds(lambda: copied + copied[0]) == []  # nor is what happens to a copy


# --- the pipeline -------------------------------------------------------------------------------------


def recorded(
    inner: Device,
    model: StepRunner,
    depth: int,
    slots: int,
    blocks: int,
    code: Code,
    graphed: bool,
    stateful: bool,
) -> tuple[Executor, Recording]:
    """An executor as ``build`` makes it, and the recording of all that it does."""
    recording = Recording()
    device = RecordingDevice(inner, recording)
    max_blocks = -(-MODEL_LEN // BLOCK_SIZE)
    buckets = buckets_of(slots, BUDGET, MODEL_LEN) if graphed else None
    compiler = grammar_compiler()
    batch = RecordedBatch(
        recording, BLOCK_SIZE, slots, BUDGET, max_blocks, buckets, compiler.words, stateful=stateful
    )
    runner = RecordedRunner(model, recording, batch)
    background_work = None
    if buckets is not None:
        assert isinstance(model, EmulatedRunner)
        parts: Any = TensorRunner(model, recording, stateful=stateful)
        replaying = code.graphed(parts, Replays().capture, MODEL_LEN, buckets)
        runner = RecordedGraphs(replaying, recording, batch)
        background_work = runner.capturing(device)
    pipeline = code.pipeline(
        device, runner, depth, batch.input_capacity, batch.output_capacity, batch.mask_capacity
    )
    recording.name_slots(pipeline.slots)
    for name, buffer in (("mask staging", pipeline.mask_staging), ("masks", pipeline.masks)):
        recording.names[recording.location(buffer).place] = name
    masks = Masks(compiler, slots)
    capacity = Capacity(blocks, BLOCK_SIZE, prefix_caching=not stateful)
    given = (pipeline, batch, capacity, {}, background_work, masks)
    return code.executor(*given, catching_up=background_work is not None), recording


class RecordedWorld(World):
    """The simulated service with a recording of each executor."""

    def __init__(
        self,
        seed: int,
        depth: int,
        code: Code = REAL,
        *,
        slots: int = 4,
        blocks: int = 18,
        graphed: bool = False,
        stateful: bool = False,
    ) -> None:
        def executor(world: Simulator) -> Executor:
            kind = TensorDevice if graphed else EmulatedDevice
            device = kind(1.0, clock_ns=world.clock_ns, realtime=False)
            model = EmulatedRunner(slots, MODEL_LEN, VOCAB)
            executor, recording = recorded(device, model, depth, slots, blocks, code, graphed, stateful)
            self.recordings.append(recording)
            self.executors.append(executor)
            return executor

        def scheduler(world: Simulator) -> Scheduler:
            return code.scheduler(SchedulerConfig(slots, BUDGET, MODEL_LEN, depth, (EOS,)))

        self.recorded = {"executor": executor, "scheduler": scheduler}
        self.recordings: list[Recording] = []
        self.executors: list[Executor] = []
        """Crashed ones too: a crash is no free."""
        super().__init__(seed, depth=depth, slots=slots, blocks=blocks)

    def start(self, name: str) -> None:
        self.factories |= self.recorded
        super().start(name)

    def run(self, until: Callable[[], bool], most_turns: int = 10_000, most_s: float = 3.0) -> None:
        """No load here takes three seconds or a thousand turns; but a service with a fault may never end."""
        super().run(lambda: self.now > most_s or until(), most_turns)

    def races(self) -> Iterator[Race]:
        return itertools.chain.from_iterable(map(races, self.recordings))


def random_load(world: World, requests: int) -> None:
    simulation.random_load(world, requests, aborts=0.3)


def repeated_load(world: World, requests: int) -> None:
    """The same few prompts again and again, so that the ends of prompts are copied."""
    crowded_load(world, 2 * requests, lengths=(13, 22, 60))


def crowded_load(world: World, requests: int, lengths: Sequence[int] = range(1, 100)) -> None:
    """Too little room, many common prefixes, and clients that give up early: blocks change hands all the time."""
    rng = world.rng
    world.connect(b"ann")
    for number in range(requests):
        prompt = list(range(rng.choice(lengths)))
        if rng.random() < 0.3:
            prompt = [rng.randrange(VOCAB) for _ in prompt]
        params = SamplingParams(max_tokens=rng.randrange(1, 30), seed=rng.getrandbits(60))
        start = 0.01 + rng.random() * 0.03
        world.at(start, lambda i=str(number), p=prompt, s=params: world.ask(b"ann", i, p, s))
        if rng.random() < 0.4:
            world.at(start + rng.random() * 0.02, lambda i=str(number): world.abort(b"ann", i))
    world.run(lambda: len(world.requests) == requests and world.over())


def drill(fault: Fault, depth: int, seeds: int, *, stateful: bool = False) -> Iterator[Race]:
    """What is found in random schedules with the fault. It may break the service; the recording remains."""
    code = plant(fault)
    assert fault.first < seeds
    for seed in (fault.first, *range(seeds)) if fault.first else range(seeds):
        for load, slots in ((crowded_load, 4), (random_load, 2), (repeated_load, 3)):
            world = RecordedWorld(seed, depth, code, slots=slots, graphed=fault.graphed, stateful=stateful)
            with contextlib.suppress(Exception):
                load(world, 10)
            yield from world.races()


def test_there_are_more_than_fifty_faults_and_each_is_another() -> None:
    assert len({fault.id for fault in FAULTS}) == len(FAULTS)
    assert len({(fault.module, fault.edits) for fault in FAULTS}) == len(FAULTS) > 50


@pytest.mark.covering(1)
@pytest.mark.parametrize(
    ("fault", "depth"), [pytest.param(f, d, id=f"{f.id}-depth-{d}") for f in FAULTS for d in f.depths]
)
def test_a_planted_fault_is_found(fault: Fault, depth: int) -> None:
    found = itertools.islice(drill(fault, depth, seeds=80), 100_000)  # the first ends it; some are rare
    assert any(race.name.startswith(fault.place) for race in found)


@pytest.mark.covering(1)
@pytest.mark.parametrize(
    ("fault", "depth"),
    [pytest.param(f, d, id=f"{f.id}-depth-{d}") for f in FAULTS if f.place == SLOT for d in f.depths],
)
def test_a_state_that_changes_hands_too_early_is_found(fault: Fault, depth: int) -> None:
    found = itertools.islice(drill(fault, depth, seeds=80, stateful=True), 100_000)
    assert any(race.name.startswith(STATE_SLOT) for race in found)


@pytest.mark.covering(1)
@pytest.mark.parametrize(
    ("fault", "depth"), [pytest.param(f, d, id=f"{f.id}-depth-{d}") for f in HARMLESS for d in f.depths]
)
def test_a_change_that_keeps_the_order_is_not_reported(fault: Fault, depth: int) -> None:
    assert next(drill(fault, depth, seeds=2), None) is None


@pytest.mark.parametrize("depth", few_of([1, 2, 3, 4], 2, 3))
def test_the_pipeline_has_no_race_in_any_schedule(depth: int, more: int) -> None:
    reused: set[str] = set()
    for seed in range(40 * more):
        load = (random_load, crowded_load, repeated_load)[seed % 3]
        world = RecordedWorld(seed, depth, slots=2 + seed % 4, graphed=seed % 4 == 0, stateful=seed % 5 == 1)
        if seed % 5 == 0:
            name, instant = world.rng.choice(["scheduler", "executor"]), 0.01 + world.rng.random() * 0.05
            world.at(instant, lambda w=world, n=name: w.crash(n, 0.001))
        load(world, 8)
        world.check()
        for race in world.races():
            pytest.fail(f"seed {seed}: {race}")
        reused |= {place[0] for r in world.recordings for place, life in r.generations.items() if life > 0}
    assert reused == {SEQUENCE_SLOT, STATE_SLOT, KV_BLOCK}


def launches_and_mask_copies(load: Callable[[World], None]) -> tuple[int, int, int]:
    """Of a run: its steps, the launches that they took, and how often masks were copied."""
    world = RecordedWorld(1, 2)
    load(world)
    world.check()
    operations = world.recordings[0].operations
    masks = world.recordings[0].location(world.executors[0].pipeline.masks)
    steps = len({operation.step for operation in operations if operation.step >= 0})
    launches = sum(operation.kind == "launch" for operation in operations)
    return steps, launches, sum(o.kind == "copy" and masks in o.writes for o in operations)


def test_only_a_step_with_a_grammar_is_launched_in_two_parts() -> None:
    def ask(world: World, *asked: SamplingParams) -> None:
        world.connect(b"ann")
        for number, params in enumerate(asked):
            world.ask(b"ann", str(number), [1 + number, 2, 3], params)
        world.run(world.over)

    plain = SamplingParams(max_tokens=30, seed=1, ignore_eos=True)
    short = SamplingParams(max_tokens=30, seed=1, regex="[a-z]{4}")
    steps, launches, copies = launches_and_mask_copies(lambda world: ask(world, plain, plain))
    assert (launches, copies) == (steps, 0)
    steps, launches, copies = launches_and_mask_copies(lambda world: ask(world, plain, short))
    assert 5 <= copies <= 7  # four letters, the end, and what was under way by then
    assert launches == steps + copies


class SlowRunner:
    """The emulated model on the CPU device, slow enough that the host is ahead of it."""

    def __init__(self, slots: int) -> None:
        self.runner = EmulatedRunner(slots, MODEL_LEN, VOCAB)

    def run(self, inputs: Buffer, outputs: Buffer, step: Step) -> None:
        time.sleep(0.001)
        self.runner.run(inputs.numpy(), outputs.numpy(), step)

    def begin(self, inputs: Buffer, step: Step) -> None:
        time.sleep(0.001)
        self.runner.begin(inputs.numpy(), step)

    def finish(self, inputs: Buffer, masks: Buffer, outputs: Buffer, step: Step) -> None:
        self.runner.finish(inputs.numpy(), masks.numpy(), outputs.numpy(), step)


def on_threads() -> tuple[Device, StepRunner]:
    return ThreeWorkers(), SlowRunner(4)


def on_cuda() -> tuple[Device, StepRunner]:
    """The real runner. Its attention is made of torch's operations, so that PyTorch's own stream sanitizer
    (``TORCH_CUDA_SANITIZER=1`` in the environment) sees all that it reads and writes."""
    from slipstream.actors.executor.devices.cuda import CudaDevice
    from slipstream.actors.executor.model.loading.load import from_config
    from slipstream.actors.executor.step.model_runner import ModelRunner

    config = make_config("llama", vocab_size=VOCAB, eos_token_id=EOS, max_position_embeddings=MODEL_LEN)
    where = torch.device("cuda", 0)
    model = from_config(config, where, torch.float32, attention_backend="torch")
    device = CudaDevice()
    with torch.inference_mode():
        runner = ModelRunner(model, 4, MODEL_LEN, BLOCK_SIZE, 18, check_carry_over=True)
    torch.cuda.synchronize()
    return device, runner


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("start", [on_threads, pytest.param(on_cuda, marks=NO_GPU)])
def test_the_pipeline_has_no_race_on_real_streams(
    start: Callable[[], tuple[Device, StepRunner]], depth: int
) -> None:
    device, runner = start()
    executor, recording = recorded(device, runner, depth, 4, 18, REAL, graphed=False, stateful=depth % 2 == 0)
    scheduler = Scheduler(SchedulerConfig(4, BUDGET, MODEL_LEN, depth, (EOS,)))
    actors: dict[object, Actor] = {"executor": executor, "scheduler": scheduler}
    ended: set[int] = set()

    def turn(to: object, sender: str, message: object) -> None:
        if isinstance(message, Tokens):
            ended.update(finished.request for finished in message.finished)
        if to in actors:
            for following, said in actors[to].receive(sender, message, 0.0):
                turn(following, str(to), said)

    turn("executor", "executor", PeerUp("scheduler", 1))
    rng = random.Random(depth)
    for request in range(12):
        prompt = np.arange(rng.randrange(1, 60), dtype=np.int32).tobytes()
        params = SamplingParams(max_tokens=rng.randrange(1, 20), seed=request)
        turn("scheduler", "tokenizer", Enqueue(request, prompt, params, b""))
    fd = device.completions_fd
    assert fd is not None
    while len(ended) < 12 or executor.pipeline.under_way:
        assert select.select([fd], [], [], 10.0)[0], "the device stands still"
        os.eventfd_read(fd)
        turn("executor", "device", Completed())
    device.close()
    assert sum(operation.kind == "launch" for operation in recording.operations) > 30
    assert list(map(str, races(recording))) == []
