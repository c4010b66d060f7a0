"""A day of traffic over many services, in virtual time: what breaks first, and what then.

    python examples/day_of_traffic.py [--services 64] [--routers 1] [--hour-s 4] [--peak 0.9] [--by-load] [--no-faults]

Routers are the production actor with its sessions, message by message. A service is a model of one: it computes
prompts one after the other, but for what its cache has, runs a fixed number of sequences at once, and has a cache of
blocks that forgets what was used longest ago; it sends the first token of an answer, and the others when the last is
there. Clients hold conversations of eight turns under shared instructions, of which some are much more popular than
others. As many hold one as the hour says, few at night and most in the afternoon; each hour is held for ``--hour-s``
seconds. At three in the afternoon one service in sixteen falls silent, all at once; others that know nothing take
their places later.

It prints a row for each third hour: what came, what was found in caches, when first tokens came, how full services
were, and what share of a core the router's actor took. That share is measured on the machine that runs this; what it
takes to read and write sockets is not in it. Meanwhile the error stream gets a row when an hour is over, without the
answers that end later.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import math
import random
import sys
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any
from unittest.mock import patch

from slipstream.actors.router import admission
from slipstream.actors.router.prefixes import Prefixes
from slipstream.actors.router.router import Router
from slipstream.protocol.codec import decode_from_client, encode
from slipstream.protocol.events import ClientMessage, ServiceFrame
from slipstream.protocol.limits import Limits
from slipstream.protocol.messages import (
    Abort,
    Delta,
    Deltas,
    Error,
    Generate,
    GetStats,
    Hello,
    Ping,
    Pong,
    Stats,
    Usage,
    Welcome,
)
from slipstream.protocol.sampling import SamplingParams

SLOTS, STEP_S, PROMPT_TOKENS_S, CACHE_BLOCKS, BLOCK = 32, 0.025, 16_000.0, 8192, 16
"""A service: sequences at once, a step, tokens of prompts in a second, blocks in the cache and tokens in each."""

TURNS, INSTRUCTIONS, INSTRUCTION, QUESTION, ANSWER, THINK_S = 8, 400, 512, 64, 160, 2.0
"""Clients: turns of a conversation; instructions that there are, their tokens; tokens of a question and of an answer;
seconds between an answer and the next question, on average."""

TRAVEL_S = 0.0005
"""Between two machines, one way."""

FAULT_HOUR, FAULT_SHARE, SILENT_S = 15, 16, 10.0
"""When services fall silent, one of how many, and for how long."""

VOCAB = 256
"""Small numbers are one object each: there are 44,000 conversations before 1,024 services."""

BOUNDS = Limits(max_model_len=8192, vocab_size=VOCAB, max_prompt_bytes=100_000, max_queued_requests=4 * SLOTS)
WELCOME = encode(Welcome(protocol=[1, 0], server="model", model="day", limits=BOUNDS))
CLIENT = b"client"


def share_of_peak(hour: float) -> float:
    """How busy an hour is: least at three in the morning, most at three in the afternoon."""
    return 0.55 - 0.45 * math.cos((hour - 3) / 24 * 2 * math.pi)


class Clock:
    """Virtual time, and what is to happen."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.count = 0

    def at(self, when: float, event: Callable[[], None]) -> None:
        self.count += 1
        heapq.heappush(self.events, (when, self.count, event))

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        self.at(self.now + seconds, event)

    def run(self, until: float) -> None:
        while self.events and self.events[0][0] <= until:
            self.now, _, event = heapq.heappop(self.events)
            event()
        self.now = until


