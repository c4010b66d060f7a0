"""An executor of several ranks in the simulator: whichever crashes, no token is lost, and all run the same steps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from covering import few_of
from races import Race, races
from recording import RecordedRunner, Recording, RecordingDevice
from simulation import MODEL_LEN, VOCAB, World, grammar_compiler, random_load
from slipstream.actors.executor.devices.emulated import EmulatedDevice
from slipstream.actors.executor.pipeline import Pipeline
from slipstream.actors.executor.ranks.follower import Follower
from slipstream.actors.executor.ranks.leader import Leader
from slipstream.actors.executor.step.batch import RunningBatch
from slipstream.actors.executor.step.description import Step
from slipstream.actors.executor.step.emulated_runner import EmulatedRunner
from slipstream.protocol.internal import ClearBatch, Plan
from slipstream.runtime.simulator import Simulator

RANKS = ("executor", "executor.1", "executor.2")


class RecordingBatch(RunningBatch):
    """Keeps what it has staged."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.staged: list[tuple[int, Step, bytes]] = []

    def stage(self, plan: Plan, staging: np.ndarray) -> Step:
        step = super().stage(plan, staging)
        self.staged.append((plan.step, step, staging[: step.layout.input_size].tobytes()))
        return step


class Ranks(World):
    batch = RecordingBatch


def check_same_steps(world: World) -> int:
    """All ranks have staged the same bytes, the followers perhaps not yet the last; how many steps."""
    batches = [world.actors[name].batch for name in RANKS]  # type: ignore[attr-defined]
    first = batches[0].staged
    for batch in batches[1:]:
        assert 0 <= len(first) - len(batch.staged) <= 4
        assert batch.staged == first[: len(batch.staged)]
    return len(first)


def run(world: World) -> int:
    random_load(world, 20, aborts=0.1)
    world.check()
    world.check_nothing_left()
    return check_same_steps(world)


@pytest.mark.parametrize("depth", few_of([1, 2, 3], 2))
def test_every_rank_stages_the_same_steps(depth: int, more: int) -> None:
    steps = 0
    for seed in range(8 * more):
        world = Ranks(seed, depth=depth, ranks=3, blocks=40 if seed % 2 else 22)
        steps += run(world)
    assert steps > 500


@pytest.mark.parametrize("crashing", [["executor"], ["executor.1"], [*RANKS, "scheduler"]], ids="+".join)
def test_a_rank_that_crashes_at_any_instant_loses_repeats_and_changes_no_token(
    crashing: list[str], more: int
) -> None:
    for seed in range(8 * more):
        world = Ranks(seed, depth=1 + seed % 3, ranks=3)
        for number in range(world.rng.randrange(1, 5)):
            name, pause = world.rng.choice(crashing), world.rng.random() * 0.02
            own_fault = number == 0  # at a second one that is alone would be quarantined
            world.at(
                0.01 + world.rng.random() * 0.2,
                lambda n=name, p=pause, f=own_fault, w=world: w.crash(n, p, own_fault=f),
            )
        for _ in range(2):
            sender, to = ("executor", world.rng.choice(RANKS[1:]))
            world.at(0.01 + world.rng.random() * 0.2, lambda s=sender, t=to, w=world: w.lose(s, t))
        random_load(world, 20, aborts=0.1)
        world.check()
        world.check_nothing_left()
        if all(name in world.actors for name in RANKS):
            check_same_steps(world)


def test_a_plan_that_is_not_handed_on_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    send = Leader.send_to_followers
    monkeypatch.setattr(
        Leader,
        "send_to_followers",
        lambda self, message: None if getattr(message, "step", 0) == 10 else send(self, message),
    )
    world = Ranks(3, ranks=3)
    with pytest.raises((AssertionError, RuntimeError)):
        run(world)


def test_a_follower_that_does_not_forget_an_old_scheduler_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = Follower.on_command

    def on_command(self: Follower, command: Any, now: float) -> None:
        if not isinstance(command, ClearBatch):
            go_on(self, command, now)

    monkeypatch.setattr(Follower, "on_command", on_command)
    world = Ranks(3, ranks=3)
    world.at(0.05, lambda: world.crash("scheduler", 0.01))
    with pytest.raises((AssertionError, RuntimeError)):
        run(world)


# --- races --------------------------------------------------------------------------------------------


class RecordedRanks(World):
    """With a recording of every follower's device: its buffers, and what no event orders."""

    def __init__(self, seed: int, depth: int, kind: type[Follower] = Follower) -> None:
        def follower(world: Simulator) -> Follower:
            recording = Recording()
            device = RecordingDevice(EmulatedDevice(1.0, clock_ns=world.clock_ns, realtime=False), recording)
            batch = RunningBatch(4, 24, -(-MODEL_LEN // 8), mask_words=grammar_compiler().words)
            nothing: Any = SimpleNamespace(uses={})
            runner = RecordedRunner(EmulatedRunner(4, MODEL_LEN, VOCAB), recording, nothing)
            capacities = (batch.input_capacity, batch.output_capacity, batch.mask_capacity)
            self.recordings.append(recording)
            return kind("executor.1", 1, Pipeline(device, runner, depth, *capacities), batch, {})

        self.recordings: list[Recording] = []
        self.follower = follower
        super().__init__(seed, depth=depth, slots=4, ranks=2)

    def start(self, name: str) -> None:
        self.factories["executor.1"] = self.follower
        super().start(name)

    def races(self) -> list[Race]:
        return [race for recording in self.recordings for race in races(recording)]


@pytest.mark.parametrize("depth", few_of([1, 2, 3], 3))
def test_the_buffers_of_a_follower_are_in_order(depth: int, more: int) -> None:
    for seed in range(4 * more):
        world = RecordedRanks(seed, depth)
        world.at(0.05, lambda world=world: world.crash("scheduler", 0.01))
        random_load(world, 20, aborts=0.1)
        world.check()
        assert sum(len(recording.operations) for recording in world.recordings) > 1000
        assert world.races() == []


class Hasty(Follower):
    """Lets a step with masks go on before the results of those before it have come."""

    def pass_masks(self) -> None:
        if self.pipeline.awaiting_masks is not None:
            self.pipeline.sample()


def test_masks_that_are_written_too_early_are_found() -> None:
    found = []
    for seed in range(8):
        world = RecordedRanks(seed, 3, Hasty)
        random_load(world, 20, aborts=0.0)
        found += world.races()
    assert any("overwritten while a launch may still read it" in str(race) for race in found)
