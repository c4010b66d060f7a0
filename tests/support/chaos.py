"""A world in which everything fails, and clients that hold it to every promise, delta by delta.

Its clients are the production ``Session``; actors crash, stand still and lose frames, the gateway among
them; connections break and are not read. What each answer must be is computed alone (``Answer``).
"""

from __future__ import annotations

import codecs
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import msgspec
import numpy as np
from simulation import EOS, MODEL_LEN, VOCAB, World, byte_tokenizer, expected_tokens, idle, random_prompt
from slipstream.actors.executor.step.emulated_runner import known_logprobs
from slipstream.actors.scheduler.scheduler import Scheduler
from slipstream.actors.text.vocabulary.pieces import BYTE_OF
from slipstream.protocol.client.pending import Pending, Stream
from slipstream.protocol.client.session import Session
from slipstream.protocol.limits import MAX_SEED
from slipstream.protocol.messages import Delta
from slipstream.protocol.sampling import SamplingParams
from slipstream.runtime.actor import Address
from slipstream.runtime.lives import START_S
from slipstream.runtime.simulator import Simulator

ACTORS = ["tokenizer", "scheduler", "executor", "detokenizer", "gateway"]

EDGES = [
    ("gateway", "tokenizer"),
    ("tokenizer", "gateway"),
    ("tokenizer", "scheduler"),
    ("scheduler", "executor"),
    ("executor", "scheduler"),
    ("scheduler", "detokenizer"),
    ("detokenizer", "gateway"),
    ("detokenizer", "scheduler"),
]

CONTEXT_TOKENS = 8
"""Of the prompt, this many tokens can leave the beginning of a character to the answer."""

LONGEST_S, MAX_TURNS = 40.0, 20_000
"""Virtual seconds and messages within which any load here ends, whatever fails."""


@dataclass
class Answer:
    """What one answer must be, computed alone, and what has come of it."""

    tokens: list[int]
    text: str
    reason: str
    stop_reason: str | int | None
    logprobs: int | None
    got: list[int] = field(default_factory=list)
    got_text: str = ""
    end: str | None = None

    @staticmethod
    def alone(prompt: list[int], params: SamplingParams, index: int) -> Answer:
        if index:
            digest = blake2b(f"{params.seed}/{index}".encode(), digest_size=8).digest()
            seed = int.from_bytes(digest, "little") & MAX_SEED
            params = msgspec.structs.replace(params, seed=seed)
        tokens = expected_tokens(prompt, params)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in prompt[-CONTEXT_TOKENS:]:
            decoder.decode(byte_of(token))
        stops = set(params.stop_token_ids) | (set() if params.ignore_eos else {EOS})
        text = ""
        for count, token in enumerate(tokens, 1):
            if token in stops and count > params.min_tokens:
                reason = None if token == EOS and not params.ignore_eos else token
                return Answer(tokens, text + decoder.decode(b"", True), "stop", reason, params.logprobs)
            for char in decoder.decode(byte_of(token)):
                text += char
                met = max(
                    (stop for stop in params.stop_strings if text.endswith(stop)), key=len, default=None
                )
                if met is not None:
                    return Answer(tokens[:count], text[: -len(met)], "stop", met, params.logprobs)
        room = MODEL_LEN - len(prompt)
        most = room if params.max_tokens is None else min(room, params.max_tokens)
        reason = "length" if len(tokens) == most else "stop"  # its grammar allows nothing more
        return Answer(tokens, text + decoder.decode(b"", True), reason, None, params.logprobs)

    def add(self, delta: Delta, gave_up: bool) -> None:
        """One more delta: it must go on exactly where the last one stopped."""
        assert self.end is None, "a delta after the end"
        self.got += delta.token_ids
        self.got_text += delta.text
        assert self.got == self.tokens[: len(self.got)], f"tokens {self.got} are not of {self.tokens}"
        assert self.text.startswith(self.got_text), f"text {self.got_text!r} is not of {self.text!r}"
        wanted = 0 if self.logprobs is None else len(delta.token_ids)
        assert len(delta.logprobs) == wanted, "as many logprobs as tokens"
        for token, row in zip(delta.token_ids, delta.logprobs, strict=False):
            ids, values = known_logprobs(np.array([token]), 1 + (self.logprobs or 0), VOCAB)
            assert row == dict(zip(map(str, ids[0].tolist()), values[0].tolist(), strict=True))
        self.end = delta.finish_reason
        if self.end is None or (gave_up and self.end == "abort"):
            return
        assert self.got == self.tokens, f"ended with {len(self.got)} of {len(self.tokens)} tokens"
        assert self.got_text == self.text, f"ended with {self.got_text!r}, not {self.text!r}"
        assert (self.end, delta.stop_reason) == (self.reason, self.stop_reason)


