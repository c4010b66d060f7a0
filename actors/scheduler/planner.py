"""The planner: which sequence runs how many tokens in the next step, and which blocks hold its cache.

A step runs every decoding sequence, then prompts in chunks: of those that hold a slot in the order of
their admission, then of those that wait, while slots, blocks and the budget of tokens last. Beside
sequences that decode, the prefill budget is so small that they do not stall; but answers that have begun and are
computed again go first, in full steps.

Two things make room. When the cache is full, the last of those that run, by priority and age, gives way, so that the
first always proceeds and there is no deadlock. And a client that has nothing running need not wait for
an end: after some steps the client that holds most slots gives one up for it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from ...protocol.internal import Capacity, Plan
from ...protocol.limits import MAX_JOINED_TOKENS
from .plan_builder import OutstandingStep, PlanBuilder
from .pool import BlockList, BlockPool, Pool
from .prefill_budget import PrefillBudget
from .prefix import publish, share_beginning
from .quarantine import Quarantine
from .sequence import Sequence
from .slot_table import SlotTable
from .waiting import WaitingQueue

STEPS_BEFORE_PREEMPTION = 8
"""Steps that a client with nothing running waits for an end before another gives way: most batches have an end within
fewer, and what gives way is computed again, which costs more than the wait."""

CHARGE_STEPS = 16
"""Steps between two charges of what running sequences had to their clients: sixteen tokens each are no unfairness that
is felt, and a charge walks through all of them."""


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    max_num_seqs: int
    max_num_batched_tokens: int | None
    """None: what the executor says."""
    max_model_len: int
    depth: int
    eos_token_ids: tuple[int, ...]
    prefix_caching: bool = True


class Planner:
    """Makes plans; owns the slots, the blocks, and the queue of sequences that wait for them."""

    def __init__(self, config: SchedulerConfig, counters: dict[str, float]) -> None:
        self.config = config
        self.counters = counters
        self.step = 0
        """Number of the next step."""
        self.waiting = WaitingQueue()
        self.prefill_budget = PrefillBudget()
        self.sizes: tuple[int, ...] = ()
        """As ``Capacity.sizes``."""
        self.quarantine = Quarantine()
        self.blocks: BlockPool | None = None
        """None until an executor has sent its capacity."""
        self.max_batched_tokens = 0
        """Most tokens of a step."""
        self.admitted: list[tuple[Sequence, int]] = []
        """Sequences that were given a slot since someone looked, and their cached tokens."""
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

    def begin(self, capacity: Capacity) -> None:
        """An executor is there, and this is what it can hold and run."""
        tokens = self.config.max_num_batched_tokens or capacity.max_num_batched_tokens
        if tokens is None:
            raise RuntimeError("neither the options nor the executor say how many tokens a step may have")
        self.max_batched_tokens = tokens
        self.prefill_budget.begin(capacity.steps)
        self.sizes = tuple(capacity.sizes)
        caching = self.config.prefix_caching and capacity.prefix_caching
        self.blocks = BlockPool(capacity.num_blocks, capacity.block_size, caching=caching)
        self.blocks.completed = self.step - 1

    def take_admitted(self) -> list[tuple[Sequence, int]]:
        admitted, self.admitted = self.admitted, []
        return admitted

    @property
    def longest(self) -> int | None:
        """Most tokens that one sequence can have in the cache; None while no executor has sent its capacity."""
        return None if self.blocks is None else self.blocks.count * self.blocks.block_size

    def known(self, sequence: Sequence) -> np.ndarray:
        """The tokens of a sequence as they are known now."""
        return self.table.known(sequence.slot) if sequence.slot >= 0 else sequence.tokens

    def holder(self, slot: int) -> Sequence:
        sequence = self.holders[slot]
        assert sequence is not None
        return sequence

    # --- the next plan ----------------------------------------------------------------------------

    def plan(self) -> tuple[Plan, OutstandingStep] | None:
        """The next step; None if there is nothing to run."""
        table, step = self.table, self.step
        assert self.blocks is not None
        builder = PlanBuilder(self.max_batched_tokens, sizes=self.sizes)
        if not self.reserve_blocks(self.blocks, builder):
            return None
        rows = table.decoding.nonzero()[0]
        decoding = builder.tokens = len(rows)
        builder.budget -= decoding
        if decoding and (self.prefilling or self.waiting) and not self.answers_stand_still():
            prompts = len(self.prefilling) + min(len(self.waiting), self.slots.available)
            left, limits = builder.budget, self.prefill_budget
            builder.budget, builder.budget_at_end = limits.limit(left, prompts), limits.limit_at_end(left)
        table.computed[rows] += 1
        table.planned[rows] += 1
        for sequence in self.prefilling:
            self.chunk(sequence, builder)
        blocked = self.admit_waiting(self.blocks, builder) if self.waiting or self.quarantine.active else None
        if not len(rows) and not builder.chunks:
            return None
        if builder.chunks:
            rows = self.start_decoding(rows)
        plan = builder.plan(step, self.leaves)
        self.leaves = []
        self.step = step + 1
        # An end by length is known now: the sequence leaves with the next plan, no step is wasted on it.
        for slot in rows[table.planned[rows] >= table.target[rows]].tolist():
            self.leave(self.holder(slot))
        self.end_trial_ahead()
        if blocked is not None:
            self.preempt_for_fairness(blocked, self.blocks)
        prefill, generations = builder.tokens - decoding, table.generation[rows].tobytes()
        self.counters["prefill_tokens"] += prefill
        expected_s = self.prefill_budget.expected_ns(prefill) * 1e-9
        return plan, OutstandingStep(step, rows, generations, prefill, expected_s, builder.prompt_logprobs)

    def answers_stand_still(self) -> bool:
        """Whether a sequence that has begun its answer is being computed again, or is next and has room.

        It was preempted, or lost with an executor. Its own gap is the longest then, and full steps end it soonest.
        """
        if any(sequence.has_begun for sequence in self.prefilling):
            return True
        first, blocks = self.waiting.first(), self.blocks
        if first is None or blocks is None or not first.has_begun or not self.slots.available:
            return False
        return blocks.available * blocks.block_size >= len(first.tokens)

    def reserve_blocks(self, blocks: BlockPool, builder: PlanBuilder) -> bool:
        """A block for every decoding sequence whose next position needs one; the last in order give way.

        False: what they gave is still in use by an outstanding step, so this plan has to wait for it.
        """
        table = self.table
        while True:
            short = (table.decoding & (table.computed >= table.room)).nonzero()[0]
            if len(short) <= blocks.available + len(blocks.retiring):
                break
            last = self.last_in_order()
            last.resumes = True
            self.preempt(last)
        if len(short) > blocks.available:
            return False
        if len(short):
            for slot in short.tolist():
                builder.blocks += (slot, *blocks.grow(self.holder(slot).block_list, 1))
            table.room[short] += blocks.block_size
        return True

    def chunk(self, sequence: Sequence, builder: PlanBuilder) -> None:
        """As much of the sequence's prompt as the budget takes."""
        slot, table = sequence.slot, self.table
        start = int(table.computed[slot])
        tokens = builder.take(sequence, start, int(table.length[slot]) - start)
        if tokens > 0:
            reported = min(start + tokens, sequence.prompt_len - 1) - start
            if sequence.needs_prompt_logprobs and reported > 0:
                builder.prompt_logprobs.append((sequence, reported))
            builder.chunks += (slot, tokens)
            table.computed[slot] += tokens
            sequence.last_step = self.step
            self.publish(sequence)

    def start_decoding(self, rows: np.ndarray) -> np.ndarray:
        """Those whose prompt ends with this step sample in it, and decode from the next; all rows that sample."""
        table = self.table
        ended = [s for s in self.prefilling if table.computed[s.slot] == table.length[s.slot]]
        if not ended:
            return rows
        self.prefilling = [s for s in self.prefilling if table.computed[s.slot] < table.length[s.slot]]
        slots = [sequence.slot for sequence in ended]
        table.planned[slots] += 1
        table.decoding[slots] = True
        return np.sort(np.append(rows, slots))

    # --- admission --------------------------------------------------------------------------------

    def admit_waiting(self, blocks: BlockPool, builder: PlanBuilder) -> Sequence | None:
        """Slots and blocks for those that are next, as far as they go; the one that they did not suffice for."""
        if self.step % CHARGE_STEPS == 0:
            self.charge_all()
        joined = 0
        while joined < MAX_JOINED_TOKENS:
            sequence = self.next_in_line()
            if sequence is None or (self.slots.available and builder.budget <= 0):
                return None
            if not self.slots.available or not self.admit(sequence, blocks, builder):
                return None if self.quarantine.active else sequence
            joined += len(sequence.tokens)
        return None

    def next_in_line(self) -> Sequence | None:
        if self.quarantine.active:
            return self.quarantine.next(device_is_empty=not any(self.holders))
        return self.waiting.first()

    def admit(self, sequence: Sequence, blocks: BlockPool, builder: PlanBuilder) -> bool:
        """Give the sequence that is next a slot and blocks for all its known tokens, or leave it waiting."""
        size, length = blocks.block_size, len(sequence.tokens)
        block_list, copied = BlockList(), BlockList()
        if sequence.needs_prompt_logprobs:
            sequence.forget_prompt_logprobs()  # what is cached has no logits: all is computed, perhaps once more
        elif blocks.caching:
            share_beginning(blocks, sequence, block_list, copied, self.step)
        shared = len(block_list)
        needed = -(-length // size) - shared
        if blocks.available < needed:
            blocks.release(copied, blocks.completed)
        if blocks.available < needed:
            blocks.release(block_list, blocks.completed)
            return False
        if self.quarantine.take(sequence):
            self.waiting.enter(sequence)
        else:
            self.waiting.pop()
        sequence.slot = slot = self.slots.take()
        self.holders[slot] = sequence
        sequence.block_list, sequence.published, sequence.resumes = block_list, shared, False
        blocks.grow(block_list, needed)
        start = shared * size
        if copied:
            start = length - 1
            builder.copies += (copied.blocks[0], block_list.blocks[shared])
            blocks.release(copied, self.step)
            self.counters["num_block_copies"] += 1
        self.table.enter(sequence, self.slots.generation[slot], start, len(block_list) * size)
        for block in block_list.blocks:
            builder.blocks += (slot, block)
        builder.joins.append(sequence.join(start))
        self.prefilling.append(sequence)
        self.waiting.charge(sequence, length - start)
        self.chunk(sequence, builder)
        self.counters["prefix_cache_queries"] += length
        self.counters["prefix_cache_hits"] += start
        self.admitted.append((sequence, start))
        return True

    def publish(self, sequence: Sequence) -> None:
        """Let what is computed of the sequence be found by others."""
        assert self.blocks is not None
        slot, table = sequence.slot, self.table
        computed = min(int(table.computed[slot]), int(table.length[slot]))
        publish(self.blocks, sequence, table.known(slot), computed, sequence.last_step)

    # --- making room ------------------------------------------------------------------------------

    def preempt_for_fairness(self, sequence: Sequence, blocks: BlockPool) -> None:
        """If its client has nothing running, the client that holds most slots gives up one for it."""
        waited = self.step - sequence.waits_since
        if not waited or waited % STEPS_BEFORE_PREEMPTION or self.waiting.client_of(sequence).running:
            return
        if self.slots.retiring or blocks.retiring:
            return  # something ends by itself
        running = [
            s for s in self.holders if s and not s.left and s.params.priority <= sequence.params.priority
        ]
        client, most = max(
            Counter(s.client for s in running).items(), key=lambda item: item[1], default=(0, 0)
        )
        if most > 1:
            self.counters["num_preemptions_for_fairness"] += 1
            self.preempt(max((s for s in running if s.client == client), key=Sequence.order))

    def last_in_order(self) -> Sequence:
        """The newest running sequence of the lowest priority: it has the least to lose."""
        return max((s for s in self.holders if s is not None and not s.left), key=Sequence.order)

    def preempt(self, sequence: Sequence) -> None:
        """Give up slot and blocks; prompt and tokens are computed again later."""
        self.counters["num_preemptions"] += 1
        sequence.preempted = True
        self.leave(sequence)

    # --- the end ----------------------------------------------------------------------------------

    def drop(self, sequence: Sequence) -> None:
        """The sequence has ended, wherever it stands."""
        if sequence.slot < 0:
            if not self.quarantine.drop(sequence):
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
        self.blocks.release(sequence.block_list, sequence.last_step)
        self.slots.retire(slot, sequence.last_step)
        if sequence.last_step <= self.slots.completed:
            self.vacate(slot)

    def complete(self, step: int) -> None:
        """Nothing on the device uses what was last used in this step."""
        assert self.blocks is not None
        self.blocks.complete(step)
        for slot in self.slots.complete(step):
            self.vacate(slot)

    def vacate(self, slot: int) -> None:
        """No step uses the slot any more; a preempted sequence waits again, in its old place."""
        sequence = self.holder(slot)
        self.holders[slot] = None
        self.charge(sequence)
        if sequence.preempted and not sequence.finished:
            self.requeue(sequence)
        self.waiting.left(sequence)

    def requeue(self, sequence: Sequence) -> None:
        self.forget_device(sequence)
        self.enqueue(sequence)

    def forget_device(self, sequence: Sequence) -> None:
        """It holds nothing there any more but its tokens, which are kept."""
        sequence.tokens = self.table.known(sequence.slot).copy()
        sequence.block_list, sequence.slot, sequence.published = BlockList(), -1, 0
        sequence.left, sequence.preempted = False, False

    def enqueue(self, sequence: Sequence) -> None:
        """Into the queue."""
        sequence.waits_since = self.step
        self.waiting.push(sequence)

    def invalidate_device_state(self, computing: bool) -> None:
        """Whatever was on the device is gone: every sequence will be prefilled from prompt and tokens.

        ``computing``: a step was under way, and what it computed may be why the device is gone.
        """
        if self.blocks is not None:
            self.counters["prefix_cache_evictions"] += self.blocks.evictions
        self.blocks = None
        self.quarantine.await_report()
        for sequence in self.holders:
            if sequence is not None:
                self.invalidate_sequence(sequence, computing)
                self.waiting.left(sequence)
        self.reset_slots()

    def invalidate_sequence(self, sequence: Sequence, computing: bool) -> None:
        if sequence.finished:
            return
        slot, table = sequence.slot, self.table
        if computing or sequence is self.quarantine.probation:
            self.quarantine.suspend(sequence, int(max(table.planned[slot], table.length[slot] + 1)))
            self.forget_device(sequence)
        else:
            self.requeue(sequence)

    def resolve_crash(self, crashed: bool) -> list[Sequence]:
        """Take in how the last executor ended: the sequences that it held wait again, or are returned to be
        quarantined."""
        cleared, quarantined = self.quarantine.resolve_crash(crashed)
        for sequence in cleared:
            self.enqueue(sequence)
        return quarantined

    def end_trial_ahead(self) -> None:
        """The step that clears a suspect is planned: it makes way with the next plan, which is the next one's first.

        It stays on probation until that step has ended.
        """
        probation = self.quarantine.probation
        if probation is None or not self.quarantine.suspects or probation.left:
            return
        if self.table.planned[probation.slot] >= probation.cleared_at:
            self.preempt_for_trial(probation)

    def preempt_for_trial(self, probation: Sequence) -> None:
        """Its tokens are computed again when all suspects were tried."""
        probation.preempted = True
        self.leave(probation)

    def end_probation(self) -> None:
        """A suspect that is past the point where the executor died makes way for the next one, if there is one."""
        probation = self.quarantine.probation
        if probation is None:
            return
        length = int(self.table.length[probation.slot]) if probation.slot >= 0 else 0
        passed = self.quarantine.passed(length)
        if passed is not None and self.quarantine.active and not passed.left:
            self.preempt_for_trial(passed)

    # --- accounts ---------------------------------------------------------------------------------

    def charge(self, sequence: Sequence) -> None:
        """Charge what the sequence has generated to its client."""
        slot, table = sequence.slot, self.table
        self.waiting.charge(sequence, int(table.length[slot] - table.charged[slot]))
        table.charged[slot] = table.length[slot]

    def charge_all(self) -> None:
        table = self.table
        tokens = table.length - table.charged
        table.charged[:] = table.length
        for slot in tokens.nonzero()[0].tolist():
            self.waiting.charge(self.holder(slot), int(tokens[slot]))
