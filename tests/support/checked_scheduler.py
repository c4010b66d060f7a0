"""A scheduler in front of a device that checks what it is asked to do; steps finish when the test says so."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from slipstream.actors.scheduler.config import SchedulerConfig
from slipstream.actors.scheduler.scheduler import Scheduler
from slipstream.protocol.internal import Capacity, Enqueue, Finished, Opened, Plan, Sampled, Tokens
from slipstream.protocol.sampling import SamplingParams
from slipstream.runtime.actor import Send
from wire import over_a_socket

EOS = 1
VOCAB = 1000


def int32(values: list[int]) -> bytes:
    return np.array(values, np.int32).tobytes()


def pairs(data: bytes) -> list[tuple[int, int]]:
    return [(first, second) for first, second in np.frombuffer(data, np.int32).reshape(-1, 2).tolist()]


def ints(data: bytes) -> list[int]:
    return np.frombuffer(data, np.int32).tolist()


# --- a device that checks -----------------------------------------------------------------------


@dataclass
class Row:
    """What the device knows of a sequence slot."""

    tokens: list[int]
    position: int
    seed: int
    stop: set[int]
    blocks: list[int] = field(default_factory=list)
    prefixes: list[int] = field(default_factory=list)
    """A number for each prefix of ``tokens``."""
    decoding: bool = False
    """Nothing of the prompt is left: it runs in every step."""
    finished: bool = False

    def prefix(self, position: int) -> int:
        while len(self.prefixes) <= position:
            before = self.prefixes[-1] if self.prefixes else 0
            self.prefixes.append(hash((before, self.tokens[len(self.prefixes)])))
        return self.prefixes[position]


class CheckedScheduler:
    """A scheduler and its device. Steps finish when the test says so, in order.

    The cache remembers of each place which prefix was written there. A row that attends to anything
    but its own prefix, because a block was given to two or reused too early, fails the test.
    """

    def __init__(
        self,
        *,
        slots: int = 4,
        budget: int = 64,
        length: int = 256,
        depth: int = 2,
        blocks: int = 65,
        size: int = 16,
        caching: bool = True,
        vocab: int = VOCAB,
        step_ns: Callable[[int], int] = lambda prefill: 500,
    ) -> None:
        """``step_ns`` is how long a step takes, by the number of prompt tokens that it runs."""
        self.step_ns = step_ns
        self.times: list[int] = []
        """Of the steps that are done."""
        self.size = size
        self.vocab = vocab
        self.depth = depth
        self.budget = budget
        self.scheduler = Scheduler(SchedulerConfig(slots, budget, length, depth, (EOS,), caching))
        self.now = 10.0
        self.outstanding: deque[Plan] = deque()
        self.plans: list[Plan] = []
        self.news: list[Tokens] = []
        self.rows: dict[int, Row] = {}
        self.cache: dict[tuple[int, int], int] = {}
        self.opened: list[Opened] = []
        self.tokens: dict[int, list[int]] = {}
        self.ends: dict[int, Finished] = {}
        self.prompts: dict[int, list[int]] = {}
        self.give(Capacity(blocks, size))

    def give(self, message: Any) -> None:
        self.now += 0.001
        self.carry(self.scheduler.receive("anyone", message, self.now))

    def wake(self) -> None:
        """It is as late as the scheduler asked for."""
        assert self.scheduler.wake_at is not None
        self.now = self.scheduler.wake_at
        self.carry(self.scheduler.wake(self.now))

    def carry(self, sends: list[Send]) -> None:
        for to, message in sends:
            sent = over_a_socket(message)
            if to == "executor":
                self.plans.append(sent)
                self.outstanding.append(sent)
                assert len(self.outstanding) <= self.depth
            else:
                assert to == "detokenizer"
                self.hear(sent)

    def hear(self, message: Tokens) -> None:
        self.news.append(message)
        for opened in message.opened:
            self.opened.append(opened)
            self.tokens.setdefault(opened.request, [])
        for request, token in zip(
            np.frombuffer(message.requests, np.int64).tolist(), ints(message.tokens), strict=True
        ):
            assert request not in self.ends, f"a ghost token of request {request}"
            self.tokens[request].append(token)
        for finished in message.finished:
            assert finished.request not in self.ends, f"request {finished.request} ended twice"
            self.ends[finished.request] = finished

    def ask(self, request: int, prompt: list[int], *, client: int = 0, **params: Any) -> None:
        self.prompts[request] = prompt
        told: dict[str, Any] = {"seed": request} | params
        self.give(Enqueue(request, int32(prompt), SamplingParams(**told), b"", client))

    def finish_step(self) -> Plan:
        """The oldest outstanding step is done."""
        plan = self.outstanding.popleft()
        tokens = self.compute(plan)
        self.times.append(self.step_ns(sum(count for _, count in pairs(plan.chunks))))
        self.give(Sampled(plan.step, int32(tokens), 0, self.times[-1]))
        return plan

    def finish_all(self, most: int = 10_000) -> None:
        for _ in range(most):
            if not self.outstanding:
                return
            self.finish_step()
        raise AssertionError(f"not over after {most} steps")

    def compute(self, plan: Plan) -> list[int]:
        for slot in ints(plan.leaves):
            del self.rows[slot]
        decoding = [slot for slot, row in self.rows.items() if row.decoding]
        for join in plan.joins:
            assert join.slot not in self.rows, "a slot with two holders"
            self.rows[join.slot] = Row(ints(join.tokens), join.start, join.seed, set(ints(join.stop_tokens)))
        for slot, block in pairs(plan.blocks):
            assert block != 0, "block 0 belongs to nobody"
            self.rows[slot].blocks.append(block)
        for source, target in pairs(plan.copies):
            for place in range(self.size):
                self.cache[target, place] = self.cache.get((source, place), 0)
        chunks = pairs(plan.chunks)
        assert len(decoding) + sum(count for _, count in chunks) <= self.budget
        for slot in decoding:
            self.run(self.rows[slot], 1)
        sampled: dict[int, int] = {slot: self.sample(self.rows[slot]) for slot in decoding}
        for slot, count in chunks:
            self.run(self.rows[slot], count)
            if self.rows[slot].position == len(self.rows[slot].tokens):
                self.rows[slot].decoding = True
                sampled[slot] = self.sample(self.rows[slot])
        return [sampled[slot] for slot in sorted(sampled)]

    def run(self, row: Row, count: int) -> None:
        if row.finished:
            return
        for position in range(row.position, row.position + count):
            self.cache[row.blocks[position // self.size], position % self.size] = row.prefix(position)
        row.position += count
        for position in range(row.position):
            place = row.blocks[position // self.size], position % self.size
            assert self.cache.get(place) == row.prefix(position), f"position {position} is not its own"

    def sample(self, row: Row) -> int:
        if row.finished:
            return -1
        token = next_token(row.prefix(row.position - 1), row.seed, self.vocab)
        row.tokens.append(token)
        row.finished = token in row.stop
        return token

    def nothing_left(self) -> None:
        scheduler, holdings = self.scheduler, self.scheduler.holdings
        blocks = holdings.blocks
        assert blocks is not None
        assert not scheduler.sequences
        assert not holdings.waiting
        assert not holdings.waiting.clients
        assert holdings.slots.available == scheduler.config.max_num_seqs
        assert blocks.available == blocks.count
        assert not any(blocks.references)


def next_token(prefix: int, seed: int, vocab: int) -> int:
    return hash((prefix, seed)) % vocab


def alone(prompt: list[int], seed: int, most: int, stop: set[int], vocab: int) -> list[int]:
    """What a request is answered alone."""
    row = Row(list(prompt), 0, seed, stop)
    while len(row.tokens) < len(prompt) + most:
        row.tokens.append(next_token(row.prefix(len(row.tokens) - 1), seed, vocab))
        if row.tokens[-1] in stop:
            break
    return row.tokens[len(prompt) :]


def prompt(number: int, length: int) -> list[int]:
    """A prompt that shares no prefix with another number's."""
    return [2 + (number * 37 + index * 11) % (VOCAB - 2) for index in range(length)]


FREE = {"ignore_eos": True}
