"""What a router costs: the same streams straight to a service and through a router, in turns, and its own time.

``python examples/router_bench.py [--streams 64] [--rounds 20]`` prints, without sockets, how many tokens the router's
actor passes on in a second of one core, and what a request costs it; then throughput and time to the first token both
ways, by how much the median first token of a turn is later through the router, and the processor time that the router's
process took for a request until all first tokens were there, and for each token after them. A turn takes 2.2 s.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import random
import statistics
import time
from dataclasses import dataclass, field

from slipstream.actors.router.router import Router
from slipstream.protocol.codec import encode
from slipstream.protocol.events import ClientMessage, ServiceFrame
from slipstream.protocol.limits import Limits
from slipstream.protocol.messages import Delta, Deltas, Generate, Hello, Welcome

from slipstream import AsyncClient, SamplingParams, Sidecar
from slipstream.sidecar import RouterSidecar

TOKENS = 200


@dataclass
class Load:
    """What one turn brought."""

    rate: float = 0.0
    """Tokens per second."""
    firsts: list[float] = field(default_factory=list)
    """Seconds to each first token."""
    starting_s: float = 0.0
    """Processor time of the router's process until all first tokens were there."""
    streaming_s: float = 0.0
    """The same after them."""

    @property
    def first(self) -> float:
        return statistics.median(self.firsts)


async def load(client: AsyncClient, streams: int, router: int) -> Load:
    """All streams at once; ``router`` is the process of that name."""
    found = Load()
    spent_s = processor_s(router)

    async def one(number: int) -> None:
        begun = time.monotonic()
        params = SamplingParams(max_tokens=TOKENS, ignore_eos=True, seed=number)
        first = True
        async for _ in client.generate([number + 1, 2, 3, 4], params):
            if first:
                first = False
                found.firsts.append(time.monotonic() - begun)
                if len(found.firsts) == streams:
                    found.starting_s = processor_s(router) - spent_s

    begun = time.monotonic()
    await asyncio.gather(*(one(number) for number in range(streams)))
    found.rate = streams * TOKENS / (time.monotonic() - begun)
    found.streaming_s = processor_s(router) - spent_s - found.starting_s
    return found


def processor_s(pid: int) -> float:
    """What a process has taken of the processors, to the microsecond."""
    clock = ctypes.c_int()
    ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock))
    return time.clock_gettime(clock.value)


def spread(values: list[float]) -> str:
    """The median, and between which values half of all are."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.2f} (half of all: {low:.2f} to {high:.2f})"


async def beside(streams: int, rounds: int) -> None:
    direct: list[Load] = []
    routed: list[Load] = []
    with (
        Sidecar(device="emulated", emulated_step_ms=5.0, max_num_seqs=streams) as service,
        RouterSidecar([service.endpoint]) as router,
    ):
        pid = router.pids["router"]
        async with AsyncClient(service.endpoint) as straight, AsyncClient(router.endpoint) as through:
            for client in (straight, through):
                await load(client, streams, pid)  # caches are warm and code has run once
            for _ in range(rounds):
                direct.append(await load(straight, streams, pid))
                routed.append(await load(through, streams, pid))
    for name, turns in (("direct", direct), ("routed", routed)):
        rate = statistics.median(turn.rate for turn in turns)
        print(
            f"{name}: {rate:8.0f} tokens/s, first token after {spread([turn.first * 1e3 for turn in turns])} ms"
        )
    pairs = list(zip(direct, routed, strict=True))
    print(
        f"routed / direct, turn by turn: {statistics.median(r.rate / d.rate for d, r in pairs):.3f} of the tokens/s"
    )
    print(
        f"the first token comes later by {spread([(r.first - d.first) * 1e3 for d, r in pairs])} ms, turn by turn"
    )
    print(
        "router's process, us of processor time:"
        f" {spread([turn.starting_s / streams * 1e6 for turn in routed])} for a request and its first token,"
        f" {spread([turn.streaming_s / (streams * (TOKENS - 1)) * 1e6 for turn in routed])} for a further token"
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
    """Seconds to take in and place a request with a long known prefix, and to look after all services once."""
    loop = Loopback(services, services)
    requests, looks = 200, 20
    begun = time.process_time()
    for number in range(requests):
        prompt = "the same prefix " * 40 + f"{number % 24} " * 60
        asked = Generate(id=f"placed-{number}", prompt=prompt, params=SamplingParams(max_tokens=50))
        loop.router.receive(b"a", ClientMessage(b"a", asked), 0.0)
    placed = time.process_time()
    for _ in range(looks):
        loop.router.events.check_replicas(0.5)
    return (placed - begun) / requests, (time.process_time() - placed) / looks


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=20, help="turns of each way, at least 2")
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
