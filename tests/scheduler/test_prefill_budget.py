"""The pace of prompts: what the device's times say about the size of a chunk."""

from __future__ import annotations

import math
import random

import pytest
from slipstream.actors.scheduler.prefill_budget import CROWD, GROWTH, LEAST, SHARE, Pace

BUDGET = 2048


class Device:
    """Takes so many microseconds for a step that decodes, so many more if it runs prompts too, and for a token.

    At position ``doubles`` of its prompt a token takes twice as long as the first.
    """

    def __init__(
        self, decode: float, token: float, more: float = 0.0, noise: float = 0.0, doubles: float = math.inf
    ) -> None:
        self.decode, self.token, self.more, self.noise, self.doubles = decode, token, more, noise, doubles
        self.rng, self.pace = random.Random(0), Pace()

    def time(self, tokens: int, start: int, *, streams: bool = True) -> float:
        time = self.decode if streams or not tokens else 0.0
        if tokens:
            time += self.more + self.token * tokens * (1 + (start + tokens / 2) / self.doubles)
        return time * (1 + self.noise * self.rng.random())

    def run(self, tokens: int, start: int = 0, *, streams: bool = True) -> float:
        time = self.time(tokens, start, streams=streams)
        self.pace.learn(tokens, int(time * 1000), streams=streams)
        return time

    def stream(self, steps: int = 20) -> None:
        for _ in range(steps):
            self.run(0)

    def prompt(self, length: int) -> list[float]:
        """The times of the steps that run one prompt beside streams."""
        times = []
        start = 0
        while start < length:
            tokens = min(length - start, self.pace.limit(BUDGET, 1))
            times.append(self.run(tokens, start))
            start += tokens
        return times


def test_before_anything_is_known_a_step_takes_what_the_budget_allows() -> None:
    device = Device(8000, 30)
    assert device.pace.limit(BUDGET, 1) == BUDGET
    device.run(100, streams=False)
    assert device.pace.limit(BUDGET, 1) == BUDGET


@pytest.mark.parametrize("known", [16, 100, 2048])
@pytest.mark.parametrize("token", [3, 30, 300])
def test_beside_streams_a_step_takes_at_most_twice_as_long_whatever_size_is_known(
    known: int, token: int
) -> None:
    device = Device(8000, token)
    device.run(known, streams=False)
    device.stream()
    times = device.prompt(4000)
    assert max(times) <= 2 * 8000
    assert len(times) <= 4000 * token / (SHARE * 8000) + 12  # nor is it slower than that takes


@pytest.mark.parametrize("doubles", [4000, 8000])
@pytest.mark.parametrize("length", [7000, 32_000])
def test_it_holds_too_where_tokens_take_longer_the_further_back_they_are(length: int, doubles: int) -> None:
    """Steps of fewer tokens take as long then, which is no fixed cost."""
    device = Device(8000, 30, doubles=doubles)
    device.run(2000, streams=False)
    for _ in range(5):
        device.stream()
        times = sorted(device.prompt(length))
        assert times[len(times) * 99 // 100] <= 2 * 8000
        assert sum(times) / len(times) > 1.4 * 8000


def test_it_holds_too_where_times_vary() -> None:
    for _ in range(20):
        device = Device(8000, 30, noise=0.3)
        device.run(2000, streams=False)
        device.stream()
        times = sorted(time for _ in range(5) for time in device.prompt(4000))
        assert times[len(times) * 99 // 100] <= 2 * 8000 * 1.3
        assert sum(times) / len(times) > 1.4 * 8000  # and what there is is used


def test_where_any_prompt_makes_a_step_long_it_is_not_cut_into_crumbs() -> None:
    """As on a device that runs steps with prompts another way: 12 ms more in any case."""
    device = Device(8000, 30, more=12_000)
    device.run(2048, streams=False)
    device.stream()
    assert len(device.prompt(4000)) < 50


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_nor_are_the_prompts_that_follow_it(noise: float) -> None:
    """As on a GPU that replays a graph to decode and launches a mixed step kernel by kernel."""
    device = Device(4000, 10, more=25_000, noise=noise)
    device.run(2048, streams=False)
    for _ in range(50):
        device.stream()
        times = device.prompt(7000)
        assert max(times) < 1.5 * (4000 + 25_000) * (1 + noise)
        assert sum(times) < 0.6e6 * (1 + noise)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_what_the_executor_tried_before_tells_the_first_prompt_too(noise: float) -> None:
    """Streams begin with short prompts, of one size: from these alone all of the time would be their tokens'."""
    device = Device(4000, 3, more=30_000, noise=noise)
    for tokens in (16, BUDGET):
        device.run(tokens, streams=False)
    for _ in range(8):
        device.run(32)
    device.stream()
    for _ in range(10):
        assert sum(device.prompt(7000)) < 0.5e6 * (1 + noise)


def test_the_more_prompts_wait_the_more_of_a_step_is_theirs() -> None:
    device = Device(8000, 30)
    device.run(2000, streams=False)
    device.stream()
    limits = [device.pace.limit(BUDGET, prompts) for prompts in (1, CROWD, 2 * CROWD, 100)]
    assert limits[0] == limits[1]
    assert limits[2] == pytest.approx(2 * limits[1], abs=2)
    assert limits[3] == BUDGET


def test_a_prompt_goes_on_whatever_it_costs_and_never_beyond_the_budget() -> None:
    device = Device(10, 1000)
    device.run(500, streams=False)
    device.stream()
    assert device.pace.limit(BUDGET, 1) == LEAST
    assert device.pace.limit(5, 1) == 5


def test_a_device_that_takes_the_same_for_every_step_is_not_slowed_but_felt_for() -> None:
    device = Device(8000, 0)
    device.stream()
    device.run(64)
    limits = []
    for _ in range(6):
        limits.append(device.pace.limit(BUDGET, 1))
        device.run(limits[-1])
    assert limits == [min(BUDGET, int(64 * GROWTH**step)) for step in range(1, 7)]


def test_what_the_device_does_now_counts_more_than_what_it_did() -> None:
    device = Device(8000, 300)
    device.stream()
    device.prompt(4000)
    device.token = 30
    device.prompt(4000)
    assert device.pace.limit(BUDGET, 1) == pytest.approx(SHARE * 8000 / 30, rel=0.1)
