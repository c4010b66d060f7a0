"""Routers, and whole services behind them, in one virtual time; every part of it fails, and clients see to every token.

The routers are the production actor with its production sessions, the services are ``World``: the five actors
around an emulated device. A service dies as a whole, with or without a word, is restarted, drains, loses single
actors, and is parted from a router, in which time nothing arrives either way. ``python tests/support/fleet.py SEED``
replays one run and prints what it was.
"""

from __future__ import annotations

import heapq
import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from chaos import ACTORS, LONGEST_S, Asking, chaos_params
from simulation import GRAMMARS, MODEL_LEN, VOCAB, World, expected_prompt_logprobs, idle, random_prompt
from slipstream.actors.router.router import LATE_S, Router
from slipstream.protocol.events import Drain, Ending, ServiceFrame, ServiceInterrupted
from slipstream.protocol.limits import Limits
from slipstream.protocol.messages import Delta
from slipstream.protocol.sampling import SamplingParams
from slipstream.runtime.actor import Send
from slipstream.runtime.simulator import Simulator

BOUNDS = Limits(max_model_len=MODEL_LEN, vocab_size=VOCAB, max_prompt_bytes=10_000)

CLIENT_S = 0.2
"""What a client may need to find the next router, and messages to arrive."""

MAX_EVENTS = 100_000
"""Within which any load here ends, whatever fails."""


@dataclass
class Way:
    """The connection of one router to one service."""

    number: int
    """Of the session's connection."""
    address: bytes
    """By which the service knows it."""
    parted: bool = False
    held: list[Callable[[], None]] = field(default_factory=list)
    """What is on its way while they are parted."""


class Front(Asking):
    """One router and its clients."""

    router: type[Router] = Router
    """A test may put one with a fault in its place."""

    def __init__(self, fleet: Fleet, seed: int, name: str) -> None:
        self.fleet = fleet
        self.name = name
        self.lives = 0
        self.ways: dict[int, Way] = {}
        self.asked_at: dict[tuple[bytes, str], float] = {}
        self.told: set[tuple[bytes, str, bytes]] = set()
        """Requests that were told the logprobs of their prompts, and on which connection of their client."""

        def router(world: Simulator) -> Router:
            self.lives += 1
            rng = random.Random(f"{seed}/{self.lives}")
            return self.router("", "emulated", BOUNDS, fleet.endpoints, server="simulated", rng=rng)

        super().__init__(seed, {"router": router})

    @property
    def actor(self) -> Router | None:
        return self.actors.get("router")  # type: ignore[return-value]

    def become_ready(self, name: str, epoch: int) -> None:
        super().become_ready(name, epoch)
        if name in self.actors:
            self.schedule(name, self.actors[name])

    def end_incarnation(self, name: str) -> None:
        super().end_incarnation(name)
        for service in list(self.ways):
            self.hang_up(service)

    def deliver(self, name: str, sends: list[Send]) -> None:
        """What the host does after each turn."""
        super().deliver(name, sends)
        router = self.actor
        if router is None:
            return
        for endpoint, session in router.sessions.items():
            service = self.fleet.endpoints.index(endpoint)
            way = self.ways.get(service)
            if way is None or way.number != session.connection or session.state == "lost":
                self.hang_up(service)
                if session.state == "lost":
                    continue
                address = f"{self.name}.{self.lives}/{service}/{session.connection}".encode()
                way = self.ways[service] = Way(session.connection, address)
                self.fleet.fronts_by_address[address] = (self, service)
                way.parted = self.fleet.is_parted(self, service)
            while session.outbox:
                frame = session.outbox.popleft()
                self.pass_on(
                    way, lambda way=way, frame=frame, at=service: self.fleet.reach(at, way.address, frame)
                )
        self.fleet.check_router(self)

    def pass_on(self, way: Way, event: Callable[[], None]) -> None:
        if way.parted:
            way.held.append(event)
        else:
            event()

    def hang_up(self, service: int) -> None:
        way = self.ways.pop(service, None)
        if way is not None:
            self.fleet.services[service].close(way.address)

    def on_service(self, service: int, address: bytes, frame: bytes) -> None:
        way = self.ways.get(service)
        if way is not None and way.address == address:
            self.pass_on(way, lambda: self.hear_service(service, address, frame))

    def hear_service(self, service: int, address: bytes, frame: bytes) -> None:
        way = self.ways.get(service)
        if way is not None and way.address == address and "router" in self.actors:
            endpoint = self.fleet.endpoints[service]
            self.turn("router", endpoint, ServiceFrame(endpoint, frame))

    def interrupt(self, service: int) -> None:
        """The connection breaks, and the router's host is told."""
        if service in self.ways and not self.ways[service].parted:
            self.fleet.services[service].close(self.ways[service].address)
            if "router" in self.actors:
                endpoint = self.fleet.endpoints[service]
                self.turn("router", endpoint, ServiceInterrupted(endpoint))

    def ask(self, client: bytes, id: str, prompt: list[int], params: SamplingParams) -> None:
        self.asked_at[client, id] = self.now
        super().ask(client, id, prompt, params)

    def take(self, key: tuple[bytes, str], delta: Delta) -> None:
        if delta.prompt_logprobs is not None:
            asked = (*key, self.clients[key[0]].address)
            assert asked not in self.told, f"{key} was told the logprobs of its prompt twice"
            self.told.add(asked)
            assert delta.prompt_logprobs == expected_prompt_logprobs(*self.requests[key]), key
        super().take(key, delta)

    def finish(self, key: tuple[bytes, str], end: str) -> None:
        super().finish(key, end)
        deadline = self.requests[key][1].deadline_s
        if deadline is not None:
            took = self.now - self.asked_at[key]
            assert took < deadline + LATE_S + CLIENT_S, f"{key} ended after {took:.2f} s of {deadline:g} s"

    def allowed_ends(self, key: tuple[bytes, str]) -> set[str]:
        given_up = {"quarantined"} if self.fleet.losses > 2 else set()
        return super().allowed_ends(key) | given_up


