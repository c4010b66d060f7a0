"""More work than a service can do: what it takes it finishes, the rest it refuses at once, and nothing grows.

The emulated device makes the capacity known: ``ROWS`` tokens per step.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgpack
import psutil
import pytest
import zmq
from slipstream.protocol.limits import PROTOCOL

from slipstream import AsyncClient, Overloaded, SamplingParams, Sidecar

ROWS, STEP_MS, ANSWER_TOKENS = 16, 20.0, 25
CAPACITY = ROWS / (STEP_MS * 1e-3) / ANSWER_TOKENS
"""Requests per second that the device can answer: 32."""

QUEUE = 4 * ROWS
REFUSED_WITHIN_S = 0.05
LEAVE = 0.01
"""Share of the clients that disconnect in the middle of an answer."""


@pytest.fixture(scope="module")
def service() -> Iterator[Sidecar]:
    with Sidecar(
        device="emulated", emulated_step_ms=STEP_MS, max_num_seqs=ROWS, max_queued_requests=QUEUE
    ) as sidecar:
        yield sidecar


@dataclass
class Tally:
    """What became of the requests of one phase."""

    asked: int = 0
    answered: int = 0
    refused: int = 0
    left: int = 0
    tokens: int = 0
    """Delivered within the phase to those who waited for them."""
    refusal_s: list[float] = field(default_factory=list)
    """How long each refusal took."""
    retry_after_s: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def goodput(self) -> float:
        return self.tokens / self.seconds

    def refusal(self, share: float) -> float:
        ordered = sorted(self.refusal_s)
        return ordered[int(share * (len(ordered) - 1))] if ordered else 0.0

    def __str__(self) -> str:
        return (
            f"{self.asked} asked, {self.answered} answered, {self.refused} refused (p50"
            f" {self.refusal(0.5) * 1e3:.1f} ms, p99 {self.refusal(0.99) * 1e3:.1f} ms), {self.left} left,"
            f" {self.goodput:.0f} tokens/s"
        )


PARAMS = SamplingParams(max_tokens=ANSWER_TOKENS, ignore_eos=True)


async def ask(client: AsyncClient, tally: Tally, ends_at: float) -> None:
    """One request of a client that stays."""
    tally.asked += 1
    begun = time.monotonic()
    tokens = 0
    try:
        async for delta in client.generate([5, 6, 7], PARAMS):
            tokens += len(delta.token_ids)
            if time.monotonic() < ends_at:
                tally.tokens += len(delta.token_ids)
    except Overloaded as error:
        tally.refused += 1
        tally.retry_after_s.append(error.retry_after_s)
        tally.refusal_s.append(time.monotonic() - begun)
        return
    assert tokens == ANSWER_TOKENS
    tally.answered += 1


async def ask_and_vanish(sidecar: Sidecar, tally: Tally) -> None:
    """One request of a client whose connection breaks in the middle."""
    tally.left += 1
    client = sidecar.async_client()
    with contextlib.suppress(Overloaded):
        async for _ in client.generate([5, 6, 7], PARAMS):
            break
    await client.close()


async def load(sidecar: Sidecar, times: float, seconds: float, rng: random.Random) -> Tally:
    """Requests that arrive ``times`` as fast as the device can answer them, whatever becomes of them."""
    tally = Tally(seconds=seconds)
    tasks: set[asyncio.Task[None]] = set()
    async with sidecar.async_client() as client:
        begun = time.monotonic()
        ends_at = begun + seconds
        due = begun
        while due < ends_at:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            leaves = rng.random() < LEAVE
            tasks.add(
                asyncio.create_task(ask_and_vanish(sidecar, tally) if leaves else ask(client, tally, ends_at))
            )
            due += rng.expovariate(CAPACITY * times)
        await asyncio.wait_for(asyncio.gather(*tasks), 60.0)
    return tally


class SlowReader:
    """Asks for long answers, and never reads what comes."""

    def __init__(self, endpoint: str, number: int) -> None:
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.set(zmq.LINGER, 0)
        self.socket.set(zmq.RCVHWM, 1)
        self.socket.connect(endpoint)
        self.say({"t": "hello", "protocol": list(PROTOCOL)})
        params = {"max_tokens": 1000, "ignore_eos": True, "logprobs": 20}
        self.say({"t": "generate", "id": str(number), "prompt": [5, 6, 7], "params": params})

    def say(self, message: dict[str, Any]) -> None:
        packed = msgpack.packb(message)
        assert packed is not None
        self.socket.send(packed)

    def close(self) -> None:
        self.socket.close()


@contextlib.asynccontextmanager
async def watched(sidecar: Sidecar) -> AsyncIterator[list[tuple[float, float]]]:
    """Megabytes of all processes together, once a second."""
    samples: list[tuple[float, float]] = []
    processes = [psutil.Process(pid) for pid in [sidecar.pid, *sidecar.pids.values()]]

    async def watch() -> None:
        while True:
            megabytes = sum(process.memory_info().rss for process in processes) / 1e6
            samples.append((time.monotonic(), megabytes))
            await asyncio.sleep(1.0)

    task = asyncio.create_task(watch())
    try:
        yield samples
    finally:
        task.cancel()


def slope_per_minute(samples: list[tuple[float, float]]) -> float:
    """By least squares."""
    mean_t = sum(t for t, _ in samples) / len(samples)
    mean_m = sum(m for _, m in samples) / len(samples)
    spread = sum((t - mean_t) ** 2 for t, _ in samples)
    return 60 * sum((t - mean_t) * (m - mean_m) for t, m in samples) / spread


def test_at_2_and_10_times_capacity_everything_is_answered_or_refused_at_once_and_nothing_grows(
    service: Sidecar, soak: bool
) -> None:
    rng = random.Random(5)
    unit = 20 if soak else 1
    refused_within = REFUSED_WITHIN_S if soak else 20 * REFUSED_WITHIN_S

    async def main() -> None:
        warm = await load(service, 2.0, 3.0 * unit, rng)
        print("warm-up:", warm)
        slow = [SlowReader(service.endpoint, number) for number in range(2)]
        one = await load(service, 1.0, 6.0 * unit, rng)
        print("1 x capacity:", one)
        async with watched(service) as samples:
            two = await load(service, 2.0, 10.0 * unit, rng)
            print("2 x capacity:", two)
            ten = await load(service, 10.0, 10.0 * unit, rng)
            print("10 x capacity:", ten)
        for reader in slow:
            reader.close()
        for tally in (one, two, ten):
            assert tally.answered + tally.refused == tally.asked
            assert tally.answered > 0
            assert all(seconds > 0 for seconds in tally.retry_after_s)
        assert ten.refused > ten.answered
        for tally in (two, ten):
            assert tally.goodput > (0.9 if soak else 0.6) * one.goodput
            assert tally.refusal(0.99) < refused_within
        slope = slope_per_minute(samples)
        print(f"memory {samples[0][1]:.0f} to {samples[-1][1]:.0f} MB, {slope:.2f} MB/min")
        assert slope < 1.0 if soak else samples[-1][1] - samples[0][1] < 16.0
        async with service.async_client() as client:
            deadline = time.monotonic() + 30.0
            while (stats := await client.stats())["num_requests_running"] or stats["num_requests_waiting"]:
                assert time.monotonic() < deadline, stats
                await asyncio.sleep(0.1)
            assert next(value for name, value in stats.items() if name.startswith("kv_cache_usage")) == 0.0
        assert all(actor["restarts"] == 0 for actor in service.actors.values()), service.log

    asyncio.run(main())


def test_a_client_that_does_not_read_has_its_deltas_merged_then_its_requests_ended_and_slows_nobody(
    service: Sidecar,
) -> None:
    """Eight answers with many logprobs to a client that takes none of them."""

    async def main() -> None:
        async with service.async_client() as client:
            before = (await client.stats())["requests_aborted"]
            alone = await pauses(client)
            slow = SlowReader(service.endpoint, 0)
            for number in range(1, 8):
                params = {"max_tokens": 1000, "ignore_eos": True, "logprobs": 20}
                slow.say({"t": "generate", "id": str(number), "prompt": [5, 6, 7], "params": params})
            beside: list[float] = []
            while (await client.stats())["requests_aborted"] < before + 8:
                beside += await pauses(client)
                assert len(beside) < 10_000
            slow.close()
        alone, beside = sorted(alone), sorted(beside)
        print(
            f"median pause {alone[len(alone) // 2] * 1e3:.1f} ms alone, {beside[len(beside) // 2] * 1e3:.1f} beside"
        )
        assert beside[len(beside) // 2] < 2 * alone[len(alone) // 2] + 0.01

    asyncio.run(main())


async def pauses(client: AsyncClient) -> list[float]:
    """Seconds between the deltas of one answer."""
    heard = [time.monotonic()]
    async for _ in client.generate([5, 6, 7], SamplingParams(max_tokens=50, ignore_eos=True)):
        heard.append(time.monotonic())
    return [later - earlier for earlier, later in itertools.pairwise(heard[1:])]