class Service:
    """A model of a service, at the other end of the sessions of all routers."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.cache = Prefixes()
        self.waiting: deque[tuple[Gate, Generate]] = deque()
        self.open: dict[tuple[int, str], Generate] = {}
        """By the router and the id that it has given."""
        self.running = 0
        self.prompts_until = 0.0
        """When the prompts that it has begun are computed."""
        self.life = 0
        """Grows when it dies: what an earlier life has begun never ends."""
        self.silent = False
        self.greeted: set[int] = set()
        """Routers that have said hello in this life."""

    def take(self, gate: Gate, frame: bytes) -> None:
        if self.silent:
            return
        message = decode_from_client(frame)
        if isinstance(message, Hello):
            self.greeted.add(gate.number)
            gate.hear(self, WELCOME)
        elif gate.number not in self.greeted:
            gate.hear(self, encode(Error(code="protocol", message="say hello first")))
        elif isinstance(message, Ping):
            gate.hear(self, encode(Pong(nonce=message.nonce)))
        elif isinstance(message, GetStats):
            gate.hear(self, encode(Stats(counters=self.counters())))
        elif isinstance(message, Abort):
            self.open.pop((gate.number, message.id), None)
        elif isinstance(message, Generate):
            if len(self.open) >= BOUNDS.max_queued_requests:
                text = "the service is full"
                gate.hear(self, encode(Error(code="overloaded", message=text, id=message.id)))
                return
            self.open[gate.number, message.id] = message
            self.waiting.append((gate, message))
            self.begin()

    def counters(self) -> dict[str, float]:
        return {
            "requests_open": float(len(self.open)),
            "num_requests_running": float(self.running),
            "num_requests_waiting": float(len(self.waiting)),
            "max_num_seqs": float(SLOTS),
        }

    def begin(self) -> None:
        """Give slots to those that wait."""
        while self.waiting and self.running < SLOTS:
            gate, request = self.waiting.popleft()
            if (gate.number, request.id) in self.open:
                self.running += 1
                self.compute(gate, request)

    def compute(self, gate: Gate, request: Generate) -> None:
        assert isinstance(request.prompt, list)
        tokens = len(request.prompt) + len(request.received)
        blocks = gate.day.blocks_of(request)
        hashes = blocks[: tokens // BLOCK]
        cached = min(BLOCK * self.cache.matched(hashes), tokens - 1)
        self.cache.note(hashes, CACHE_BLOCKS)
        now, life = self.clock.now, self.life
        self.prompts_until = max(now, self.prompts_until) + (tokens - cached) / PROMPT_TOKENS_S
        first = self.prompts_until + STEP_S
        left = (request.params.max_tokens or 1) - len(request.received)
        usage = Usage(prompt_tokens=tokens, completion_tokens=left, cached_tokens=cached)
        self.clock.at(first, lambda: self.say(life, gate, request, 1, None, blocks))
        self.clock.at(
            first + (left - 1) * STEP_S, lambda: self.say(life, gate, request, left - 1, usage, blocks)
        )

    def say(
        self,
        life: int,
        gate: Gate,
        request: Generate,
        tokens: int,
        usage: Usage | None,
        blocks: list[bytes],
    ) -> None:
        """Some of an answer; ``usage``: the rest of it, after which the cache has all its ``blocks``."""
        if life != self.life:
            return
        if usage is not None:
            self.running -= 1
            self.cache.note(blocks, CACHE_BLOCKS)
        if (gate.number, request.id) in self.open:
            delta = Delta(id=request.id, token_ids=answer_of(request)[:tokens], usage=usage)
            if usage is not None:
                delta.finish_reason = "length"
                del self.open[gate.number, request.id]
            gate.hear(self, encode(Deltas(items=[delta])))
        self.begin()

    def fall_silent(self) -> None:
        """As a machine that loses its power; another, which has nothing, takes its place."""
        self.silent, self.life = True, self.life + 1
        self.clock.after(SILENT_S, self.return_empty)

    def return_empty(self) -> None:
        self.silent, self.running, self.prompts_until = False, 0, 0.0
        self.waiting.clear()
        self.open.clear()
        self.greeted.clear()
        self.cache.forget()


def answer_of(request: Generate) -> list[int]:
    """The same wherever it is computed."""
    return [(request.params.seed or 0) % VOCAB] * (request.params.max_tokens or 1)


def some_tokens(rng: random.Random, count: int) -> list[int]:
    return list(rng.randbytes(count))


def more_blocks(known: list[bytes], tokens: list[int]) -> list[bytes]:
    """The names of all full blocks, each of everything up to its end; ``known`` are those of a prefix."""
    names = list(known)
    for start in range(len(names) * BLOCK, len(tokens) - BLOCK + 1, BLOCK):
        block = array("i", tokens[start : start + BLOCK]).tobytes()
        names.append(blake2b(block, key=names[-1] if names else b"", digest_size=8).digest())
    return names


@dataclass
class Hour:
    """What came of the requests that were asked in an hour."""

    asked: int = 0
    answered: int = 0
    first_s: list[float] = field(default_factory=list)
    late_s: float = 0.0
    """By how much the end of an answer was late, at most: later after its first token than its steps take."""
    prompt: int = 0
    cached: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    router_s: float = 0.0
    """Of processor time, of all routers."""
    fullest: float = 0.0
    """Open at the service that had most, at the end of the hour, as a share of the mean."""
    open: float = 0.0
    """At a service, on average, at the end of the hour."""


class Outbox(deque[bytes]):
    """Of one session: what is said is on its way at once, without a look at all the others."""

    def __init__(self, name: str, said: list[tuple[str, bytes]]) -> None:
        super().__init__()
        self.name, self.said = name, said

    def append(self, frame: bytes, /) -> None:
        self.said.append((self.name, frame))


class Gate:
    """A router, and its clients."""

    def __init__(self, number: int, day: Day) -> None:
        self.number = number
        self.day = day
        self.clock = day.clock
        self.endpoints = {f"ipc:///{place}": service for place, service in enumerate(day.services)}
        self.names = {id(service): name for name, service in self.endpoints.items()}
        self.router = Router(
            "", "day", BOUNDS, self.endpoints, server="day", rng=random.Random(f"router {number}")
        )
        self.said: list[tuple[str, bytes]] = []
        """What sessions have to say, and to which service."""
        for name, session in self.router.sessions.items():
            session.outbox = Outbox(name, self.said)
        self.wakes_at = float("inf")
        self.talks: dict[str, Talk] = {}
        self.turn(lambda: self.router.receive(CLIENT, ClientMessage(CLIENT, Hello(protocol=[1, 0])), 0.0))

    def turn(self, handle: Callable[[], list[Any]]) -> None:
        """One message or wake, and what the host does with what it brings."""
        begun = time.process_time()
        sends = handle()
        self.day.hour.router_s += time.process_time() - begun
        for to, message in sends:
            if to == CLIENT and isinstance(message, Deltas):
                for delta in message.items:
                    self.talks[delta.id].hear(delta)
            elif to == CLIENT and isinstance(message, Error):
                assert message.id is not None, message
                self.talks.pop(message.id).fail(message)
        for name, frame in self.said:
            self.clock.after(TRAVEL_S, lambda s=self.endpoints[name], f=frame: s.take(self, f))
        self.said.clear()
        wanted = float("inf") if self.router.wake_at is None else max(self.clock.now, self.router.wake_at)
        if wanted < self.wakes_at:
            self.wakes_at = wanted
            self.clock.at(wanted, lambda: self.wake(wanted))

    def wake(self, when: float) -> None:
        """At the time for which it was wanted, unless it was wanted sooner since."""
        if when == self.wakes_at:
            self.wakes_at = float("inf")
            self.turn(lambda: self.router.wake(self.clock.now))

    def hear(self, service: Service, frame: bytes) -> None:
        name = self.names[id(service)]
        arrived = ServiceFrame(name, frame)
        self.clock.after(
            TRAVEL_S, lambda: self.turn(lambda: self.router.receive(name, arrived, self.clock.now))
        )

    def ask(self, talk: Talk, request: Generate) -> None:
        self.talks[request.id] = talk
        self.turn(lambda: self.router.receive(CLIENT, ClientMessage(CLIENT, request), self.clock.now))


class Talk:
    """A conversation of ``TURNS`` turns through one router."""

    def __init__(self, gate: Gate, number: int, rng: random.Random, turns: int = 0) -> None:
        """``turns``: those that it has behind it, for one that is found under way."""
        self.gate, self.number, self.rng = gate, number, rng
        popular = min(int(rng.paretovariate(0.7)), INSTRUCTIONS)
        self.said = some_tokens(random.Random(popular), INSTRUCTION)
        self.said += some_tokens(rng, turns * (QUESTION + ANSWER))
        self.blocks: list[bytes] = []
        self.turns = turns
        gate.day.talks[number] = self
        self.next_turn()

    def next_turn(self) -> None:
        self.said = [*self.said, *some_tokens(self.rng, QUESTION)]
        self.got: list[int] = []
        self.asked_at = self.gate.clock.now
        self.hour = self.gate.day.hour
        self.hour.asked += 1
        seed = self.number * TURNS + self.turns + 1
        params = SamplingParams(max_tokens=ANSWER, seed=seed, ignore_eos=True)
        self.request = Generate(id=f"{self.number}.{self.turns}", prompt=self.said, params=params)
        self.blocks = more_blocks(self.blocks, [*self.said, *answer_of(self.request)])
        self.gate.ask(self, self.request)

    def hear(self, delta: Delta) -> None:
        now = self.gate.clock.now
        if not self.got:
            self.hour.first_s.append(now - self.asked_at)
            self.first_at = now
        self.got += delta.token_ids
        if delta.usage is None:
            return
        assert self.got == answer_of(self.request), "no token is lost, repeated or another"
        self.hour.answered += 1
        self.hour.late_s = max(self.hour.late_s, now - self.first_at - (ANSWER - 1) * STEP_S)
        self.hour.prompt += delta.usage.prompt_tokens
        self.hour.cached += delta.usage.cached_tokens
        del self.gate.talks[self.request.id]
        self.said = [*self.said, *self.got]
        self.turns += 1
        think_s = self.rng.expovariate(1 / THINK_S)
        self.gate.clock.after(think_s, self.go_on)

    def go_on(self) -> None:
        if self.turns < TURNS:
            self.next_turn()
        else:
            self.leave()

    def leave(self) -> None:
        del self.gate.day.talks[self.number]
        self.gate.day.on_left()

    def fail(self, error: Error) -> None:
        """The client gives up."""
        self.hour.refused[error.code] += 1
        self.leave()


class Day:
    """All of it."""

    def __init__(self, services: int, routers: int, hour_s: float, peak: float, *, seed: int = 0) -> None:
        """``peak``: the share of the services' slots that is asked for in the fullest hour."""
        self.rng = random.Random(seed)
        self.clock = Clock()
        self.hour = Hour()
        self.hours: list[Hour] = []
        self.hour_s = hour_s
        self.services = [Service(self.clock) for _ in range(services)]
        self.gates = [Gate(number, self) for number in range(routers)]
        self.most = peak * services * SLOTS * (1 + THINK_S / (ANSWER * STEP_S))
        """Conversations that are held at once in the fullest hour."""
        self.wanted = self.held = self.begun = 0
        self.talks: dict[int, Talk] = {}
        """Those that are held, by their number."""

    def blocks_of(self, request: Generate) -> list[bytes]:
        """Of all that an open request asks and will be answered; its seed says whose it is."""
        return self.talks[((request.params.seed or 0) - 1) // TURNS].blocks

    def begin(self, turns: int = 0) -> None:
        """A conversation begins, at one router for good."""
        self.held += 1
        self.begun += 1
        Talk(self.rng.choice(self.gates), self.begun, self.rng, turns)

    def on_left(self) -> None:
        """A conversation is over; another takes its place, if so many are still held at this hour."""
        self.held -= 1
        if self.held < self.wanted:
            self.begin()

    def fill(self, hour: int) -> None:
        """The hour begins: who was not there before comes in its first half, in the midst of a conversation."""
        self.wanted = round(self.most * share_of_peak(hour))
        for _ in range(self.wanted - self.held):
            turns = self.rng.randrange(TURNS)
            self.clock.after(self.rng.random() * self.hour_s / 2, lambda turns=turns: self.begin(turns))

    def run(self, *, faults: bool, on_hour: Callable[[int], None] = lambda number: None) -> list[Hour]:
        """``on_hour`` is told when one is over."""
        self.clock.run(1.0)  # routers and services meet
        for hour in range(24):
            self.hour = Hour()
            self.hours.append(self.hour)
            until = self.clock.now + self.hour_s
            if faults and hour == FAULT_HOUR:
                for service in self.rng.sample(self.services, max(1, len(self.services) // FAULT_SHARE)):
                    service.fall_silent()
            self.fill(hour)
            self.clock.run(until)
            opened = [len(service.open) for service in self.services if not service.silent]
            self.hour.open = sum(opened) / len(opened)
            self.hour.fullest = max(opened) / max(self.hour.open, 1.0)
            on_hour(hour)
        self.wanted = 0
        while self.held:  # all conversations end
            self.clock.run(self.clock.now + 1.0)
        return self.hours


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[int(share * len(values))] if values else float("nan")


def table(day: Day) -> str:
    """Markdown: one row for each third hour."""
    lines = [
        "| Hour | Requests/s | Tokens/s | In the cache | First token p50 / p99 | Open at a service, at most | Refused"
        " | Routers' cores |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(row(day, number) for number in range(0, len(day.hours), 3))])


def row(day: Day, number: int) -> str:
    hour = day.hours[number]
    rate = hour.asked / day.hour_s
    p50, p99 = (1e3 * percentile(hour.first_s, share) for share in (0.5, 0.99))
    return (
        f"| {number} | {rate:,.0f} | {rate * ANSWER:,.0f} | {hour.cached / max(hour.prompt, 1):.1%} | {p50:.0f} /"
        f" {p99:.0f} ms | {hour.open:.0f}, {hour.open * hour.fullest:.0f} | {hour.refused.total()} |"
        f" {hour.router_s / day.hour_s:.2f} |"
    )


def summary(day: Day) -> str:
    """The whole day in a line, and the hour of the fault."""
    hours = day.hours
    asked, answered = sum(hour.asked for hour in hours), sum(hour.answered for hour in hours)
    cached = sum(hour.cached for hour in hours) / max(sum(hour.prompt for hour in hours), 1)
    firsts = [one for hour in hours for one in hour.first_s]
    moved = sum(gate.router.counters["router_requests_moved"] for gate in day.gates)
    return (
        f"{asked:,} requests, {answered:,} answered to the last token, {asked - answered:,} refused; {cached:.1%} of"
        f" prompt tokens in the cache; first token p99 {1e3 * percentile(firsts, 0.99):.0f} ms; {moved:,} requests"
        f" moved, the end of an answer was late by {max(hour.late_s for hour in hours):.1f} s at most"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--services", type=int, default=64)
    parser.add_argument("--routers", type=int, default=1, help="each before all services")
    parser.add_argument("--hour-s", type=float, default=4.0, help="virtual seconds that an hour is held")
    parser.add_argument("--peak", type=float, default=0.9, help="of the slots, asked for in the fullest hour")
    parser.add_argument("--by-load", action="store_true", help="choose by load alone, to compare")
    parser.add_argument("--no-faults", action="store_true", help="no service falls silent")
    found = parser.parse_args()
    gc.disable()  # nothing here is in a cycle, and to look for one among millions of objects takes most of the time
    day = Day(found.services, found.routers, found.hour_s, found.peak)

    def on_hour(number: int) -> None:
        print(row(day, number), file=sys.stderr, flush=True)

    with patch.object(admission, "hash_blocks", lambda *asked: []) if found.by_load else nullcontext():
        day.run(faults=not found.no_faults, on_hour=on_hour)
    print(table(day))
    print()
    print(summary(day))


if __name__ == "__main__":
    main()
