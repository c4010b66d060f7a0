"""The production actors under random schedules in virtual time."""

from __future__ import annotations

import numpy as np
import pytest
from chaos import Chaos, chaos_load, everything_fails
from covering import few_of
from simulation import VOCAB, World, known_token, random_load
from slipstream.actors.executor.step.emulated_runner import next_token


@pytest.mark.parametrize("depth", few_of([1, 2, 3, 4], 2, 4))
def test_any_schedule_gives_each_request_the_tokens_that_it_has_alone(depth: int, more: int) -> None:
    for seed in range(15 * more):
        world = World(seed, depth=depth)
        random_load(world, 25, aborts=0.15)
        world.check()
        world.check_nothing_left()


def test_a_cache_of_a_fifth_finishes_everything_with_the_same_tokens(more: int) -> None:
    preempted = 0.0
    for seed in range(20 * more):
        world = World(seed, depth=2, slots=8, blocks=22, caching=seed % 2 == 0)
        random_load(world, 20, aborts=0.0)
        world.check()
        world.check_nothing_left()
        preempted += world.actors["scheduler"].counters["num_preemptions"]  # type: ignore[attr-defined]
    assert preempted > 0


def test_a_run_is_a_function_of_its_seed() -> None:
    def history(seed: int) -> list[object]:
        world = World(seed)
        random_load(world, 20, aborts=0.2)
        return [world.turns, world.now, world.inbox]

    assert history(7) == history(7)
    assert history(7) != history(8)


ACTORS = ["tokenizer", "scheduler", "executor", "detokenizer"]


@pytest.mark.parametrize("crashing", [*([name] for name in ACTORS), ACTORS], ids="+".join)
def test_an_actor_that_crashes_at_any_instant_loses_repeats_and_changes_no_token(
    crashing: list[str], more: int
) -> None:
    for seed in range(10 * more):
        world = World(seed, depth=1 + seed % 3)
        crash_at_random(world, crashing)
        random_load(world, 20, aborts=0.1)
        world.check()
        world.check_nothing_left()


def crash_at_random(world: World, names: list[str]) -> None:
    for _ in range(world.rng.randrange(1, 5)):
        name, pause = world.rng.choice(names), world.rng.random() * 0.02
        world.at(0.01 + world.rng.random() * 0.2, lambda n=name, p=pause: world.crash(n, p))


STEPS, ALL_STEPS = 80_000, 10_000_000
"""Messages handled by the actors of the worlds in which everything fails."""


def chaos_world(seed: int) -> Chaos:
    """Of every four worlds one has little room, so that sequences are preempted."""
    return Chaos(seed, depth=1 + seed % 3, slots=6 + 2 * (seed % 2), blocks=40 if seed % 4 else 22)


def test_whatever_crashes_stalls_or_is_lost_every_request_has_one_end_and_every_answer_its_tokens_and_text(
    soak: bool,
) -> None:
    """The gateway and the connections of clients included; what a failure needs to be repeated is its seed."""
    steps = seed = 0
    while steps < (ALL_STEPS if soak else STEPS):
        world = chaos_world(seed)
        try:
            chaos_load(world, 25, everything_fails)
        except Exception as error:
            error.add_note(f"in the world with seed {seed}")
            raise
        steps, seed = steps + world.turns, seed + 1
    print(f"{seed} worlds, {steps} steps")


def test_what_comes_for_an_actor_whose_pause_is_prolonged_keeps_its_order() -> None:
    for seed in range(20):
        world = World(seed)
        for start, pause in ((0.02, 0.02), (0.03, 0.05), (0.06, 0.06)):
            world.at(start, lambda world=world, pause=pause: world.stand_still("detokenizer", pause))
        random_load(world, 20, aborts=0.1)
        world.check()
        world.check_nothing_left()


def test_chaos_is_a_function_of_its_seed_too() -> None:
    def history(seed: int) -> list[object]:
        world = chaos_world(seed)
        chaos_load(world, 20, everything_fails)
        return [world.turns, world.now, world.inbox, world.ends]

    assert history(11) == history(11)
    assert history(11) != history(12)


def test_the_oracle_knows_the_function_that_the_emulated_device_computes() -> None:
    rng = np.random.default_rng(0)
    previous, position = rng.integers(0, VOCAB, 500), rng.integers(1, 4096, 500)
    seed = rng.integers(0, 2**63 - 1, 500)
    rows = zip(previous.tolist(), position.tolist(), seed.tolist(), strict=True)
    assert next_token(previous, position, seed, VOCAB).tolist() == [known_token(*row, VOCAB) for row in rows]