class Fleet:
    """Some routers, the services behind all of them, and one clock."""

    def __init__(self, seed: int, services: int = 4, routers: int = 1, front: type[Front] = Front) -> None:
        self.rng = random.Random(seed)
        self.endpoints = [f"ipc:///service{number}" for number in range(services)]
        self.services = [World(1000 * seed + number) for number in range(services)]
        self.fronts_by_address: dict[bytes, tuple[Front, int]] = {}
        self.parted: set[tuple[str, int]] = set()
        self.losses = 0
        """Services that a router may have taken for gone."""
        self.happened: Counter[str] = Counter()
        for number, world in enumerate(self.services):
            world.on_client = lambda address, frame, number=number: self.answer(number, address, frame)
        self.fronts = [front(self, seed * 10 + number, f"router{number}") for number in range(routers)]
        self.now = 0.0

    @property
    def simulators(self) -> list[Simulator]:
        return [*self.fronts, *self.services]

    def reach(self, service: int, address: bytes, frame: bytes) -> None:
        self.services[service].arrive_from_client(address, frame)

    def answer(self, service: int, address: bytes, frame: bytes) -> None:
        front, _ = self.fronts_by_address[address]
        front.on_service(service, address, frame)

    def run(self, until: Callable[[], bool]) -> None:
        """Let time pass for all of them; ``AssertionError`` if ``until`` does not come."""
        deadline, count = self.now + LONGEST_S, 0
        while not until():
            following = min((one for one in self.simulators if one.events), key=lambda one: one.events[0][:2])
            self.now = following.events[0][0]
            for one in self.simulators:
                one.now = self.now
            _, _, event = heapq.heappop(following.events)
            event()
            count += 1
            assert count < MAX_EVENTS, f"not over after {count} events"
            assert self.now < deadline, f"not over after {LONGEST_S:g} s: {self.open()}"

    def open(self) -> list[Any]:
        return [key for front in self.fronts for key in front.requests.keys() - front.ends.keys()]

    # --- what fails -------------------------------------------------------------------------------

    def kill_service(self, service: int | None = None, *, silent: bool | None = None) -> None:
        """All of it, at once; it is started again, soon or late. ``silent``: as a machine that loses its power."""
        service = self.rng.randrange(len(self.services)) if service is None else service
        silent = self.rng.random() < 0.3 if silent is None else silent
        pause = self.rng.choice([0.01, 0.3, 2.0, 9.0])
        self.losses += 1
        self.happened["a service is killed" + (", in silence" if silent else "")] += 1
        self.restart_service(service, pause)
        for front in self.fronts:
            if silent:
                self.part_way(front, service)  # a dead machine answers nothing, not even that it is dead
                front.after(pause, lambda front=front: self.heal(front, service, lost=True))
            else:
                front.after(self.rng.random() * 0.001, lambda front=front: front.interrupt(service))

    def restart_service(self, service: int, pause: float) -> None:
        """All its actors end and start again, the gateway when all others know each other."""
        for name in ACTORS:
            late = 0.02 if name == "gateway" else 0.01 * self.rng.random()
            self.services[service].crash(name, pause + late)

    def kill_actor(self) -> None:
        """One actor of a service, as it happens within one."""
        service, name = self.rng.randrange(len(self.services)), self.rng.choice(ACTORS)
        self.happened["an actor is killed"] += 1
        self.services[service].crash(name, self.rng.random() * 0.02)
        if name == "gateway":
            self.losses += 1
            for front in self.fronts:
                front.after(self.rng.random() * 0.001, lambda front=front: front.interrupt(service))

    def kill_router(self) -> None:
        """Its clients find the next one."""
        front = self.rng.choice(self.fronts)
        self.happened["a router is killed"] += 1
        for client in front.clients.values():
            if self.rng.random() < 0.8:
                front.after(self.rng.random() * 0.002, lambda client=client: client.cut(True))
        front.crash("router", self.rng.random() * 0.02)

    def part(self) -> None:
        """A router and a service do not hear each other for a while."""
        front, service = self.rng.choice(self.fronts), self.rng.randrange(len(self.services))
        if not self.is_parted(front, service):
            self.losses += 1
            self.happened["a router and a service are parted"] += 1
            self.part_way(front, service)
            lost = self.rng.random() < 0.5
            front.after(self.rng.choice([0.1, 3.0, 8.0]), lambda: self.heal(front, service, lost=lost))

    def part_way(self, front: Front, service: int) -> None:
        self.parted.add((front.name, service))
        if service in front.ways:
            front.ways[service].parted = True

    def is_parted(self, front: Front, service: int) -> bool:
        return (front.name, service) in self.parted

    def heal(self, front: Front, service: int, lost: bool) -> None:
        """They hear each other again; what was said meanwhile arrives, or is ``lost`` with the connection."""
        self.parted.discard((front.name, service))
        way = front.ways.get(service)
        if way is not None and way.parted:
            way.parted, held, way.held = False, way.held, []
            if lost:
                front.interrupt(service)
            for event in () if lost else held:
                event()

    def drain_service(self) -> None:
        """It takes nothing new, finishes what it can in a little time, and ends; another takes its place."""
        service = self.rng.randrange(len(self.services))
        world = self.services[service]
        self.happened["a service drains"] += 1
        self.losses += 1
        if "gateway" in world.actors:
            world.turn("gateway", b"", Drain())
            world.after(self.rng.random() * 0.1, lambda: self.end_service(service))

    def end_service(self, service: int) -> None:
        world = self.services[service]
        if "gateway" in world.actors:
            world.turn(
                "gateway", "supervisor", Ending("the service was stopped before this request was finished")
            )
        self.restart_service(service, 0.2)
        for front in self.fronts:
            front.after(0.005, lambda front=front: front.interrupt(service))

    def cut_client(self) -> None:
        client = self.rng.choice([*self.rng.choice(self.fronts).clients.values()])
        client.cut(self.rng.random() < 0.5)

    # --- what must be true ------------------------------------------------------------------------

    def check_router(self, front: Front) -> None:
        """After each turn: every open request is in one place, and what is counted is what is there."""
        router = front.actor
        if router is None:
            return
        held = Counter[int]()
        for replica in router.services.replicas.values():
            streams = replica.session.streams.values()
            held.update(stream.waiter.number for stream in streams)
            assert all(stream.waiter.replica is replica for stream in streams), "it is where it is said to be"
            assert replica.open_answers == sum(stream.waiter.answers for stream in streams), (
                "answers are counted"
            )
            assert replica.uncomputed == sum(stream.waiter.uncomputed for stream in streams), (
                "blocks are counted"
            )
            load = replica.load
            replica.weigh()
            assert replica.load == load, "the load is that of what is open"
        placement = router.placement
        if front.now < placement.candidates_until:
            remembered = list(placement.candidates)
            placement.on_change()
            assert placement.find_candidates(front.now) == remembered, "who takes requests is known"
        held.update(request.number for request in router.open.waiting)
        assert held == Counter(router.open.by_number.keys()), "each open request is in one place"
        known = router.connections.known
        assert all(
            known.get(one.connection.address) is one.connection for one in router.open.by_number.values()
        ), "whose client is gone is not open"
        assert router.open.answers == sum(one.answers for one in router.open.by_number.values())
        assert router.open.bytes == sum(one.size for one in router.open.by_number.values())

    def check_nothing_left(self) -> None:
        """Nothing is held once all is over."""
        for front in self.fronts:
            front.check()
            router = front.actor
            assert router is not None
            assert not router.open.by_number
            assert not router.open.by_id
            assert not router.open.waiting
            assert not router.open.answers
            assert not router.open.bytes
        for world in self.services:
            world.check_nothing_left()


