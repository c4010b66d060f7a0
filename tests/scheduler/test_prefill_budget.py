"""The budget for prompts: what the device's times say about how many of their tokens a step takes."""

from __future__ import annotations

import math
import random
import runpy
from pathlib import Path
from typing import Any

import pytest
from slipstream.actors.scheduler.prefill_budget import LEAST, PrefillBudget

BUDGET = 2048


class Device:
    """Takes a fixed time for a step, some more if it runs prompts too, and some for each prompt token, in microseconds.

    At position ``doubles`` of its prompt a token takes twice as long as the first.
    """

    def __init__(
        self, decode: float, token: float, more: float = 0.0, noise: float = 0.0, doubles: float = math.inf
    ) -> None:
        self.decode, self.token, self.more, self.noise, self.doubles = decode, token, more, noise, doubles
        self.rng, self.budget = random.Random(0), PrefillBudget()

    def time(self, tokens: int, start: int = 0) -> float:
        time = self.decode
        if tokens:
            time += self.more + self.token * tokens * (1 + (start + tokens / 2) / self.doubles)
        return time * (1 + self.noise * self.rng.random())

    def run(self, tokens: int, start: int = 0) -> float:
        time = self.time(tokens, start)
        self.budget.learn(tokens, int(time * 1000))
        return time

    def stream(self, steps: int = 20) -> None:
        for _ in range(steps):
            self.run(0)

    def prompt(self, length: int) -> list[float]:
        """The times of the steps that run one prompt beside streams."""
        times = []
        start = 0
        while start < length:
            tokens = min(length - start, self.budget.limit(BUDGET, 1, 8))
            times.append(self.run(tokens, start))
            start += tokens
        return times


def test_before_anything_is_known_a_step_takes_what_is_left_of_it() -> None:
    device = Device(8000, 30)
    assert device.budget.limit(BUDGET, 1, 8) == BUDGET
    device.run(100)
    assert device.budget.limit(BUDGET, 1, 8) == BUDGET  # of a step without prompts nothing is known
    device.run(0)
    assert device.budget.limit(BUDGET, 1, 8) == BUDGET  # nor yet of what a prompt adds to one


@pytest.mark.parametrize("known", [16, 100, 2048])
@pytest.mark.parametrize("token", [10, 30, 300])
def test_a_slow_device_takes_at_most_twice_as_long_whatever_size_is_known(known: int, token: int) -> None:
    device = Device(16_000, token)
    device.stream()
    device.run(known)
    times = device.prompt(4000)
    assert max(times) <= 2 * 16_000
    assert len(times) <= 4000 * token / (0.75 * 16_000) + 2  # nor is it slower than that takes


@pytest.mark.parametrize("known", [16, 100, 2048])
@pytest.mark.parametrize("token", [8, 30])
def test_a_fast_device_makes_no_gap_that_is_felt_whatever_size_is_known(known: int, token: int) -> None:
    device = Device(5000, token)
    device.stream()
    device.run(known)
    times = device.prompt(4000)
    assert max(times) <= 22_000
    assert len(times) <= 4000 * token / (22_000 - 5000) + 2


def test_the_first_token_comes_after_at_most_a_third_more_time_than_the_prompt_takes_alone() -> None:
    device = Device(5000, 22.5)
    device.stream()
    device.run(100)
    for length in (2000, 4000, 8000):
        alone = 5000 + 22.5 * length
        assert sum(device.prompt(length)) <= 4 / 3 * alone


