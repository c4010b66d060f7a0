"""The production actors under random schedules in virtual time."""

from __future__ import annotations

import pytest
from simulation import World, random_load


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_any_schedule_gives_each_request_the_tokens_that_it_has_alone(depth: int, more: int) -> None:
    for seed in range(60 * more):
        world = World(seed, depth=depth)
        random_load(world, 25, aborts=0.15)
        world.check()
        world.check_nothing_left()


def test_a_cache_of_a_fifth_finishes_everything_with_the_same_tokens(more: int) -> None:
    preempted = 0.0
    for seed in range(40 * more):
        world = World(seed, depth=2, slots=8, blocks=22, caching=seed % 2 == 0)
        random_load(world, 20, aborts=0.0)
        world.check()
        world.check_nothing_left()
        preempted += world.actors["scheduler"].counters["preemptions"]  # type: ignore[attr-defined]
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
    for seed in range(25 * more):
        world = World(seed, depth=1 + seed % 3)
        crash_at_random(world, crashing)
        random_load(world, 20, aborts=0.1)
        world.check()
        world.check_nothing_left()


def crash_at_random(world: World, names: list[str]) -> None:
    for _ in range(world.rng.randrange(1, 5)):
        name, pause = world.rng.choice(names), world.rng.random() * 0.02
        world.at(0.01 + world.rng.random() * 0.2, lambda n=name, p=pause: world.crash(n, p))