def fleet_params(rng: random.Random) -> SamplingParams:
    """Everything that a request may ask for, and that has to go with it to another service."""
    params = msgspec.structs.replace(chaos_params(rng), n=rng.choice([1, 1, 2, 3]))
    if params.deadline_s is not None:
        params = msgspec.structs.replace(params, deadline_s=rng.choice([0.05, 2.0, 30.0]))
    if rng.random() < 0.35:
        params = msgspec.structs.replace(params, prompt_logprobs=rng.choice([0, 2]))
    if rng.random() < 0.2:
        grammar = rng.choice(GRAMMARS)
        params = msgspec.structs.replace(
            params, json_schema=grammar.json_schema, regex=grammar.regex, choice=grammar.choice, stop=[]
        )
    return params


def everything_fails(fleet: Fleet) -> None:
    """Some faults of any kind, at random instants."""
    kinds = [
        *(fleet.kill_service, fleet.kill_service, fleet.kill_actor, fleet.kill_router),
        *(fleet.part, fleet.drain_service, fleet.cut_client),
    ]
    for _ in range(fleet.rng.randrange(1, 5)):
        fleet.fronts[0].at(0.01 + fleet.rng.random() * 0.3, fleet.rng.choice(kinds))


def services_die(fleet: Fleet) -> None:
    """Two of them, as processes do."""
    for _ in range(2):
        fleet.fronts[0].at(0.03 + fleet.rng.random() * 0.2, lambda: fleet.kill_service(silent=False))


