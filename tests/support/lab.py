"""The real scheduler under random load, in front of a light device that checks every step of every plan.

``python tests/support/lab.py SEED [STEPS]`` replays one run and prints what it was.

The device keeps of each place in the cache one number, made of the number of the place before it and of the
token, so that a number stands for a whole prefix; the next token is a function of the last of them. So a
block with the wrong content, a wrong carry-over, or a prefix found across salts changes the tokens, and the
tokens of every request are compared with those that it has alone. So are logprobs,
of answers and of prompts. What would change no token is checked as it
happens: who owns a block, who may write to it, and that nothing is handed out which an outstanding step uses.
"""

from __future__ import annotations

import random
import sys
import zlib
from array import array
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from slipstream.actors.scheduler.config import SchedulerConfig
from slipstream.actors.scheduler.scheduler import Scheduler
from slipstream.protocol.events import PeerUp
from slipstream.protocol.internal import (
    Cancel,
    Capacity,
    Enqueue,
    GrammarEnd,
    Matched,
    Plan,
    PromptLogprobs,
    Sampled,
    Tokens,
)
from slipstream.protocol.limits import PROMPT_LOGPROBS_PER_STEP
from slipstream.protocol.sampling import Grammar, SamplingParams
from wire import over_a_socket

EOS, VOCAB, LENGTH = 1, 40, 64
EVERYTHING_EVERY = 32
"""Steps between two checks of everything; what is checked in each step leaves them nothing to find."""


@dataclass(slots=True, eq=False)
class Row:
    """What the device knows of a sequence slot."""

    tokens: list[int]
    position: int
    seed: int
    stop: frozenset[int]
    max_length: int
    salt: int
    prompt_len: int
    logprobs: int
    prompt_logprobs: int
    complete_at: int | None
    """Length at which its grammar allows nothing more."""
    blocks: list[int] = field(default_factory=list)
    shared: int = 0
    decoding: bool = False
    finished: bool = False
    last_step: int = -1


@dataclass(slots=True, eq=False)
class Asked:
    """A request, and what it is answered alone as far as it was answered."""

    seed: int
    stop: frozenset[int]
    most: int
    params: SamplingParams
    prompt: list[int]
    complete: int | None
    """How many tokens its grammar allows; None: it has none."""
    prefix: int
    """The number of all tokens so far."""
    count: int = 0
    tokens: list[int] = field(default_factory=list)
    """Prompt and answer: what the next question of a conversation begins with."""
    aborted: bool = False
    opened: bool = False
    """The detokenizer has heard of it."""
    reported: bool = False
    """The logprobs of its prompt have come."""


def following(prefix: int, token: int) -> int:
    return hash((prefix, token))


def next_token(prefix: int, seed: int) -> int:
    return hash((prefix, seed)) % VOCAB


def logprobs_of(tokens: list[int], columns: int) -> list[int]:
    """Those of tokens, row after row: the ids of each and of the most likely ones; the values are the same numbers."""
    return [(token + column) % VOCAB for token in tokens for column in range(columns)]


def allowed_by(grammar: Grammar | None) -> int | None:
    """How many tokens a grammar allows: here that is what it says."""
    return None if grammar is None else int(grammar.source)


def salt_number(salt: str) -> int:
    return zlib.crc32(salt.encode())


