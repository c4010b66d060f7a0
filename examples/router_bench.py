"""What a router costs: the same streams straight to a service and through a router, in turns, and its own time.

``python examples/router_bench.py [--streams 64] [--rounds 5]`` prints throughput and time to the first token both
ways, the processor time that the router's process took for a token, and, without sockets, how many tokens the
router's actor passes on in a second of one core.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import time
from pathlib import Path

from slipstream.actors.router.router import Router
from slipstream.protocol.codec import encode
from slipstream.protocol.events import ClientMessage, ServiceFrame
from slipstream.protocol.limits import Limits
from slipstream.protocol.messages import Delta, Deltas, Generate, Hello, Welcome

from slipstream import AsyncClient, SamplingParams, Sidecar
from slipstream.sidecar import RouterSidecar

TOKENS = 200
TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")


async def load(client: AsyncClient, streams: int) -> tuple[float, list[float]]:
    """All streams at once: tokens per second, and seconds to each first token."""
    firsts: list[float] = []

    async def one(number: int) -> None:
        begun = time.monotonic()
        params = SamplingParams(max_tokens=TOKENS, ignore_eos=True, seed=number)
        first = True
        async for _ in client.generate([number + 1, 2, 3, 4], params):
            if first:
                firsts.append(time.monotonic() - begun)
                first = False

    begun = time.monotonic()
    await asyncio.gather(*(one(number) for number in range(streams)))
    return streams * TOKENS / (time.monotonic() - begun), firsts


def processor_s(pid: int) -> float:
    """What a process has taken of the processors."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


async def beside(streams: int, rounds: int) -> None:
    found: dict[str, list[tuple[float, list[float]]]] = {"direct": [], "routed": []}
    with (
        Sidecar(device="emulated", emulated_step_ms=5.0, max_num_seqs=streams) as service,
        RouterSidecar([service.endpoint]) as router,
    ):
        pid = router.pids["router"]
        async with AsyncClient(service.endpoint) as direct, AsyncClient(router.endpoint) as routed:
            for client in (direct, routed):
                await load(client, streams)  # caches are warm and code has run once
            spent = 0.0
            for _ in range(rounds):
                for name, client in (("direct", direct), ("routed", routed)):
                    before = processor_s(pid)
                    found[name].append(await load(client, streams))
                    spent += processor_s(pid) - before if name == "routed" else 0.0
    for name, runs in found.items():
        rate = statistics.median(rate for rate, _ in runs)
        first = statistics.median(statistics.median(firsts) for _, firsts in runs)
        print(f"{name}: {rate:8.0f} tokens/s, first token {first * 1e3:6.1f} ms")
    ratio = statistics.median(r / d for (d, _), (r, _) in zip(found["direct"], found["routed"], strict=True))
    print(f"routed / direct, turn by turn: {ratio:.3f}")
    print(
        f"router's process: {spent / (rounds * streams * TOKENS) * 1e6:.1f} us of processor time for a token"
    )


class Loopback:
    """A router's actor with its services and clients played by this program: the work of its host but for sockets."""

    def __init__(self, services: int, streams: int) -> None:
        bounds = Limits(
            max_model_len=100_000, vocab_size=1000, max_prompt_bytes=1000, max_queued_requests=4096
        )
        self.endpoints = [f"ipc:///{number}" for number in range(services)]
        self.router = Router("", "bench", bounds, self.endpoints, server="bench", rng=random.Random(0))
        self.settle()
        welcome = encode(Welcome(protocol=[1, 0], server="bench", model="bench", limits=bounds))
        for endpoint in self.endpoints:
            self.router.receive(endpoint, ServiceFrame(endpoint, welcome), 0.0)
        self.router.receive(b"a", ClientMessage(b"a", Hello(protocol=[1, 0])), 0.0)
        for number in range(streams):
            asked = Generate(
                id=f"client-{number}", prompt=[number] * 8, params=SamplingParams(max_tokens=50_000)
            )
            self.router.receive(b"a", ClientMessage(b"a", asked), 0.0)
        self.frames = [
            (
                endpoint,
                encode(Deltas(items=[Delta(id=id, text=" word", token_ids=[17]) for id in session.streams])),
            )
            for endpoint, session in self.router.sessions.items()
        ]

    def settle(self) -> None:
        for _, message in self.router.wake(0.0):
            if not isinstance(message, str):
                encode(message)

    def step(self) -> None:
        """One step of every service, to the frames that go out."""
        for endpoint, frame in self.frames:
            self.router.receive(endpoint, ServiceFrame(endpoint, frame), 0.0)
        self.settle()


def alone(services: int, streams: int) -> float:
    """Tokens that the actor passes on in a second of one core."""
    loop = Loopback(services, streams)
    steps = 300
    begun = time.process_time()
    for _ in range(steps):
        loop.step()
    return steps * streams / (time.process_time() - begun)


def placing(services: int) -> tuple[float, float]:
    """Seconds to take in and place a request with a long known beginning, and to look after all services once."""
    loop = Loopback(services, services)
    requests, looks = 200, 20
    begun = time.process_time()
    for number in range(requests):
        prompt = "the same beginning " * 40 + f"{number % 24} " * 60
        asked = Generate(id=f"placed-{number}", prompt=prompt, params=SamplingParams(max_tokens=50))
        loop.router.receive(b"a", ClientMessage(b"a", asked), 0.0)
    placed = time.process_time()
    for _ in range(looks):
        loop.router.look_after_services(0.5)
    return (placed - begun) / requests, (time.process_time() - placed) / looks


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    found = parser.parse_args()
    for services, streams in ((1, 64), (4, 256), (16, 1024)):
        best = max(alone(services, streams) for _ in range(3))
        print(f"{services} services, {streams} streams: {best:,.0f} tokens/s of one core in the actor alone")
    for services in (4, 64, 1024):
        request_s, look_s = placing(services)
        print(
            f"{services} services: {request_s * 1e6:.0f} us for a request, {look_s * 1e3:.2f} ms for a look at all"
        )
    asyncio.run(beside(found.streams, found.rounds))


if __name__ == "__main__":
    main()