def services_are_silent(fleet: Fleet) -> None:
    for _ in range(2):
        fleet.fronts[0].at(0.03 + fleet.rng.random() * 0.2, lambda: fleet.kill_service(silent=True))


def services_drain(fleet: Fleet) -> None:
    for _ in range(2):
        fleet.fronts[0].at(0.03 + fleet.rng.random() * 0.2, fleet.drain_service)


def routers_die(fleet: Fleet) -> None:
    for _ in range(3):
        fleet.fronts[0].at(0.03 + fleet.rng.random() * 0.2, fleet.kill_router)


def clients_are_cut_off(fleet: Fleet) -> None:
    for _ in range(4):
        fleet.fronts[0].at(0.03 + fleet.rng.random() * 0.2, fleet.cut_client)


def all_services_die(fleet: Fleet) -> None:
    """Requests have to wait until one is there again."""
    for service in range(len(fleet.services)):
        fleet.fronts[0].at(
            0.03 + fleet.rng.random() * 0.1, lambda service=service: fleet.kill_service(service, silent=False)
        )


def fleet_load(fleet: Fleet, requests: int, faults: Callable[[Fleet], None]) -> None:
    """Clients of all routers that ask, change their mind and leave; faults meanwhile; nothing is left at the end."""
    rng = fleet.rng
    for number, front in enumerate(fleet.fronts):
        for name in (b"ann", b"ben", b"cid"):
            front.connect(b"%s%d" % (name, number))
    for number in range(requests):
        front = rng.choice(fleet.fronts)
        client, id = rng.choice([*front.clients]), str(number)
        prompt, params = random_prompt(rng), fleet_params(rng)
        start = 0.01 + rng.random() * 0.3
        front.at(start, lambda f=front, c=client, i=id, p=prompt, s=params: f.ask(c, i, p, s))
        leaves = rng.random()
        if leaves < 0.15:
            change = front.abort if leaves < 0.1 else front.leave
            front.at(start + rng.random() * 0.1, lambda c=client, i=id, change=change: change(c, i))
    faults(fleet)
    fleet.run(
        lambda: (
            sum(len(front.requests) for front in fleet.fronts) == requests
            and all(front.over() for front in fleet.fronts)
        )
    )
    fleet.run(lambda: all(front.actor is not None and front.actor.idle for front in fleet.fronts))
    fleet.run(lambda: all(idle(world) for world in fleet.services))
    fleet.check_nothing_left()


if __name__ == "__main__":
    shown = Fleet(int(sys.argv[1]), routers=1 + int(sys.argv[1]) % 2)
    fleet_load(shown, 24, everything_fails)
    print(dict(shown.happened), f"{shown.now:.2f} s")
    print(Counter(end for front in shown.fronts for end in front.ends.values()))
    print({name: n for front in shown.fronts if front.actor for name, n in front.actor.counters.items()})
