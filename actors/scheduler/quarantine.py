"""Requests that may have killed the executor are tried alone, and one that kills it again is given up.

When an executor ends by its own fault, whatever it was computing is suspect: one of these requests may be the cause,
and would be it again. So the suspects run one at a time, on probation, each until it is past the point where the
executor died; then it is cleared and runs on with all others. One that was in the batch at two deaths was alone at
the second: it is quarantined, that is, answered with an error instead of being tried a third time. A death from
outside, such as a SIGKILL, makes nobody suspect; but if the executor that was to report how the one before it ended is
gone before it did, nobody will, and all are tried.
"""

from __future__ import annotations

from collections import deque

from .sequence import Sequence

MESSAGE = (
    "the executor died while it computed this request among others, and again while it computed it alone:"
    " it is not tried again"
)


class Quarantine:
    """The suspects, and which of them is on probation."""

    def __init__(self) -> None:
        self.suspended: list[Sequence] = []
        """Were on the device when the executor died; it is not known yet whether by its own fault."""
        self.suspects: deque[Sequence] = deque()
        """To be tried, one after the other."""
        self.unreported = False
        """An executor came and went without a report: how the one before it ended will never be known."""
        self.on_probation: Sequence | None = None
        """The suspect that runs, alone."""

    def __len__(self) -> int:
        """Sequences that wait here."""
        return len(self.suspended) + len(self.suspects)

    @property
    def active(self) -> bool:
        """Only the sequence on probation may join the device."""
        return bool(self.suspects) or self.on_probation is not None

    def await_report(self) -> None:
        """An executor is gone, and its successor will report how it ended."""
        self.unreported = self.unreported or bool(self.suspended)

    def suspend(self, sequence: Sequence, planned: int) -> None:
        """A sequence that was computed at a death, ``planned`` tokens of it."""
        sequence.cleared_at = planned
        self.suspended.append(sequence)

    def resolve_crash(self, crashed: bool) -> tuple[list[Sequence], list[Sequence]]:
        """Whether the executor ended by its own fault is known: the sequences that are cleared, and quarantined."""
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

    def next(self, device_is_empty: bool) -> Sequence | None:
        """The next suspect; None while the device computes anything else."""
        return self.suspects[0] if self.suspects and self.on_probation is None and device_is_empty else None

    def take(self, sequence: Sequence) -> bool:
        """The probation of a suspect begins; False if it is none."""
        if not self.suspects or self.suspects[0] is not sequence:
            return False
        self.on_probation = self.suspects.popleft()
        return True

    def passed(self, length: int) -> Sequence | None:
        """The one on probation, once it has ended or its ``length`` tokens are past the point of the death: cleared."""
        suspect = self.on_probation
        if suspect is None or not (suspect.finished or length >= suspect.cleared_at):
            return None
        self.on_probation = None
        suspect.deaths = 0
        return suspect

    def drop(self, sequence: Sequence) -> bool:
        """A sequence without a slot has ended; False if it is not here."""
        for place in (self.suspended, self.suspects):
            if sequence in place:
                place.remove(sequence)
                return True
        return False
