"""The pace of prompts: what the device's times say about the size of a chunk."""

from __future__ import annotations

import random

import pytest
from slipstream.actors.scheduler.pace import CROWD, LEAST, SHARE, Pace

BUDGET = 2048


def learned(decode_us: float, fixed_us: float, token_us: float, sizes: list[int], noise: float = 0.0) -> Pace:
    """A pace that has seen a device which takes so long, and runs chunks of these sizes."""
    rng, pace = random.Random(0), Pace()
    for size in sizes:
        for tokens, time in ((0, decode_us), (size, fixed_us + token_us * size)):
            pace.learn(tokens, int(time * 1000 * (1 + noise * (rng.random() - 0.5))))
    return pace


def test_before_anything_is_known_a_step_takes_what_the_budget_allows() -> None:
    assert Pace().limit(BUDGET, 1) == BUDGET
    pace = Pace()
    pace.learn(100, 1_000_000)
    assert pace.limit(BUDGET, 1) == BUDGET


@pytest.mark.parametrize("noise", [0.0, 0.2])
@pytest.mark.parametrize("sizes", [[200] * 5, [2000, 150, 150, 160, 140] * 3], ids=["one size", "many"])
def test_beside_streams_a_step_takes_at_most_twice_as_long(noise: float, sizes: list[int]) -> None:
    pace = learned(8000, 8000, 30, sizes, noise)
    tokens = pace.limit(BUDGET, 1)
    assert 30 * tokens == pytest.approx(SHARE * 8000, rel=0.05 if not noise else 0.5)


def test_where_any_prompt_makes_a_step_long_the_chunk_is_large_enough_to_be_over_soon() -> None:
    """As with a device that runs steps with prompts another way: 20 ms in any case, 8 ms without."""
    pace = learned(8000, 20_000, 30, [2000, 500, 700, 600])
    assert 30 * pace.limit(BUDGET, 1) == pytest.approx(SHARE * 20_000, rel=0.05)


def test_a_chunk_is_never_much_larger_than_those_whose_times_are_known() -> None:
    pace = learned(8000, 8000, 0.1, [10, 20, 40])
    assert pace.limit(BUDGET, 1) < 100


def test_the_more_prompts_wait_the_more_of_a_step_is_theirs() -> None:
    pace = learned(8000, 8000, 30, [2000, 500, 250])
    limits = [pace.limit(BUDGET, prompts) for prompts in (1, CROWD, 2 * CROWD, 100)]
    assert limits[0] == limits[1]
    assert limits[2] == pytest.approx(2 * limits[1], abs=2)
    assert limits[3] == BUDGET


def test_a_prompt_goes_on_whatever_it_costs_and_never_beyond_the_budget() -> None:
    pace = learned(10, 10, 1000, [500, 100])
    assert pace.limit(BUDGET, 1) == LEAST
    assert pace.limit(5, 1) == 5


def test_a_device_that_takes_the_same_for_every_step_is_not_slowed() -> None:
    assert learned(8000, 8000, 0, [2048, 1000, 1500]).limit(BUDGET, 1) == BUDGET


def test_what_the_device_does_now_counts_more_than_what_it_did() -> None:
    pace = learned(8000, 8000, 300, [100, 50] * 10)
    for size in (100, 200) * 30:
        pace.learn(0, 8_000_000)
        pace.learn(size, 8_000_000 + 30_000 * size)
    assert pace.limit(BUDGET, 1) == pytest.approx(SHARE * 8000 / 30, rel=0.1)
