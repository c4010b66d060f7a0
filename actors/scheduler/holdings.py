"""Who holds what on the device: slots and blocks, from the step that a sequence joins to its last one's end.

A sequence waits in the queue, or holds a slot with its blocks, or was computed when an executor died and is a suspect.
Here it changes from one to another; ``planner.py`` decides when.
"""

from __future__ import annotations

import numpy as np

from .pool import BlockList, BlockPool, Pool
from .prefix import publish
from .quarantine import Quarantine
from .sequence import Sequence
from .slot_table import SlotTable
from .waiting import WaitingQueue


class Holdings:
    """Owns the slots, the blocks, the queue of the sequences that wait for them, and the suspects."""

    def __init__(self, max_num_seqs: int, max_model_len: int, counters: dict[str, float]) -> None:
        self.max_num_seqs = max_num_seqs
        self.max_model_len = max_model_len
        self.counters = counters
        self.step = 0
        """Number of the next step."""
        self.waiting = WaitingQueue()
        self.quarantine = Quarantine()
        self.blocks: BlockPool | None = None
        """None until an executor has sent its capacity."""
        self.reset_slots()

    def reset_slots(self) -> None:
        """Nothing is on the device."""
        self.table = SlotTable(self.max_num_seqs, self.max_model_len)
        self.slots = Pool(self.max_num_seqs)
        self.slots.completed = self.step - 1
        self.holders: list[Sequence | None] = [None] * self.max_num_seqs
        self.prefilling: list[Sequence] = []
        """Hold a slot and have prompt left, in the order of admission."""
        self.leaves: list[int] = []
        """Slots that the next plan frees."""

    def begin(self, blocks: BlockPool) -> None:
        """An executor is there, with these blocks."""
        self.blocks = blocks
        blocks.completed = self.step - 1

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

    # --- from the queue to the device -------------------------------------------------------------

    def enqueue(self, sequence: Sequence) -> None:
        """Into the queue."""
        sequence.waits_since = self.step
        self.waiting.push(sequence)

    def next_in_line(self) -> Sequence | None:
        if self.quarantine.active:
            return self.quarantine.next(device_is_empty=not any(self.holders))
        return self.waiting.first()

    def enter(self, sequence: Sequence, blocks: BlockPool, block_list: BlockList, start: int) -> None:
        """The sequence that is next gets a slot and these of the blocks; its tokens before ``start`` are computed."""
        if self.quarantine.take(sequence):
            self.waiting.enter(sequence)
        else:
            self.waiting.pop()
        sequence.slot = slot = self.slots.take()
        self.holders[slot] = sequence
        sequence.block_list, sequence.resumes = block_list, False
        self.table.enter(sequence, self.slots.generation[slot], start, len(block_list) * blocks.block_size)
        self.prefilling.append(sequence)
        self.waiting.charge(sequence, len(sequence.tokens) - start)

    def publish(self, sequence: Sequence) -> None:
        """Let what is computed of the sequence be found by others."""
        assert self.blocks is not None
        slot, table = sequence.slot, self.table
        computed = min(int(table.computed[slot]), int(table.length[slot]))
        publish(self.blocks, sequence, table.known(slot), computed, sequence.last_step)

    # --- from the device, to its end or back to the queue -----------------------------------------

    def drop(self, sequence: Sequence) -> None:
        """The sequence has ended, wherever it stands."""
        if sequence.slot < 0:
            if not self.quarantine.drop(sequence):
                self.waiting.remove(sequence)
            return
        self.table.accepting[sequence.slot] = False
        if not sequence.left:
            self.leave(sequence)

    def preempt(self, sequence: Sequence) -> None:
        """Give up slot and blocks; prompt and tokens are computed again later."""
        self.counters["num_preemptions"] += 1
        sequence.preempted = True
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

    # --- the death of an executor -----------------------------------------------------------------

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
        if computing or sequence is self.quarantine.on_probation:
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

    def end_probation_ahead(self) -> None:
        """If the plan just made has the step that clears the suspect, free its slot with the next plan, so that the
        next suspect can begin there. It stays on probation until that step has ended."""
        suspect = self.quarantine.on_probation
        if suspect is None or not self.quarantine.suspects or suspect.left:
            return
        if self.table.planned[suspect.slot] >= suspect.cleared_at:
            self.preempt_for_next_suspect(suspect)

    def preempt_for_next_suspect(self, suspect: Sequence) -> None:
        """Let the next suspect run alone; this one is computed again when all have been on probation."""
        suspect.preempted = True
        self.leave(suspect)

    def end_probation(self) -> None:
        """Clear a suspect that is past the point where the executor died, and preempt it for the next one, if any."""
        suspect = self.quarantine.on_probation
        if suspect is None:
            return
        length = int(self.table.length[suspect.slot]) if suspect.slot >= 0 else 0
        passed = self.quarantine.passed(length)
        if passed is not None and self.quarantine.active and not passed.left:
            self.preempt_for_next_suspect(passed)

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
