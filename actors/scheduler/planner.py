"""The planner: which sequence runs how many tokens in the next step.

A step runs every decoding sequence, and then prompts in chunks: first those of sequences that hold a slot, in the order
of their admission, then those of sequences that wait, while slots, blocks and the budget of tokens last. While
sequences decode, the prefill budget limits the prompt tokens of a step, so that they do not stall. The exception is an
answer that has begun and is computed again: for it, steps are filled.

Room is made in two ways. When the cache is full, the last running sequence by priority and age is preempted; so the
first one always proceeds, and there is no deadlock. And a client that has nothing running need not wait until a
sequence ends: after some steps, the client that holds most slots gives up one for it.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from ...protocol.internal import Capacity, Plan
from ...protocol.limits import MAX_JOINED_TOKENS
from .blocks import BlockList, BlockPool
from .config import SchedulerConfig
from .executor_deaths import ExecutorDeaths
from .holdings import Holdings
from .plan_builder import OutstandingStep, PlanBuilder
from .prefill_budget import PrefillBudget
from .prefix import share_prefix
from .sequence import Sequence

STEPS_BEFORE_PREEMPTION = 8
"""Steps that a client with nothing running waits for a sequence to end before one is preempted for it. In most batches
one ends sooner, and a preempted sequence is computed again, which costs more than the wait."""

CHARGE_STEPS = 16
"""Steps after which clients are charged for the tokens of their running sequences. Nobody notices an unfairness of
sixteen tokens, and a charge has to go through all sequences."""


class Planner:
    """Makes plans; ``holdings`` knows what sequences hold and which of them wait, ``deaths`` which one runs alone."""

    def __init__(
        self, config: SchedulerConfig, holdings: Holdings, deaths: ExecutorDeaths, counters: dict[str, float]
    ) -> None:
        self.config = config
        self.holdings = holdings
        self.deaths = deaths
        self.counters = counters
        self.prefill_budget = PrefillBudget()
        self.step_sizes: tuple[int, ...] = ()
        """As ``Capacity.step_sizes``."""
        self.max_batched_tokens = 0
        """Most tokens of a step."""
        self.admitted: list[tuple[Sequence, int]] = []
        """Sequences that were given a slot since the last call of ``take_admitted``, and how many of their tokens were
        cached."""

    def begin(self, capacity: Capacity) -> None:
        """Begin with a new executor; ``capacity`` is what it can hold and run."""
        tokens = self.config.max_num_batched_tokens or capacity.max_num_batched_tokens
        if tokens is None:
            raise RuntimeError("neither the options nor the executor say how many tokens a step may have")
        self.max_batched_tokens = tokens
        self.prefill_budget.begin(capacity.step_times)
        self.step_sizes = tuple(capacity.step_sizes)
        caching = self.config.prefix_caching and capacity.prefix_caching
        self.holdings.begin(BlockPool(capacity.num_blocks, capacity.block_size, caching=caching))

    def take_admitted(self) -> list[tuple[Sequence, int]]:
        admitted, self.admitted = self.admitted, []
        return admitted

    # --- the next plan ----------------------------------------------------------------------------

    def plan(self) -> tuple[Plan, OutstandingStep] | None:
        """The plan of the next step; None if there is nothing to run."""
        holdings = self.holdings
        table, step, blocks = holdings.table, holdings.step, holdings.blocks
        assert blocks is not None
        builder = PlanBuilder(self.max_batched_tokens, step_sizes=self.step_sizes)
        if not self.reserve_blocks(blocks, builder):
            return None
        slots = table.decoding.nonzero()[0]
        decoding = builder.tokens = len(slots)
        builder.budget -= decoding
        if decoding and (holdings.prefilling or holdings.waiting) and not self.answers_stand_still(blocks):
            builder.budget = self.prefill_budget.limit(builder.budget, self.prompts(blocks), decoding)
        table.computed[slots] += 1
        table.planned[slots] += 1
        for sequence in holdings.prefilling:
            self.chunk(sequence, builder)
        blocked = (
            self.admit_waiting(blocks, builder) if holdings.waiting or holdings.quarantine.active else None
        )
        if not len(slots) and not builder.chunks:
            return None
        if builder.chunks:
            slots = self.start_decoding(slots)
        plan = builder.plan(step, holdings.leaves)
        holdings.leaves = []
        holdings.step = step + 1
        # An end by length is known now: the sequence leaves with the next plan, no step is wasted on it.
        for slot in slots[table.planned[slots] >= table.max_length[slots]].tolist():
            holdings.leave(holdings.holder(slot))
        self.deaths.end_probation_ahead()
        if blocked is not None:
            self.preempt_for_fairness(blocked, blocks)
        prefill, generations = builder.tokens - decoding, table.generation[slots].tobytes()
        self.counters["prefill_tokens"] += prefill
        expected_s = self.prefill_budget.expected_ns(prefill) * 1e-9
        return plan, OutstandingStep(step, slots, generations, prefill, expected_s, builder.prompt_logprobs)

    def prompts(self, blocks: BlockPool) -> int:
        """The number of prompts under way, plus that of waiting ones that would fit into the free slots and, if each
        were as long as the first, into the free blocks."""
        holdings = self.holdings
        first = holdings.waiting.first()
        if first is None:
            return len(holdings.prefilling)
        fitting = blocks.available * blocks.block_size // max(1, len(first.tokens))
        return len(holdings.prefilling) + min(len(holdings.waiting), holdings.slots.available, fitting)

    def answers_stand_still(self, blocks: BlockPool) -> bool:
        """Whether a sequence that has begun its answer is being computed again, or is next and has room.

        Such a sequence was preempted, or lost with an executor. Its stream has the longest gap of all, and full steps
        end that gap soonest.
        """
        holdings = self.holdings
        if any(sequence.has_begun for sequence in holdings.prefilling):
            return True
        first = holdings.waiting.first()
        if first is None or not first.has_begun or not holdings.slots.available:
            return False
        return blocks.available * blocks.block_size >= len(first.tokens)

    def reserve_blocks(self, blocks: BlockPool, builder: PlanBuilder) -> bool:
        """Give a block to every decoding sequence whose next position needs one; if there are too few, preempt the last
        sequences in order.

        Returns False if the blocks that these gave up are still used by an outstanding step: the plan has to wait.
        """
        holdings, table = self.holdings, self.holdings.table
        while True:
            short = (table.decoding & (table.computed >= table.room)).nonzero()[0]
            if len(short) <= blocks.available + len(blocks.retiring):
                break
            last = self.last_in_order()
            last.resumes = True
            holdings.preempt(last)
        if len(short) > blocks.available:
            return False
        if len(short):
            for slot in short.tolist():
                builder.blocks += (slot, *blocks.grow(holdings.holder(slot).block_list, 1))
            table.room[short] += blocks.block_size
        return True

    def chunk(self, sequence: Sequence, builder: PlanBuilder) -> None:
        """Run as much of the sequence's prompt as the budget allows."""
        slot, table = sequence.slot, self.holdings.table
        start = int(table.computed[slot])
        tokens = builder.take(sequence, start, int(table.length[slot]) - start)
        if tokens > 0:
            reported = min(start + tokens, sequence.prompt_len - 1) - start
            if sequence.needs_prompt_logprobs and reported > 0:
                builder.prompt_logprobs.append((sequence, reported))
            builder.chunks += (slot, tokens)
            table.computed[slot] += tokens
            sequence.last_step = self.holdings.step
            self.holdings.publish(sequence)

    def start_decoding(self, slots: np.ndarray) -> np.ndarray:
        """Sequences whose prompt ends with this step sample in it, and decode from the next step on. ``slots`` are
        those that decode already; returns the slots of all rows that sample."""
        holdings, table = self.holdings, self.holdings.table
        ended = [s for s in holdings.prefilling if table.computed[s.slot] == table.length[s.slot]]
        if not ended:
            return slots
        holdings.prefilling = [
            s for s in holdings.prefilling if table.computed[s.slot] < table.length[s.slot]
        ]
        starting = [sequence.slot for sequence in ended]
        table.planned[starting] += 1
        table.decoding[starting] = True
        return np.sort(np.append(slots, starting))

    # --- admission --------------------------------------------------------------------------------

    def admit_waiting(self, blocks: BlockPool, builder: PlanBuilder) -> Sequence | None:
        """Admit waiting sequences while slots and blocks last; returns the one for which they did not suffice."""
        holdings = self.holdings
        if holdings.step % CHARGE_STEPS == 0:
            holdings.charge_all()
        joined = 0
        while joined < MAX_JOINED_TOKENS:
            sequence = holdings.next_in_line()
            if sequence is None or (holdings.slots.available and builder.budget <= 0):
                return None
            if not holdings.slots.available or not self.admit(sequence, blocks, builder):
                return None if holdings.quarantine.active else sequence
            joined += len(sequence.tokens)
        return None

    def admit(self, sequence: Sequence, blocks: BlockPool, builder: PlanBuilder) -> bool:
        """Give the next sequence a slot, and blocks for all its known tokens; returns False if there are too few
        blocks."""
        size, length = blocks.block_size, len(sequence.tokens)
        block_list, copied = BlockList(), BlockList()
        if sequence.needs_prompt_logprobs:
            sequence.forget_prompt_logprobs()  # cached tokens have no logits, so all are computed, perhaps again
        elif blocks.caching:
            share_prefix(blocks, sequence, block_list, copied, self.holdings.step)
        shared = len(block_list)
        needed = -(-length // size) - shared
        if blocks.available < needed:
            blocks.release(copied, blocks.completed)
        if blocks.available < needed:
            blocks.release(block_list, blocks.completed)
            return False
        sequence.published = shared
        blocks.grow(block_list, needed)
        start = shared * size
        if copied:
            start = length - 1
            builder.copies += (copied.blocks[0], block_list.blocks[shared])
            blocks.release(copied, self.holdings.step)
            self.counters["num_block_copies"] += 1
        self.holdings.enter(sequence, blocks, block_list, start)
        for block in block_list.blocks:
            builder.blocks += (sequence.slot, block)
        builder.joins.append(sequence.join(start))
        self.chunk(sequence, builder)
        self.counters["prefix_cache_queries"] += length
        self.counters["prefix_cache_hits"] += start
        self.admitted.append((sequence, start))
        return True

    # --- making room ------------------------------------------------------------------------------

    def preempt_for_fairness(self, sequence: Sequence, blocks: BlockPool) -> None:
        """If the client of this sequence has nothing running, preempt a sequence of the client that holds most
        slots."""
        holdings = self.holdings
        waited = holdings.step - sequence.waits_since
        if not waited or waited % STEPS_BEFORE_PREEMPTION or holdings.waiting.client_of(sequence).running:
            return
        if holdings.slots.retiring or blocks.retiring:
            return  # slots or blocks become free without it
        running = [
            s for s in holdings.holders if s and not s.left and s.params.priority <= sequence.params.priority
        ]
        connection, most = max(
            Counter(s.connection for s in running).items(), key=lambda item: item[1], default=(0, 0)
        )
        if most > 1:
            self.counters["num_preemptions_for_fairness"] += 1
            holdings.preempt(max((s for s in running if s.connection == connection), key=Sequence.order))

    def last_in_order(self) -> Sequence:
        """The running sequence that is last by priority and age: it has the least to lose."""
        return max((s for s in self.holdings.holders if s is not None and not s.left), key=Sequence.order)