BYTES = [bytes([BYTE_OF[byte_tokenizer().id_to_token(token) or ""]]) for token in range(VOCAB)]


def byte_of(token: int) -> bytes:
    return BYTES[token]


class SimulatedClient:
    """The production ``Session`` on a simulated connection."""

    def __init__(self, world: Asking, name: bytes) -> None:
        self.world = world
        self.name = name
        self.session = Session("simulated", timeout_s=20.0)
        self.session.prefix = name.decode()  # the drawn one would make a run more than a function of its seed
        self.connection = 0
        self.dialled = 0
        self.address = b""
        self.due: float | None = None

    def carry(self) -> None:
        """Send what is due on the connection that the session speaks of, and see to the clock."""
        session = self.session
        if self.connection != session.connection:
            self.connection = session.connection
            self.dial()
        while session.outbox:
            self.world.arrive_from_client(self.address, session.outbox.popleft())
        if session.wake_at is not None and session.wake_at != self.due:
            self.due = session.wake_at
            self.world.at(session.wake_at, self.ring)

    def dial(self) -> None:
        self.world.close(self.address)
        self.dialled += 1
        self.address = b"%s/%d" % (self.name, self.dialled)
        self.world.by_address[self.address] = self

    def ring(self) -> None:
        self.due = None
        self.world.hear(self, self.session.tick(self.world.now))
        self.carry()

    def receive(self, frame: bytes) -> None:
        self.world.hear(self, self.session.receive(frame, self.world.now))
        self.carry()

    def cut(self, notices: bool) -> None:
        """The connection breaks. ZeroMQ makes another by itself; the session may be told of it."""
        if self.session.state != "lost":
            self.dial()
            if notices:
                self.session.interrupted(self.world.now)
                self.carry()


class Asking(Simulator):
    """A world with clients that check what they get as it comes."""

    def __init__(self, *given: Any, **options: Any) -> None:
        self.requests: dict[tuple[bytes, str], tuple[list[int], SamplingParams]] = {}
        self.ends: dict[tuple[bytes, str], str] = {}
        self.aborted: set[tuple[bytes, str]] = set()
        self.answers: dict[tuple[bytes, str], list[Answer]] = {}
        self.clients: dict[bytes, SimulatedClient] = {}
        self.by_address: dict[bytes, SimulatedClient] = {}
        super().__init__(*given, **options)
        self.on_client = lambda address, frame: self.by_address[address].receive(frame)

    def connect(self, client: bytes) -> None:
        self.clients[client] = SimulatedClient(self, client)

    def ask(self, client: bytes, id: str, prompt: list[int], params: SamplingParams) -> None:
        key = (client, id)
        self.requests[key] = (prompt, params)
        self.answers[key] = [Answer.alone(prompt, params, index) for index in range(params.n)]
        speaker = self.clients[client]
        speaker.session.ask(self.now, prompt=prompt, params=params, request_id=id).waiter = key
        speaker.carry()

    def abort(self, client: bytes, id: str) -> None:
        if (client, id) not in self.ends:
            self.aborted.add((client, id))
            self.clients[client].session.abort(id)
            self.clients[client].carry()

    def leave(self, client: bytes, id: str) -> None:
        """The consumer wants no more: nothing more of this request may come."""
        speaker = self.clients[client]
        stream = speaker.session.streams.get(id)
        if stream is not None:
            self.ends[client, id] = "left"
            speaker.session.leave(stream)
            speaker.carry()

    def hear(self, client: SimulatedClient, touched: list[Pending]) -> None:
        for stream in touched:
            assert isinstance(stream, Stream)
            key = stream.waiter
            while stream.deltas:
                self.take(key, stream.deltas.popleft())
            if stream.error is not None:
                self.finish(key, getattr(stream.error, "code", type(stream.error).__name__))

    def take(self, key: tuple[bytes, str], delta: Delta) -> None:
        assert key not in self.ends, f"{key} got a delta after its end"
        answers = self.answers[key]
        try:
            answers[delta.index].add(delta, key in self.aborted)
        except AssertionError as error:
            raise AssertionError(f"{key}, answer {delta.index}: {error}") from None
        if all(answer.end is not None for answer in answers):
            aborted = any(answer.end == "abort" for answer in answers)
            assert delta.usage is not None or aborted
            if delta.usage is not None and not aborted:
                assert delta.usage.completion_tokens == sum(len(answer.got) for answer in answers)
                assert delta.usage.prompt_tokens == len(self.requests[key][0])
            self.finish(key, "answered")
        else:
            assert delta.usage is None, f"{key} has answers that have not ended"

    def finish(self, key: tuple[bytes, str], end: str) -> None:
        assert key not in self.ends, f"{key} ended twice"
        self.ends[key] = end

    def over(self) -> bool:
        return len(self.ends) == len(self.requests)

    def allowed_ends(self, key: tuple[bytes, str]) -> set[str]:
        """How a request may end: in full, or by its own deadline."""
        deadline = self.requests[key][1].deadline_s
        return {"answered", "left"} | ({"deadline_exceeded"} if deadline is not None else set())

    def check(self) -> None:
        """Every request has one end, and no other than it may have."""
        assert self.ends.keys() == self.requests.keys()
        for key, end in self.ends.items():
            assert end in self.allowed_ends(key), f"{key} ended with {end}"


