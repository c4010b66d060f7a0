"""Runs sequences that may have killed the executor alone, and gives up one that kills it again.

When an executor ends by its own fault, every sequence of its batch is a suspect: one of them may be the cause, and
would kill the next executor too. So the suspects run one at a time, on probation. When one is past the point where the
executor died, it is cleared, and runs with all others later. One that was in the batch at two deaths was alone at the
second: it is quarantined, which means that its request is answered with an error and not run a third time.

A death from outside, such as a SIGKILL, makes no suspects. But an executor reports how the one before it ended; if it
is gone before it has done so, nobody knows, and all sequences of that batch are suspects.

The gateway has a quarantine of its own, for the requests that end an actor before or behind the scheduler.
"""

from __future__ import annotations

from collections import deque

from .sequence import Sequence

MESSAGE = (
    "the executor died while it computed this request among others, and again while it computed it alone:"
    " it is not tried again"
)


class SequenceQuarantine:
    """The suspects, and which of them is on probation."""

    def __init__(self) -> None:
        self.suspended: list[Sequence] = []
        """The sequences that were on the device when the executor died; it is not known yet whether by its own
        fault."""
        self.suspects: deque[Sequence] = deque()
        """The suspects that wait for their probation, in order."""
        self.unreported = False
        """An executor came and went without a report: how the one before it ended will never be known."""
        self.on_probation: Sequence | None = None
        """The suspect that runs, alone."""

    def __len__(self) -> int:
        """The number of sequences that wait here."""
        return len(self.suspended) + len(self.suspects)

    @property
    def active(self) -> bool:
        """Only the sequence on probation may join the device."""
        return bool(self.suspects) or self.on_probation is not None

    def await_report(self) -> None:
        """An executor is gone, and its successor will report how it ended."""
        self.unreported = self.unreported or bool(self.suspended)

    def suspend(self, sequence: Sequence, planned: int) -> None:
        """Keep a sequence that was computed when the executor died; ``planned`` of its tokens had been planned."""
        sequence.cleared_at = planned
        self.suspended.append(sequence)

    def resolve_crash(self, crashed: bool) -> tuple[list[Sequence], list[Sequence]]:
        """It is known now whether the executor ended by its own fault. Returns the sequences that are cleared, and
        those that are quarantined."""
        suspended, self.suspended, self.on_probation = self.suspended, [], None
        unreported, self.unreported = self.unreported, False
        cleared: list[Sequence] = []
        quarantined: list[Sequence] = []
        for sequence in sorted(suspended, key=lambda s: s.request, reverse=True):
            sequence.deaths += crashed
            if sequence.deaths > 1:
                quarantined.append(sequence)
            elif sequence.deaths or unreported:
                self.suspects.appendleft(sequence)
            else:
                cleared.append(sequence)
        return cleared, quarantined

    def next_suspect(self, device_is_empty: bool) -> Sequence | None:
        """The next suspect; None while the device computes anything else."""
        return self.suspects[0] if self.suspects and self.on_probation is None and device_is_empty else None

    def begin_probation(self, sequence: Sequence) -> bool:
        """Put the sequence on probation if it is the next suspect; otherwise returns False."""
        if not self.suspects or self.suspects[0] is not sequence:
            return False
        self.on_probation = self.suspects.popleft()
        return True

    def take_passed(self, length: int) -> Sequence | None:
        """Clear the suspect on probation, and return it, if it has ended or its ``length`` tokens are past the point of
        the death."""
        suspect = self.on_probation
        if suspect is None or not (suspect.finished or length >= suspect.cleared_at):
            return None
        self.on_probation = None
        suspect.deaths = 0
        return suspect

    def drop(self, sequence: Sequence) -> bool:
        """Take away a sequence that has ended; returns False if it does not wait here."""
        for place in (self.suspended, self.suspects):
            if sequence in place:
                place.remove(sequence)
                return True
        return False
