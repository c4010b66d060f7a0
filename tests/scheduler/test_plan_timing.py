"""When the next step is planned: late enough to take in what arrives, and early enough that no device waits."""

from __future__ import annotations

import random

import pytest
from checked_scheduler import CheckedScheduler, int32
from slipstream.actors.scheduler.plan_timing import MIN_LEAD_S, MIN_WAIT_S, PlanTiming


def settled(share: float = 1.0) -> PlanTiming:
    """After many steps that took ``share`` of what was expected."""
    timing = PlanTiming()
    for _ in range(200):
        timing.learn(0.1, 0.1 * share, 0.0)
    return timing


def test_a_plan_is_due_shortly_before_the_step_under_way_ends() -> None:
    timing = settled()
    timing.begin(10.0)
    assert timing.due(10.0, 0.050) == pytest.approx(10.0 + 0.050 - MIN_LEAD_S, abs=1e-4)
    assert timing.due(10.030, 0.050) == pytest.approx(10.0 + 0.050 - MIN_LEAD_S, abs=1e-4)
    assert timing.due(10.048, 0.050) == 10.048  # it is late already


def test_after_a_short_step_a_plan_is_due_at_once_and_so_it_is_where_nothing_is_known() -> None:
    timing = settled()
    timing.begin(10.0)
    assert timing.due(10.0, MIN_LEAD_S + MIN_WAIT_S - 0.0001) == 10.0
    assert timing.due(10.0, 0.0) == 10.0


def test_with_several_steps_under_way_a_plan_is_due_before_the_last_of_them_ends() -> None:
    timing = settled()
    timing.begin(10.0)
    assert timing.due(10.0, 3 * 0.030) == pytest.approx(10.0 + 0.090 - MIN_LEAD_S, abs=1e-4)


def test_a_step_that_was_shorter_than_expected_is_learned_from_at_once_and_forgotten_slowly() -> None:
    timing = settled()
    timing.learn(0.1, 0.06, 0.0)
    timing.begin(0.0)
    assert timing.due(0.0, 0.1) == pytest.approx(0.06 - MIN_LEAD_S)
    for _ in range(10):
        timing.learn(0.1, 0.1, 0.0)
    assert 0.06 < timing.due(0.0, 0.1) + MIN_LEAD_S < 0.08


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.5])
def test_where_times_vary_the_device_seldom_waits(noise: float) -> None:
    rng, timing, waited, took = random.Random(0), PlanTiming(), 0.0, 0.0
    for _ in range(2000):
        timing.begin(0.0)
        step_s = 0.04 * (1 + noise * rng.uniform(-1, 1))
        wait = max(0.0, timing.due(0.0, 0.04) + 0.001 - step_s)  # the plan needs a millisecond to get there
        timing.learn(0.04, step_s, wait)
        waited += wait
        took += step_s
    assert waited <= 0.01 * took


@pytest.mark.parametrize("often", [0.02, 0.2, 1.0])
def test_where_the_processors_are_busy_plans_are_made_early_enough_again(often: float) -> None:
    rng, timing, waited = random.Random(0), settled(), 0.0
    for _ in range(2000):
        timing.begin(0.0)
        late = 0.015 if rng.random() < often else 0.001
        wait = max(0.0, timing.due(0.0, 0.04) + late - 0.04)
        timing.learn(0.04, 0.04, wait)
        waited += wait
    assert waited <= 0.01 * 2000 * 0.04
    for _ in range(500):
        timing.learn(0.04, 0.04, 0.0)
    assert timing.lead_s < 0.005  # and late again when they are not


def test_the_few_microseconds_between_two_steps_of_a_device_are_no_wait() -> None:
    timing = settled()
    for _ in range(2000):
        timing.learn(0.04, 0.04, 4e-6)
    assert timing.lead_s == pytest.approx(MIN_LEAD_S)


# --- the scheduler ----------------------------------------------------------------------------------

STEP_S = 0.040


def long_steps() -> CheckedScheduler:
    """One stream, and a device that takes 40 ms for each step, as the scheduler has learned."""
    checked = CheckedScheduler(depth=2, step_ns=lambda prefill: int(STEP_S * 1e9))
    checked.ask(1, list(range(3, 13)), max_tokens=200, ignore_eos=True)
    for _ in range(100):
        checked.finish_step()
    return checked


def test_what_arrives_while_a_long_step_runs_is_in_the_very_next_one() -> None:
    checked = long_steps()
    (running,) = checked.outstanding  # the next one is not planned yet
    checked.ask(2, list(range(20, 30)), max_tokens=3)
    assert list(checked.outstanding) == [running]
    began = checked.now
    checked.wake()
    assert checked.now - began < STEP_S
    _, following = checked.outstanding
    assert [join.tokens for join in following.joins] == [int32(list(range(20, 30)))]


def test_a_step_that_ends_before_the_next_one_was_due_is_followed_by_it_at_once() -> None:
    checked = long_steps()
    assert checked.scheduler.wake_at is not None
    assert checked.scheduler.wake_at > checked.now + 0.005
    checked.finish_step()
    assert len(checked.outstanding) == 1