class Lab:
    """One run: everything about it, and all that happens in it, is a function of the seed."""

    def __init__(self, seed: int, scheduler: type[Scheduler] = Scheduler) -> None:
        self.rng = rng = random.Random(seed)
        self.depth = rng.choice((1, 2, 2, 3, 4))
        self.slots = rng.choice((rng.randrange(2, 8), rng.randrange(2, 8), 14))
        self.size = rng.choice((2, 4, 8))
        self.sizes = rng.choice(([], [4, 6, 8, 12, 16, 24, 32, 48, 64]))
        """As ``Capacity.step_sizes``."""
        self.budget = rng.choice((rng.randrange(self.slots, 40), 400))
        whole = -(-LENGTH // self.size)
        self.blocks = 1 + round(whole * rng.choice((1.0, 1.3, 2.0, self.slots)))
        caching = rng.random() < 0.85
        self.scheduler = scheduler(
            SchedulerConfig(self.slots, self.budget, LENGTH, self.depth, (EOS,), caching)
        )
        self.arrivals, self.changes = rng.choice((0.05, 0.2, 0.5)), rng.choice((0.0, 0.02, 0.1))
        self.reporting = rng.choice((0.0, 0.2, 0.8))
        """How many requests want the logprobs of their prompts."""
        self.most_reported = 0
        self.now = 1.0
        self.open: dict[int, Asked] = {}
        self.asked = 0
        self.bases = [[rng.randrange(2, VOCAB) for _ in range(LENGTH)] for _ in range(3)]
        self.ended = Counter[str]()
        self.steps = 0
        self.restart()

    def restart(self) -> None:
        """A new executor, which holds nothing."""
        self.outstanding: deque[Sampled] = deque()
        self.rows: list[Row | None] = [None] * self.slots
        self.cells = [[0] * self.size for _ in range(self.blocks)]
        self.owners = [0] * self.blocks
        self.writer: list[Row | None] = [None] * self.blocks
        self.touched = [-1] * self.blocks
        """The last step that may read or write each block that has no owner."""
        self.slot_touched = [-1] * self.slots
        self.completed = self.scheduler.holdings.step - 1
        self.give(PeerUp("executor", 1))
        self.give(Capacity(self.blocks, self.size, step_sizes=self.sizes))

    # --- messages -----------------------------------------------------------------------------------

    def give(self, message: Any) -> None:
        self.now += 0.001
        for to, sent in self.scheduler.receive("anyone", message, self.now):
            if to == "executor":
                self.launch(sent)
            else:
                self.hear(over_a_socket(sent) if sent.counters else sent)

    def ask(self, answers: int) -> None:
        """One request, or several that share a prompt, as ``n`` answers do."""
        rng = self.rng
        base = rng.choice(self.bases)
        prompt = base[: rng.randrange(1, LENGTH - 2)]
        if rng.random() < 0.5:
            prompt = [*prompt[: rng.randrange(len(prompt))], rng.randrange(2, VOCAB)]
        salt = rng.choice(("", "", "", "salt"))
        if (
            len(prompt) > 2 * self.size and rng.random() < 0.1
        ):  # the tokens of a block as a salt, which are text
            salt, prompt = array("i", prompt[: self.size]).tobytes().decode(), prompt[self.size :]
        most = min(rng.randrange(1, 40), LENGTH - len(prompt))
        stop = frozenset(rng.choice(((), (), (5,))))
        ignore_eos, priority = rng.random() < 0.5, rng.choice((0, 0, 0, 1, -3, 1000))
        prefix = salt_number(salt)
        for token in prompt:
            prefix = following(prefix, token)
        ids = array("i", prompt).tobytes()
        wishes = {
            "logprobs": rng.choice((None, None, None, 0, 2)),
            "prompt_logprobs": rng.choice((0, 2)) if rng.random() < self.reporting else None,
            "regex": rng.choice((None, None, None, str(rng.randrange(0, 30)))),
            "min_tokens": rng.choice((0, 0, 3)),
            "repetition_penalty": rng.choice((1.0, 1.0, 1.5)),
            "frequency_penalty": rng.choice((0.0, 0.0, 0.5)),
            "logit_bias": rng.choice(({}, {}, {3: 1.0})),
        }
        for _ in range(answers):
            request = self.asked
            self.asked += 1
            params = SamplingParams(
                max_tokens=most,
                seed=request,
                stop_token_ids=list(stop),
                ignore_eos=ignore_eos,
                priority=priority,
                cache_salt=salt,
                **wishes,
            )
            stops = stop if ignore_eos else stop | {EOS}
            complete = allowed_by(params.grammar)
            self.open[request] = Asked(
                request, stops, most, params, prompt, complete, prefix, tokens=prompt[:]
            )
            self.give(Enqueue(request, ids, params, b"", rng.randrange(3)))

    def hear(self, message: Tokens) -> None:
        tokens = array("i", message.tokens)
        logprobs = np.frombuffer(message.logprob_tokens, np.int32)
        assert len(message.logprobs) == len(message.logprob_tokens)
        for opened in message.opened:
            if opened.request in self.open:
                self.open[opened.request].opened = True
        for prompt in message.prompts:
            self.hear_of_prompt(prompt)
        for index, request in enumerate(array("q", message.requests)):
            asked = self.open.get(request)
            assert asked is not None, f"a token of request {request}, which has ended"
            token = tokens[index]
            assert token == next_token(asked.prefix, asked.seed), f"request {request} is not as it is alone"
            if asked.params.logprobs is not None:
                columns = 1 + asked.params.logprobs
                row = logprobs.reshape(len(tokens), -1)[index, :columns].tolist()
                assert row == logprobs_of([token], columns), f"request {request} has another's logprobs"
            asked.prefix = following(asked.prefix, token)
            asked.count += 1
            asked.tokens.append(token)
        for finished in message.finished:
            asked = self.open.pop(finished.request)
            stopped = asked.count > 0 and asked.tokens[-1] in asked.stop
            stopped = stopped or (asked.count == asked.complete and asked.count < asked.most)
            assert finished.reason == ("abort" if asked.aborted else "stop" if stopped else "length"), (
                f"request {finished.request} ended by {finished.reason}"
            )
            assert asked.aborted or stopped or asked.count == asked.most
            wanted = asked.params.prompt_logprobs is not None and len(asked.prompt) > 1
            assert asked.aborted or asked.reported or not wanted, "the logprobs of a prompt never came"
            self.ended[finished.reason] += 1
            if self.rng.random() < 0.3:
                base = self.rng.choice(self.bases)
                base[:] = (asked.tokens + base)[:LENGTH]

    def hear_of_prompt(self, prompt: PromptLogprobs) -> None:
        asked = self.open[prompt.request]
        assert asked.params.prompt_logprobs is not None
        columns = 1 + asked.params.prompt_logprobs
        expected = logprobs_of(asked.prompt[1:], columns)
        assert array("i", prompt.tokens).tolist() == expected
        assert array("f", prompt.values).tolist() == expected
        asked.reported = True

    # --- the device ---------------------------------------------------------------------------------

    def launch(self, plan: Plan) -> None:
        """Apply a plan and compute its step; its result waits until the step is finished."""
        step, rows, size = plan.step, self.rows, self.size
        if step % EVERYTHING_EVERY == 0:
            plan = over_a_socket(plan)
        assert len(self.outstanding) < self.depth
        for slot in array("i", plan.leaves):
            self.leave(slot)
        starts: dict[int, int] = {}
        for join in plan.joins:
            slot = join.slot
            assert rows[slot] is None, f"slot {slot} has two holders"
            assert self.slot_touched[slot] <= self.completed, f"slot {slot} is reused while a step runs in it"
            sequence = self.scheduler.holdings.holder(slot)
            row = rows[slot] = Row(
                array("i", join.tokens).tolist(),
                join.start,
                join.seed,
                frozenset(array("i", join.stop_tokens)),
                join.max_length,
                salt_number(sequence.params.cache_salt),
                join.prompt_len,
                join.logprobs,
                join.prompt_logprobs,
                None if join.grammar is None else join.prompt_len + (allowed_by(join.grammar) or 0),
            )
            params = sequence.params
            assert (join.repetition_penalty, join.frequency_penalty, join.min_tokens, join.logprobs) == (
                params.repetition_penalty,
                params.frequency_penalty,
                params.min_tokens,
                -1 if params.logprobs is None else params.logprobs,
            )
            assert array("i", join.bias_tokens).tolist() == list(map(int, params.logit_bias))
            starts[slot] = row.shared = join.start // size
        pairs = array("i", plan.blocks)
        for slot, block in zip(pairs[::2], pairs[1::2], strict=True):
            row = rows[slot]
            assert row is not None
            assert block, "block 0 belongs to nobody"
            if len(row.blocks) >= row.shared:  # a new one: the cache gives the prefix
                assert not self.owners[block], f"block {block} is handed out and has an owner"
                assert self.touched[block] <= self.completed, f"block {block} is reused while a step uses it"
                self.writer[block] = row
            self.owners[block] += 1
            row.blocks.append(block)
        pairs = array("i", plan.copies)
        for source, target in zip(pairs[::2], pairs[1::2], strict=True):
            assert self.owners[target] == 1
            self.cells[target] = self.cells[source][:]
            self.touched[source] = step
        sampling: list[Row] = []
        order: list[int] = []
        tokens_run = 0
        reported: list[int] = []
        columns = 1 + max((row.prompt_logprobs for row in rows if row is not None), default=0)
        for slot, row in enumerate(rows):
            if row is not None and row.decoding:
                tokens_run += 1
                self.run(row, 1, step)
                sampling.append(row)
                order.append(slot)
        pairs = array("i", plan.chunks)
        for slot, count in zip(pairs[::2], pairs[1::2], strict=True):
            row = rows[slot]
            assert row is not None
            assert not row.decoding
            tokens_run += count
            if row.prompt_logprobs >= 0:
                first = row.position + 1
                reported += row.tokens[first : min(first + count, row.prompt_len)]
            self.run(row, count, step)
            if row.position == len(row.tokens):
                row.decoding = True
                sampling.append(row)
                order.append(slot)
        assert 0 < tokens_run <= self.budget
        assert len(reported) <= PROMPT_LOGPROBS_PER_STEP
        self.most_reported = max(self.most_reported, len(reported))
        assert plan.chunks or order == sorted(order)
        if plan.chunks:
            sampling = [row for _, row in sorted(zip(order, sampling, strict=True), key=lambda item: item[0])]
        ends = [
            GrammarEnd(rows.index(row))
            for row in sampling
            if not row.finished and row.complete_at is not None and len(row.tokens) >= row.complete_at
        ]
        tokens = [self.sample(row) for row in sampling]
        wanted = 1 + max((row.logprobs for row in sampling), default=-1)
        of_answers, of_prompts = logprobs_of(tokens, wanted), logprobs_of(reported, columns)
        self.outstanding.append(
            Sampled(
                step,
                array("i", tokens).tobytes(),
                0,
                0,
                array("i", of_answers).tobytes(),
                array("f", of_answers).tobytes(),
                ends,
                array("i", of_prompts).tobytes(),
                array("f", of_prompts).tobytes(),
            )
        )

    def leave(self, slot: int) -> None:
        row = self.rows[slot]
        assert row is not None
        self.rows[slot] = None
        self.slot_touched[slot] = row.last_step
        for block in row.blocks:
            self.owners[block] -= 1
            if row.last_step > self.touched[block]:
                self.touched[block] = row.last_step
            if self.writer[block] is row:
                self.writer[block] = None

    def run(self, row: Row, count: int, step: int) -> None:
        row.last_step = step
        if row.finished and row.position == len(row.tokens):
            return  # behind the token that ended it, which a step already launched computes
        size, cells, blocks = self.size, self.cells, row.blocks
        position = row.position
        before = cells[blocks[(position - 1) // size]][(position - 1) % size] if position else row.salt
        for position in range(row.position, row.position + count):
            block = blocks[position // size]
            assert self.writer[block] is row, f"block {block} is written by who may only read it"
            before = cells[block][position % size] = following(before, row.tokens[position])
        row.position += count

    def sample(self, row: Row) -> int:
        if row.finished:
            return -1
        if row.complete_at is not None and len(row.tokens) >= row.complete_at:
            row.finished = True
            return -1
        last = row.position - 1
        token = next_token(self.cells[row.blocks[last // self.size]][last % self.size], row.seed)
        assert len(row.tokens) < row.max_length, "a step is wasted on an end by length"
        row.tokens.append(token)
        row.finished = token in row.stop
        return token

    def finish_step(self) -> None:
        sampled = self.outstanding.popleft()
        self.completed = sampled.step
        self.steps += 1
        sampled.started_ns = self.completed * 10**6
        sampled.ended_ns = sampled.started_ns + self.rng.randrange(1, 10**6)
        self.give(sampled)

    # --- invariants ---------------------------------------------------------------------------------

    def check(self) -> None:
        """Blocks are conserved, and every owner is counted."""
        holdings = self.scheduler.holdings
        blocks = holdings.blocks
        assert blocks is not None
        references = blocks.references
        held = len(references) - references.count(0)
        assert len(blocks.free) + len(blocks.unused) + len(blocks.retiring) + held == blocks.count
        owned = 0
        for sequence in holdings.holders:
            if sequence is not None:
                owned += len(sequence.block_list.blocks)
        assert sum(references) == owned

    def check_everything(self) -> None:
        """The same from the ground up: who holds what, in which generation; what is found; who waits."""
        holdings = self.scheduler.holdings
        blocks, waiting = holdings.blocks, holdings.waiting
        assert blocks is not None
        held = Counter[int]()
        for sequence in holdings.holders:
            if sequence is not None:
                held.update(sequence.block_list.blocks)
                assert sequence.block_list.generations == [
                    blocks.generation[b] for b in sequence.block_list.blocks
                ]
        places = [*blocks.free, *blocks.unused, *blocks.retiring, *held]
        assert sorted(places) == list(range(1, self.blocks)), "each block is in one place"
        assert blocks.references == [held[block] for block in range(self.blocks)]
        assert {h: b for b, hashes in blocks.hashes_of.items() for h in hashes} == blocks.block_of
        assert all(block in blocks.hashes_of for block in blocks.unused)
        assert all(step > blocks.completed for step in blocks.retiring.values())
        holding = [s for s in holdings.holders if s is not None]
        assert holdings.slots.available + len(holding) == self.slots
        alive = [s for s in self.scheduler.sequences.values() if s.slot < 0]
        assert len(waiting) == len(alive)
        assert sum(client.waiting for client in waiting.clients.values()) == len(alive)
        assert sum(client.running for client in waiting.clients.values()) == len(holding)
        assert (waiting.first() is None) == (not alive)

    def nothing_left(self) -> None:
        holdings = self.scheduler.holdings
        assert not self.open
        assert not self.scheduler.sequences
        assert not holdings.waiting.clients
        assert holdings.blocks is not None
        assert holdings.blocks.available == holdings.blocks.count
        assert holdings.slots.available == self.slots

    # --- a run --------------------------------------------------------------------------------------

    def run_steps(self, steps: int) -> None:
        rng = self.rng
        while self.steps < steps:
            if len(self.open) < 40 and rng.random() < self.arrivals:
                self.ask(rng.choice((1, 1, 1, 1, 1, 1, 4, 4, 14)))
            if self.open and rng.random() < self.changes:
                self.change_mind()
            if self.outstanding:
                self.finish_step()
                self.check()
                if self.steps % EVERYTHING_EVERY == 0:
                    self.check_everything()
            else:
                assert not self.open, "requests wait, and nothing runs"
        while self.open or self.outstanding:
            assert self.outstanding, "requests wait, and nothing runs"
            self.finish_step()
            self.check()
        self.nothing_left()

    def change_mind(self) -> None:
        """An abort, said twice and of something unknown too; a stop text; now and then a new executor."""
        rng = self.rng
        kind = rng.random()
        request = rng.choice(list(self.open))
        if kind < 0.7:
            self.open[request].aborted = True
            self.give(Cancel([request, 10**9]))
            self.give(Cancel([request]))
        elif kind < 0.95:
            if not self.open[request].opened:
                return  # the detokenizer has not heard of it
            del self.open[request]
            self.give(Matched([request], [0]))
            self.give(Matched([request], [0]))
            self.ended["matched"] += 1
        else:
            self.restart()


def main() -> None:
    seed, steps = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 2000
    lab = Lab(seed)
    print(
        f"seed {seed}: depth {lab.depth}, {lab.slots} slots, {lab.blocks - 1} blocks of {lab.size} tokens,"
        f" {lab.budget} tokens in a step"
    )
    lab.run_steps(steps)
    print(f"{lab.steps} steps, {lab.asked} requests, ended: {dict(lab.ended)}")
    print({name: int(value) for name, value in lab.scheduler.counters.items()})


if __name__ == "__main__":
    main()
