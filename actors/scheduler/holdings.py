"""Records which sequence holds which slot and blocks on the device, from the step in which it joins until its last
step is completed.

A sequence waits in the queue, or holds a slot and blocks, or is a suspect, as it was computed when an executor died.
The methods here move it from one of these to another; ``planner.py`` decides when, and ``executor_deaths.py`` when an
executor has died.
"""

from __future__ import annotations

import numpy as np

from .blocks import BlockList, BlockPool
from .pool import Pool
from .prefix import publish
from .quarantine import SequenceQuarantine
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
        self.quarantine = SequenceQuarantine()
        self.blocks: BlockPool | None = None
        """None until an executor has sent its capacity."""
        self.reset_slots()

    def reset_slots(self) -> None:
        """Begin with a device on which there is nothing."""
        self.table = SlotTable(self.max_num_seqs, self.max_model_len)
        self.slots = Pool(self.max_num_seqs)
        self.slots.completed = self.step - 1
        self.holders: list[Sequence | None] = [None] * self.max_num_seqs
        self.prefilling: list[Sequence] = []
        """The sequences that hold a slot and have prompt left, in the order of their admission."""
        self.leaves: list[int] = []
        """Slots that the next plan frees."""

    def begin(self, blocks: BlockPool) -> None:
        """Begin with a new executor, which has these blocks."""
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
        """Put the sequence into the queue."""
        sequence.waits_since = self.step
        self.waiting.push(sequence)

    def next_in_line(self) -> Sequence | None:
        if self.quarantine.active:
            return self.quarantine.next_suspect(device_is_empty=not any(self.holders))
        return self.waiting.first()

    def enter(self, sequence: Sequence, blocks: BlockPool, block_list: BlockList, start: int) -> None:
        """Give the next sequence a slot and the blocks in ``block_list``; its tokens before ``start`` are cached."""
        if self.quarantine.begin_probation(sequence):
            self.waiting.start_running(sequence)
        else:
            self.waiting.pop()
        sequence.slot = slot = self.slots.take()
        self.holders[slot] = sequence
        sequence.block_list, sequence.resumes = block_list, False
        self.table.enter(sequence, self.slots.generation[slot], start, len(block_list) * blocks.block_size)
        self.prefilling.append(sequence)
        self.waiting.charge(sequence, len(sequence.tokens) - start)

    def publish(self, sequence: Sequence) -> None:
        """Let other sequences find what is computed of this one."""
        assert self.blocks is not None
        slot, table = sequence.slot, self.table
        computed = min(int(table.computed[slot]), int(table.length[slot]))
        publish(self.blocks, sequence, table.known(slot), computed, sequence.last_step)

    # --- from the device, to its end or back to the queue -----------------------------------------

    def drop(self, sequence: Sequence) -> None:
        """Take away a sequence that has ended, whether it waits or runs."""
        if sequence.slot < 0:
            if not self.quarantine.drop(sequence):
                self.waiting.remove(sequence)
            return
        self.table.accepting[sequence.slot] = False
        if not sequence.left:
            self.leave(sequence)

    def preempt(self, sequence: Sequence) -> None:
        """Take its slot and blocks from a sequence; its prompt and tokens are computed again later."""
        self.counters["num_preemptions"] += 1
        sequence.preempted = True
        self.leave(sequence)

    def leave(self, sequence: Sequence) -> None:
        """Have the next plan free the slot. Slot and blocks are reused when the last step of the sequence is over."""
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
        """This step is over on the device: what was last used in it can be handed out again."""
        assert self.blocks is not None
        self.blocks.complete(step)
        for slot in self.slots.complete(step):
            self.vacate(slot)

    def vacate(self, slot: int) -> None:
        """No step uses the slot any more. A preempted sequence returns to its old place in the queue."""
        sequence = self.holder(slot)
        self.holders[slot] = None
        self.charge(sequence)
        if sequence.preempted and not sequence.finished:
            self.requeue(sequence)
        self.waiting.stop_running(sequence)

    def requeue(self, sequence: Sequence) -> None:
        self.forget_device(sequence)
        self.enqueue(sequence)

    def forget_device(self, sequence: Sequence) -> None:
        """The sequence holds nothing on the device any more; its tokens are kept."""
        sequence.tokens = self.table.known(sequence.slot).copy()
        sequence.block_list, sequence.slot, sequence.published = BlockList(), -1, 0
        sequence.left, sequence.preempted = False, False

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
