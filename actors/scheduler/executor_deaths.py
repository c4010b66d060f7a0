"""Takes back the sequences of an executor that died, and lets suspects among them run alone.

``quarantine.py`` knows who is a suspect; the methods here move them, by way of ``holdings.py``.
"""

from __future__ import annotations

from .holdings import Holdings
from .sequence import Sequence


class ExecutorDeaths:
    """What becomes of sequences when their executor dies, until each suspect is cleared or quarantined."""

    def __init__(self, holdings: Holdings) -> None:
        self.holdings, self.quarantine = holdings, holdings.quarantine

    def invalidate_device_state(self, computing: bool) -> None:
        """What was on the device is lost: every sequence will be prefilled again from its prompt and tokens.

        ``computing``: a step was under way, and one of its sequences may have caused the death.
        """
        holdings = self.holdings
        if holdings.blocks is not None:
            holdings.counters["prefix_cache_evictions"] += holdings.blocks.evictions
        holdings.blocks = None
        self.quarantine.await_report()
        for sequence in holdings.holders:
            if sequence is not None:
                self.invalidate_sequence(sequence, computing)
                holdings.waiting.stop_running(sequence)
        holdings.reset_slots()

    def invalidate_sequence(self, sequence: Sequence, computing: bool) -> None:
        if sequence.finished:
            return
        slot, table = sequence.slot, self.holdings.table
        if computing or sequence is self.quarantine.on_probation:
            self.quarantine.suspend(sequence, int(max(table.planned[slot], table.length[slot] + 1)))
            self.holdings.forget_device(sequence)
        else:
            self.holdings.requeue(sequence)

    def resolve_crash(self, crashed: bool) -> list[Sequence]:
        """The new executor has reported how the last one ended. The sequences that were computed then wait again or
        become suspects; those that are to be quarantined are returned."""
        cleared, quarantined = self.quarantine.resolve_crash(crashed)
        for sequence in cleared:
            self.holdings.enqueue(sequence)
        return quarantined

    def end_probation_ahead(self) -> None:
        """If the plan just made has the step that clears the suspect, free its slot with the next plan, so that the
        next suspect can begin there. It stays on probation until that step has ended."""
        suspect = self.quarantine.on_probation
        if suspect is None or not self.quarantine.suspects or suspect.left:
            return
        if self.holdings.table.planned[suspect.slot] >= suspect.cleared_at:
            self.preempt_for_next_suspect(suspect)

    def preempt_for_next_suspect(self, suspect: Sequence) -> None:
        """Let the next suspect run alone; this one is computed again when all have been on probation."""
        suspect.preempted = True
        self.holdings.leave(suspect)

    def end_probation(self) -> None:
        """Clear a suspect that is past the point where the executor died, and preempt it for the next one, if any."""
        suspect = self.quarantine.on_probation
        if suspect is None:
            return
        length = int(self.holdings.table.length[suspect.slot]) if suspect.slot >= 0 else 0
        passed = self.quarantine.take_passed(length)
        if passed is not None and self.quarantine.active and not passed.left:
            self.preempt_for_next_suspect(passed)
