"""The scheduler: continuous batching one step ahead of the device.

It may have ``depth`` plans outstanding. A plan is made from *positions*: where the next token of
each sequence will be, never which it is. So plan N+1 is sent while step N computes, and the results
of step N only append to the ledger, end sequences and free what no outstanding step uses.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...protocol.messages import (
    Cancel,
    Capacity,
    Enqueue,
    Finished,
    Join,
    Matched,
    Opened,
    PeerUp,
    Plan,
    Sampled,
    Tokens,
    first_number,
)
from ...runtime.actor import Actor
from .pool import BlockPool, Pool
from .sequence import Logprobs, Sequence, SlotTable

CONTEXT_TOKENS = 8
"""Prompt tokens that the detokenizer gets to continue the text of."""

MAX_JOINED_TOKENS = 1 << 20
"""A plan takes in no further sequence once those that join have so many tokens: it has to fit into a frame,
and those that find their beginning in the prefix cache cost no budget."""

COUNTERS_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    depth: int
    eos_token_ids: tuple[int, ...]
    prefix_caching: bool = True


class Scheduler(Actor):
    """Policy, KV blocks and the ledger of tokens."""

    name = "scheduler"
    blocking = True

    def __init__(self, config: SchedulerConfig) -> None:
        super().__init__()
        self.config = config
        self.eos = frozenset(config.eos_token_ids)
        self.handlers |= {
            Enqueue: self.on_enqueue,
            Cancel: self.on_cancel,
            Capacity: self.on_capacity,
            Sampled: self.on_sampled,
            Matched: self.on_matched,
        }
        self.sequences: dict[int, Sequence] = {}
        """Every request that has not ended, by number."""
        self.waiting: deque[Sequence] = deque()
        self.counters: dict[str, float] = dict.fromkeys(
            (
                "steps",
                "device_busy_s",
                "scheduled_rows",
                "wasted_rows",
                "prompt_tokens",
                "generation_tokens",
                "preemptions",
                "prefix_cache_queries",
                "prefix_cache_hits",
            ),
            0.0,
        )
        self.counters_due = 0.0
        self.step = 0
        """Number of the next step."""
        self.blocks: BlockPool | None = None
        """None until an executor has told its capacity."""
        self.opened: list[Opened] = []
        self.finished: list[Finished] = []
        self.reset_slots()

    def reset_slots(self) -> None:
        """Nothing is on the device."""
        config = self.config
        self.table = SlotTable(config.max_num_seqs, config.max_model_len)
        self.slots = Pool(config.max_num_seqs)
        self.slots.completed = self.step - 1
        self.holders: list[Sequence | None] = [None] * config.max_num_seqs
        self.prefilling: list[Sequence] = []
        """Hold a slot and have prompt left, in the order of admission."""
        self.leaves: list[int] = []
        """Slots that the next plan frees."""
        self.outstanding: deque[tuple[int, np.ndarray]] = deque()
        """Step and sampling rows of each plan whose result has not come, oldest first."""

    # --- requests come and go ---------------------------------------------------------------------

    def on_enqueue(self, message: Enqueue, now: float) -> None:
        known = self.sequences.get(message.request)
        if known is not None:
            self.again(known, message)
            return
        sequence = self.sequence_of(message)
        limit = self.longest()
        if limit is not None and sequence.target > limit:
            self.refuse(sequence, limit)
            return
        self.sequences[message.request] = sequence
        self.waiting.append(sequence)
        if sequence.delivered and self.is_over(sequence):
            self.flush(-1)
        self.plan_ahead(now)

    def is_over(self, sequence: Sequence) -> bool:
        """End a sequence that was sent again when all that it lacked was the news of its end."""
        last = int(sequence.tokens[-1])
        stopped = last in sequence.stop_tokens
        if stopped or len(sequence.tokens) >= sequence.target:
            self.open(sequence, 0)
            if stopped:
                self.finish(sequence, "stop", None if last in sequence.eos else last)
            else:
                self.finish(sequence, "length")
        return sequence.finished

    def sequence_of(self, message: Enqueue) -> Sequence:
        prompt = np.frombuffer(message.prompt, np.int32)
        delivered = np.frombuffer(message.delivered, np.int32)
        params = message.params
        limit = self.config.max_model_len
        target = limit if params.max_tokens is None else min(limit, len(prompt) + params.max_tokens)
        eos = frozenset() if params.ignore_eos else self.eos
        stop = np.array(sorted(eos | set(params.stop_token_ids)), np.int32)
        return Sequence(
            request=message.request,
            tokens=np.concatenate([prompt, delivered]),
            prompt_len=len(prompt),
            target=target,
            params=params,
            stop_tokens=stop,
            eos=eos,
            client=message.client,
            attempt=message.attempt,
            delivered=len(delivered),
        )

    def longest(self) -> int | None:
        """Most tokens that one sequence can have in the cache; None while no executor has told."""
        return None if self.blocks is None else (len(self.blocks.references) - 1) * self.blocks.block_size

    def refuse(self, sequence: Sequence, limit: int) -> None:
        message = (
            f"the prompt's {sequence.prompt_len} tokens and max_tokens up to {sequence.target - sequence.prompt_len}"
            f" need room for {sequence.target} tokens, and the KV cache holds {limit}:"
            " shorten the prompt or lower max_tokens"
        )
        self.finished.append(Finished(sequence.request, "invalid_request", None, message))
        self.flush(-1)

    def again(self, sequence: Sequence, message: Enqueue) -> None:
        """The gateway sends a known request again: say again what it does not have."""
        if message.attempt <= sequence.attempt:
            return
        sequence.attempt = message.attempt
        sequence.delivered = len(message.delivered) // 4
        if not sequence.opened:
            return
        self.open(sequence, 0)
        first = sequence.prompt_len + sequence.delivered
        missing = self.known_tokens(sequence)[first:]
        requests = np.full(len(missing), sequence.request, np.int64)
        self.flush(-1, requests, missing, logprobs=sequence.last_logprobs(len(missing)))

    def known_tokens(self, sequence: Sequence) -> np.ndarray:
        return self.table.known(sequence.slot) if sequence.slot >= 0 else sequence.tokens

    def on_cancel(self, message: Cancel, now: float) -> None:
        for request in message.requests:
            sequence = self.sequences.get(request)
            if sequence is not None:
                self.finish(sequence, "abort")
        self.flush(-1)
        self.plan_ahead(now)

    def on_matched(self, message: Matched, now: float) -> None:
        for request in message.requests:
            sequence = self.sequences.get(request)
            if sequence is not None:
                self.end(sequence)
        self.plan_ahead(now)

    def finish(self, sequence: Sequence, reason: str, stop_reason: int | None = None) -> None:
        self.finished.append(Finished(sequence.request, reason, stop_reason))
        self.end(sequence)

    def end(self, sequence: Sequence) -> None:
        """The sequence needs nothing more; idempotent."""
        if sequence.finished:
            return
        sequence.finished = True
        del self.sequences[sequence.request]
        if sequence.slot < 0:
            self.waiting.remove(sequence)
            return
        self.table.accepting[sequence.slot] = False
        if not sequence.left:
            self.leave(sequence)

    def leave(self, sequence: Sequence) -> None:
        """The next plan frees the slot; slot and blocks are reused when the last step is over."""
        assert self.blocks is not None
        slot = sequence.slot
        if self.table.decoding[slot]:
            self.table.decoding[slot] = False
            sequence.last_step = self.step - 1  # a decoding sequence runs in every step
        else:
            self.prefilling.remove(sequence)
        sequence.left = True
        self.leaves.append(slot)
        self.publish(sequence)
        self.blocks.release(sequence.blocks, sequence.last_step)
        sequence.blocks = []
        self.slots.retire(slot, sequence.last_step)
        if sequence.last_step <= self.slots.completed:
            self.vacate(slot)

    def vacate(self, slot: int) -> None:
        """No step uses the slot any more; a preempted sequence waits again, before all that came later."""
        sequence = self.holders[slot]
        assert sequence is not None
        self.holders[slot] = None
        if not sequence.preempted or sequence.finished:
            return
        sequence.tokens = self.table.known(slot).copy()
        sequence.slot, sequence.left, sequence.preempted = -1, False, False
        place = sum(1 for other in self.waiting if other.request < sequence.request)
        self.waiting.insert(place, sequence)

    def publish(self, sequence: Sequence) -> None:
        """Let the full blocks of the sequence be found by others."""
        blocks = self.blocks
        assert blocks is not None
        if not blocks.caching:
            return
        computed = min(int(self.table.computed[sequence.slot]), int(self.table.length[sequence.slot]))
        full = computed // blocks.block_size
        if full <= sequence.published:
            return
        blocks.hashes(self.table.known(sequence.slot)[: full * blocks.block_size].data, sequence.hashes)
        for index in range(sequence.published, full):
            blocks.publish(sequence.blocks[index], sequence.hashes[index])
        sequence.published = full

    # --- plans ------------------------------------------------------------------------------------

    def plan_ahead(self, now: float) -> None:
        """Send plans until ``depth`` are outstanding or there is nothing to run."""
        while self.blocks is not None and len(self.outstanding) < self.config.depth:
            plan = self.next_plan(self.blocks)
            if plan is None:
                return
            self.send("executor", plan)

    def next_plan(self, blocks: BlockPool) -> Plan | None:
        """One step: every decoding sequence, then prompts in chunks while the budget lasts."""
        table, step = self.table, self.step
        appended: list[tuple[int, int]] = []
        if not self.make_room(blocks, appended):
            return None
        rows = np.flatnonzero(table.decoding)
        budget = self.config.max_num_batched_tokens - len(rows)
        chunks: list[tuple[int, int]] = []
        for sequence in self.prefilling:
            budget -= self.chunk(sequence, budget, chunks)
        joins: list[Join] = []
        joined = 0
        while self.waiting and budget > 0 and self.slots.available and joined < MAX_JOINED_TOKENS:
            sequence = self.waiting[0]
            if not self.admit(sequence, blocks, appended, joins):
                break
            joined += len(sequence.tokens)
            budget -= self.chunk(sequence, budget, chunks)
        if not len(rows) and not chunks:
            return None

        table.computed[rows] += 1
        table.planned[rows] += 1
        for slot, tokens in chunks:
            table.computed[slot] += tokens
            sequence = self.holders[slot]
            assert sequence is not None
            sequence.last_step = step
            if table.computed[slot] == table.length[slot]:
                self.prefilling.remove(sequence)
                table.planned[slot] += 1
                table.decoding[slot] = True
                rows = np.append(rows, slot)
            self.publish(sequence)
        rows.sort()
        plan = Plan(
            step,
            leaves=np.array(self.leaves, np.int32).tobytes(),
            joins=joins,
            blocks=np.array(appended, np.int32).tobytes(),
            chunks=np.array(chunks, np.int32).tobytes(),
        )
        self.leaves = []
        self.outstanding.append((step, rows))
        self.step = step + 1
        # An end by length is known now: the sequence leaves with the next plan, no step is wasted on it.
        for slot in rows[table.planned[rows] >= table.target[rows]]:
            sequence = self.holders[slot]
            assert sequence is not None
            self.leave(sequence)
        return plan

    def make_room(self, blocks: BlockPool, appended: list[tuple[int, int]]) -> bool:
        """A block for every decoding sequence whose next position needs one; the newest give way.

        False: what they gave is still in use by an outstanding step, so this plan has to wait for it.
        """
        table = self.table
        while True:
            short = np.flatnonzero(table.decoding & (table.computed >= table.room))
            if len(short) <= blocks.available + len(blocks.retiring):
                break
            self.preempt(self.newest())
        if len(short) > blocks.available:
            return False
        for slot in short.tolist():
            sequence = self.holders[slot]
            assert sequence is not None
            block = blocks.take()
            sequence.blocks.append(block)
            appended.append((slot, block))
            table.room[slot] += blocks.block_size
        return True

    def newest(self) -> Sequence:
        """The running sequence that came last: it has the least to lose, and the oldest always proceeds."""
        return max((s for s in self.holders if s is not None and not s.left), key=lambda s: s.request)

    def preempt(self, sequence: Sequence) -> None:
        """Give up slot and blocks; prompt and tokens are computed again later."""
        self.counters["preemptions"] += 1
        sequence.preempted = True
        self.leave(sequence)

    def chunk(self, sequence: Sequence, budget: int, chunks: list[tuple[int, int]]) -> int:
        slot = sequence.slot
        tokens = min(budget, int(self.table.length[slot] - self.table.computed[slot]))
        if tokens > 0:
            chunks.append((slot, tokens))
        return max(tokens, 0)

    def admit(
        self, sequence: Sequence, blocks: BlockPool, appended: list[tuple[int, int]], joins: list[Join]
    ) -> bool:
        """Give the first waiting sequence a slot and blocks for all its known tokens, or leave it waiting."""
        size, length = blocks.block_size, len(sequence.tokens)
        cached: list[int] = []
        if blocks.caching:
            blocks.hashes(sequence.tokens.data, sequence.hashes)
            cached = blocks.find(sequence.hashes[: (length - 1) // size])
        blocks.hold(cached)
        needed = -(-length // size) - len(cached)
        if blocks.available < needed:
            blocks.release(cached, blocks.completed)
            return False
        self.waiting.popleft()
        sequence.slot = slot = self.slots.take()
        self.holders[slot] = sequence
        sequence.blocks = cached + [blocks.take() for _ in range(needed)]
        sequence.published = len(cached)
        start = len(cached) * size
        self.table.enter(sequence, start, len(sequence.blocks) * size)
        appended.extend((slot, block) for block in sequence.blocks)
        joins.append(sequence.join(start))
        self.mark("planned", sequence.request)
        self.prefilling.append(sequence)
        self.counters["prefix_cache_queries"] += length
        self.counters["prefix_cache_hits"] += start
        if not sequence.opened:
            self.counters["prompt_tokens"] += sequence.prompt_len
            self.open(sequence, start)
        return True

    def open(self, sequence: Sequence, cached: int) -> None:
        """Tell the detokenizer of the sequence, with the last tokens that its text continues."""
        sequence.opened = True
        first = max(0, sequence.prompt_len - CONTEXT_TOKENS)
        known = sequence.prompt_len + sequence.delivered
        self.opened.append(
            Opened(
                sequence.request,
                self.known_tokens(sequence)[first:known].tobytes(),
                sequence.delivered,
                sequence.params.stop_strings,
                cached,
                sequence.prompt_len,
                sequence.attempt,
            )
        )

    # --- results ----------------------------------------------------------------------------------

    def on_sampled(self, message: Sampled, now: float) -> None:
        """Tokens of the oldest outstanding step. A ghost token, of a sequence that has ended, goes no further."""
        step, rows = self.outstanding.popleft()
        if step != message.step:
            raise RuntimeError(f"the executor answered step {message.step}; step {step} is the oldest outstanding")
        table = self.table
        tokens = np.frombuffer(message.tokens, np.int32)
        alive = table.accepting[rows]
        logprobs = None
        if message.logprobs:
            logprobs = Logprobs.read(message.logprob_tokens, message.logprobs, len(rows)).take(alive)
        counters = self.counters
        counters["steps"] += 1
        counters["device_busy_s"] += (message.ended_ns - message.started_ns) * 1e-9
        counters["scheduled_rows"] += len(rows)
        if (tokens[alive] < 0).any():
            raise RuntimeError(f"step {step} has no token for a sequence that has not ended")
        if not alive.all():
            counters["wasted_rows"] += len(rows) - int(alive.sum())
            rows, tokens = rows[alive], tokens[alive]
        counters["generation_tokens"] += len(rows)
        table.tokens[rows, table.length[rows]] = tokens
        table.length[rows] += 1
        if logprobs is not None:
            logprobs = self.keep_logprobs(rows, logprobs)
        stopped = (table.stop[rows] == tokens[:, None]).any(axis=1)
        requests = table.request[rows]
        for row in np.flatnonzero(stopped | (table.length[rows] >= table.target[rows])):
            sequence = self.holders[rows[row]]
            assert sequence is not None
            if stopped[row]:
                token = int(tokens[row])
                self.finish(sequence, "stop", None if token in sequence.eos else token)
            else:
                self.finish(sequence, "length")
        self.complete(step)
        self.plan_ahead(now)
        self.flush(step, requests, tokens, now, logprobs)

    def keep_logprobs(self, rows: np.ndarray, logprobs: Logprobs) -> Logprobs | None:
        """Logprobs are part of the ledger where a request asks for them; None if no row's does."""
        wanting = np.flatnonzero(self.table.logprobs[rows] >= 0)
        for row in wanting.tolist():
            sequence = self.holders[rows[row]]
            assert sequence is not None
            sequence.keep_logprobs(logprobs.take(np.array([row])))
        return logprobs if len(wanting) else None

    def complete(self, step: int) -> None:
        """Nothing on the device uses what was last used in this step."""
        over = [slot for slot, last in self.slots.retiring.items() if last == step]
        assert self.blocks is not None
        self.slots.complete(step)
        self.blocks.complete(step)
        for slot in over:
            self.vacate(slot)

    def flush(
        self,
        step: int,
        requests: np.ndarray | None = None,
        tokens: np.ndarray | None = None,
        now: float = 0.0,
        logprobs: Logprobs | None = None,
    ) -> None:
        """One message to the detokenizer with everything that is new."""
        counters: dict[str, float] = {}
        if (now >= self.counters_due and now) or not self.outstanding:
            self.counters_due = now + COUNTERS_EVERY_S
            counters = self.gauges() | self.counters
        if requests is None or tokens is None:
            requests, tokens = np.empty(0, np.int64), np.empty(0, np.int32)
        if len(requests) or self.opened or self.finished or counters:
            message = Tokens(
                step, self.opened, requests.tobytes(), tokens.tobytes(), self.finished, counters
            )
            if logprobs is not None:
                message.logprob_tokens = logprobs.tokens.tobytes()
                message.logprobs = logprobs.values.tobytes()
            self.send("detokenizer", message)
            self.opened, self.finished = [], []

    def gauges(self) -> dict[str, float]:
        blocks = self.blocks
        usage = 0.0 if blocks is None else 1.0 - blocks.available / (len(blocks.references) - 1)
        return {
            "num_requests_running": float(sum(1 for s in self.holders if s is not None and not s.finished)),
            "num_requests_waiting": float(len(self.waiting)),
            "kv_cache_usage_perc": usage,
        }

    # --- peers ------------------------------------------------------------------------------------

    def on_peer_up(self, peer: PeerUp, now: float) -> None:
        """A new executor holds nothing; a new gateway names requests anew, so the old ones end."""
        if peer.name == "executor":
            self.void_device()
        if peer.name == "gateway":
            for sequence in list(self.sequences.values()):
                if sequence.request < first_number(peer.epoch):
                    self.end(sequence)

    def void_device(self) -> None:
        """Whatever was on the device is gone: every sequence will be prefilled from prompt and tokens."""
        self.blocks = None
        running = [s for s in self.holders if s is not None and not s.finished]
        for sequence in running:
            sequence.tokens = self.table.known(sequence.slot).copy()
            sequence.slot, sequence.blocks, sequence.published = -1, [], 0
            sequence.left, sequence.preempted = False, False
        self.waiting = deque(sorted([*self.waiting, *running], key=lambda s: s.request))
        self.reset_slots()

    def on_capacity(self, message: Capacity, now: float) -> None:
        """The executor is loaded, and this is its cache."""
        self.blocks = BlockPool(message.num_blocks, message.block_size, caching=self.config.prefix_caching)
        self.blocks.completed = self.step - 1
        limit = self.longest()
        assert limit is not None
        for sequence in [s for s in self.waiting if s.target > limit]:
            self.end(sequence)
            self.refuse(sequence, limit)
        self.plan_ahead(now)


def build(context: Any) -> Scheduler:
    """The scheduler of a service, from its options."""
    options = context.options
    return Scheduler(
        SchedulerConfig(
            max_num_seqs=options["max_num_seqs"],
            max_num_batched_tokens=options["max_num_batched_tokens"],
            max_model_len=options["max_model_len"],
            depth=options["pipeline_depth"],
            eos_token_ids=tuple(options["eos_token_ids"]),
            prefix_caching=options["enable_prefix_caching"],
        )
    )