class Chaos(Asking, World):
    """Five actors, and clients that check what they get as it comes."""

    client_messages = 6

    def __init__(self, seed: int, **options: Any) -> None:
        self.faults_of_executors = 0
        self.poisonous: set[tuple[bytes, str]] = set()
        """Requests that kill an actor, and are to be given up."""
        super().__init__(seed, **options)
        self.on_client = lambda address, frame: self.by_address[address].receive(frame)

    def allowed_ends(self, key: tuple[bytes, str]) -> set[str]:
        given_up = self.faults_of_executors > 1 or key in self.poisonous  # it was computed at two of them
        return super().allowed_ends(key) | ({"quarantined"} if given_up else set())

    def turn(self, name: str, sender: Address, message: Any) -> None:
        super().turn(name, sender, message)
        if self.turns % 8 == 0:
            self.check_blocks()

    def check_blocks(self) -> None:
        """Each block is in one place, and has as many references as it has holders."""
        scheduler = self.actors.get("scheduler")
        if not isinstance(scheduler, Scheduler) or scheduler.holdings.blocks is None:
            return
        blocks = scheduler.holdings.blocks
        held = [0] * len(blocks.references)
        for sequence in scheduler.holdings.holders:
            for block in sequence.block_list.blocks if sequence is not None else ():
                held[block] += 1
        assert held == blocks.references, "references are holders"
        places = [*blocks.free, *blocks.unused, *blocks.retiring]
        places += [block for block, holders in enumerate(held) if holders]
        assert sorted(places) == list(range(1, len(held))), "each block is in one place"


def chaos_params(rng: random.Random) -> SamplingParams:
    return SamplingParams(
        max_tokens=rng.randrange(1, 60),
        min_tokens=0,
        ignore_eos=rng.random() < 0.3,
        seed=rng.getrandbits(60),
        stop=[rng.choice(["a", "\ufffd\ufffd\ufffd", "é", "\n", "\ufffdA"]) for _ in range(rng.randrange(3))],
        stop_token_ids=[rng.randrange(VOCAB) for _ in range(rng.randrange(3))],
        n=rng.choice([1, 1, 1, 2, 3]),
        logprobs=rng.choice([None, None, None, 0, 3]),
        deadline_s=rng.choice([None] * 9 + [rng.random() * 0.1 + 0.001]),
    )