@pytest.mark.parametrize("doubles", [4000, 8000])
@pytest.mark.parametrize("length", [7000, 32_000])
def test_it_holds_too_where_tokens_take_longer_the_further_back_they_are(length: int, doubles: int) -> None:
    device = Device(16_000, 60, doubles=doubles)
    device.stream()
    device.run(2000)
    for _ in range(5):
        device.stream()
        times = sorted(device.prompt(length))
        assert times[len(times) * 99 // 100] <= 2 * 16_000
        assert sum(times) / len(times) > 1.4 * 16_000


def test_it_holds_too_where_times_vary() -> None:
    for _ in range(20):
        device = Device(16_000, 60, noise=0.3)
        device.stream()
        device.run(2000)
        times = [time for _ in range(5) for time in device.prompt(4000)]
        assert max(times) <= 2 * 16_000 * 1.3
        assert sum(times) / len(times) > 1.4 * 16_000  # and what there is is used


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_where_any_prompt_makes_a_step_long_it_is_not_cut_into_small_chunks(noise: float) -> None:
    """As on a device that runs steps with prompts another way: 4 ms more in any case."""
    device = Device(5000, 30, more=4_000, noise=noise)
    device.stream()
    device.run(16)
    assert len(device.prompt(4000)) < 20


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_what_the_executor_timed_at_its_start_tells_the_first_prompt_too(noise: float) -> None:
    device = Device(5000, 22.5, noise=noise)
    device.budget.begin([(tokens, int(device.time(tokens) * 1000)) for tokens in (2047, 16)])
    assert max(device.prompt(1024)) <= (1 + noise) * 22_000


def busy_for(device: Device, steps: int) -> None:
    """As many steps, each with as much of prompts as it may have: there are always some."""
    for _ in range(steps):
        device.run(device.budget.limit(BUDGET, 1, 8))


def test_where_prompts_take_half_of_the_time_they_fill_steps_that_are_not_too_long() -> None:
    device = Device(5000, 22.5)
    device.stream()
    device.run(500)
    assert device.budget.limit(BUDGET, 1, 8) < BUDGET / 2
    busy_for(device, 60)
    assert device.budget.limit(BUDGET, 1, 8) == BUDGET
    device.stream(200)
    assert device.budget.limit(BUDGET, 1, 8) < BUDGET / 2  # and no more when they have become few


def test_one_prompt_among_many_steps_does_not_fill_them() -> None:
    device = Device(5000, 22.5)
    device.stream()
    device.run(500)
    for _ in range(20):
        device.stream(20)  # 100 ms, in which a prompt takes 23 ms
        assert max(device.prompt(1024)) <= 22_500


@pytest.mark.parametrize(("decode", "token"), [(5000, 30), (16_000, 10), (16_000, 30), (16_000, 300)])
def test_steps_that_would_be_too_long_are_never_filled(decode: int, token: int) -> None:
    device = Device(decode, token)
    device.stream()
    device.run(500)
    busy_for(device, 200)
    assert device.run(device.budget.limit(BUDGET, 1, 8)) <= max(22_000, 2 * decode)


@pytest.mark.parametrize(("decode", "token"), [(5000, 60), (16_000, 115), (16_000, 300)])
def test_prompts_that_wait_for_each_other_make_steps_longer_until_most_of_the_time_is_theirs(
    decode: int, token: int
) -> None:
    device = Device(decode, token)
    device.stream()
    device.run(500)
    times = [device.time(device.budget.limit(BUDGET, prompts, 100)) for prompts in range(1, 8)]
    assert times == sorted(times)
    assert times[0] <= max(22_000, 2 * decode)
    longest = min(device.time(BUDGET), max(60_000, 12 * decode))
    assert times[3:] == pytest.approx([longest] * 4, rel=0.01)
    assert device.budget.limit(BUDGET, prompts=100, streams=100) == BUDGET
    assert device.budget.limit(BUDGET, prompts=3, streams=1) < BUDGET


def test_a_prompt_goes_on_whatever_it_costs_and_never_beyond_what_is_left_of_a_step() -> None:
    device = Device(10, 3000)
    device.stream()
    device.run(500)
    assert device.budget.limit(BUDGET, 1, 8) == LEAST
    assert device.budget.limit(5, 1, 8) == 5


def test_a_device_that_takes_the_same_for_every_step_is_given_all_at_once() -> None:
    device = Device(8000, 0)
    device.stream()
    device.run(64)
    assert device.budget.limit(BUDGET, 1, 8) == BUDGET


def test_what_the_device_does_now_counts_more_than_what_it_did() -> None:
    device = Device(16_000, 300)
    device.stream()
    device.prompt(8000)
    device.token = 30
    device.prompt(40_000)
    assert device.budget.limit(BUDGET, 1, 8) == pytest.approx(0.75 * 16_000 / 30, rel=0.1)


# --- what follows for a service, by the real scheduler ---------------------------------------------

SIMULATION: dict[str, Any] = runpy.run_path(str(Path(__file__).parents[2] / "examples/prefill_simulation.py"))


def simulated(load: str, rule: str, requests: int) -> dict[str, float]:
    found = SIMULATION["LOADS"][load]
    return SIMULATION["Simulation"](found, SIMULATION["RULES"][rule], BUDGET, requests).run()


def test_beside_ten_requests_a_second_streams_wait_less_and_first_tokens_no_longer_than_promised() -> None:
    ours, fill = (simulated("8B, 10/s", rule, 600) for rule in ("ours", "fill"))
    assert (ours["ttft_p50"] <= 50, ours["ttft_p99"] <= 120) == (True, True)
    assert (ours["tpot_p50"] <= 6.5, ours["tpot_p99"] <= 9.5) == (True, True)
    assert ours["itl_p99"] <= 25 < fill["itl_p99"]


def test_with_25_requests_a_second_first_tokens_come_as_soon_as_where_prompts_take_whole_steps() -> None:
    ours, fill, early = (simulated("8B, 25/s", rule, 600) for rule in ("ours", "fill", "early"))
    assert (ours["ttft_p50"] <= 65, ours["ttft_p99"] <= 200) == (True, True)
    assert ours["ttft_p50"] <= fill["ttft_p50"] + 1
    assert ours["ttft_p50"] < 0.95 * early["ttft_p50"]
    assert ours["tpot_p50"] <= 15
    assert ours["itl_p99"] <= fill["itl_p99"]


@pytest.mark.parametrize(
    ("load", "tokens_per_s"), [("8B, 500 at once", 4100), ("1.5B, 1500 at once", 20_000)]
)
def test_many_at_once_lose_no_throughput(load: str, tokens_per_s: float) -> None:
    requests = SIMULATION["LOADS"][load].requests
    assert simulated(load, "ours", requests)["tokens_per_s"] >= tokens_per_s


def test_a_large_model_keeps_up_with_as_many_requests_as_where_prompts_take_whole_steps() -> None:
    """Each of its steps reads all weights, so that small chunks alone would make a queue that grows for ever."""
    ours, fill = (simulated("70B, 4/s", rule, 600) for rule in ("ours", "fill"))
    assert ours["tokens_per_s"] >= 0.99 * fill["tokens_per_s"]
    assert ours["ttft_p99"] <= 1000
    assert ours["itl_p99"] <= 0.8 * fill["itl_p99"]


def test_many_prompts_of_a_large_model_at_once_take_little_longer_than_in_whole_steps() -> None:
    ours, fill = (simulated("70B, 256 at once", rule, 256) for rule in ("ours", "fill"))
    assert ours["tokens_per_s"] >= 0.95 * fill["tokens_per_s"]
