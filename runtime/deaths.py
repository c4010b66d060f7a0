"""Records the deaths of actors: when each died, whether by its own fault, and which request it had in hand."""

from __future__ import annotations

from collections import Counter


class Deaths:
    """How each actor died last, and the number of deaths with each request in hand."""

    def __init__(self) -> None:
        self.own_fault: dict[str, bool] = {}
        """Whether the last incarnation of each ended by its own fault."""
        self.with_request: Counter[bytes] = Counter()
        """How many actors have ended by their own fault while they had a request in hand, by its digest."""

    def note_death(self, name: str, own_fault: bool, in_hand: bytes) -> None:
        """Record how an actor has ended, for its next incarnation."""
        self.own_fault[name] = own_fault
        if own_fault and in_hand:
            self.with_request[in_hand] += 1

    def crashed(self, name: str) -> bool:
        return self.own_fault.get(name, False)

    @property
    def quarantined(self) -> list[bytes]:
        """The digests of requests that were in hand at two deaths or more."""
        return [digest for digest in self.with_request if self.is_quarantined(digest)]

    def is_quarantined(self, digest: bytes) -> bool:
        return self.with_request[digest] > 1