def chaos_load(world: Chaos, requests: int, faults: Callable[[Chaos], None], others: int = 0) -> None:
    """Clients that ask, change their mind and leave; faults while they do; and nothing is left at the end.

    ``others``: how many requests the test itself has asked for.
    """
    rng = world.rng
    clients = [b"ann", b"ben", b"cid"]
    for client in clients:
        world.connect(client)
    for number in range(requests):
        client, id = rng.choice(clients), str(number)
        prompt, params = random_prompt(rng), chaos_params(rng)
        start = 0.01 + rng.random() * 0.2
        world.at(start, lambda c=client, i=id, p=prompt, s=params: world.ask(c, i, p, s))
        leaves = rng.random()
        if leaves < 0.15:
            change = world.abort if leaves < 0.1 else world.leave
            world.at(start + rng.random() * 0.1, lambda c=client, i=id, change=change: change(c, i))
    faults(world)
    world.run(lambda: len(world.requests) == requests + others and world.over(), MAX_TURNS, LONGEST_S)
    world.run(lambda: idle(world), MAX_TURNS, LONGEST_S)
    world.check()
    world.check_nothing_left()
    world.check_blocks()


def everything_fails(world: Chaos) -> None:
    """One to five faults of any kind at random instants."""
    rng = world.rng
    kinds = [crash, crash, crash, crash_twice, crash_beside_a_start, crash_in_a_start]
    kinds += [fault_of_executor, stand_still, lose, cut, stop_reading]
    for _ in range(rng.randrange(1, 6)):
        kind = rng.choice(kinds)
        world.at(0.005 + rng.random() * 0.3, lambda kind=kind: kind(world))


def gateway_fails(world: Chaos) -> None:
    """The gateway alone, again and again: what clients and it hand to each other."""
    for _ in range(4):
        world.at(0.01 + world.rng.random() * 0.2, lambda: crash(world, "gateway"))


def scheduler_fails(world: Chaos) -> None:
    """The scheduler alone, so often that it is back before the results of steps that it had planned."""
    for _ in range(6):
        world.at(0.01 + world.rng.random() * 0.25, lambda: world.crash("scheduler", 0.0))


def starts_overlap(world: Chaos) -> None:
    """An actor and the gateway start at a time, again and again."""
    for _ in range(3):
        world.at(0.02 + world.rng.random() * 0.3, lambda: crash_beside_a_start(world))


def detokenizer_is_late(world: Chaos) -> None:
    """It stands still while everything is sent again, and so speaks of attempts that are long over."""
    start = 0.02 + world.rng.random() * 0.1
    world.at(start, lambda: world.stand_still("detokenizer", 0.1))
    for _ in range(2):
        world.at(start + world.rng.random() * 0.1, lambda: crash(world, "tokenizer"))


def crash(world: Chaos, name: str | None = None) -> None:
    name = name or world.rng.choice(ACTORS)
    if name == "gateway":
        for client in world.clients.values():
            if world.rng.random() < 0.8:  # most connections tell of it, some are found out by silence
                world.after(world.rng.random() * 0.002, lambda client=client: client.cut(True))
    world.crash(name, world.rng.choice([0.0, 0.02]) * world.rng.random())


def crash_twice(world: Chaos) -> None:
    """The second while the service recovers from the first."""
    crash(world)
    world.after(world.rng.random() * 0.03, lambda: crash(world))


def crash_beside_a_start(world: Chaos) -> None:
    """The gateway too, while another actor starts."""
    crash(world)
    world.after(world.rng.random() * START_S, lambda: crash(world, "gateway"))


def crash_in_a_start(world: Chaos) -> None:
    """The next incarnation as well, before it is ready or just after."""
    name = world.rng.choice(ACTORS)
    crash(world, name)
    world.after(world.rng.random() * START_S, lambda: crash(world, name))


def fault_of_executor(world: Chaos) -> None:
    """It ends by its own fault, which makes suspects of what it computed."""
    world.faults_of_executors += "executor" in world.actors
    world.crash("executor", world.rng.random() * 0.02, own_fault=True)


def stand_still(world: Chaos) -> None:
    world.stand_still(world.rng.choice(ACTORS), world.rng.random() * 0.3)


def lose(world: Chaos) -> None:
    world.lose(*world.rng.choice(EDGES))


def cut(world: Chaos) -> None:
    client = world.rng.choice([*world.clients.values()])
    client.cut(world.rng.random() < 0.5)


def stop_reading(world: Chaos) -> None:
    client = world.rng.choice([*world.clients.values()])
    world.stop_reading(client.address, world.rng.random() * 0.4)
