"""Records deaths: when an actor died, whether by its own fault, and what it had in hand."""

from __future__ import annotations

from collections import Counter


class Deaths:
    """The last death of each child, and what requests have had to do with deaths."""

    def __init__(self) -> None:
        self.at: dict[str, float] = {}
        """When those have died that are not back."""
        self.own_fault: dict[str, bool] = {}
        """Whether the last incarnation of each ended by its own fault."""
        self.with_request: Counter[bytes] = Counter()
        """How many actors have ended by their own fault while they had a request in hand, by its digest."""

    def note_fault(self, name: str, own_fault: bool, in_hand: bytes) -> None:
        """For the next incarnation of a child."""
        self.own_fault[name] = own_fault
        if own_fault and in_hand:
            self.with_request[in_hand] += 1

    def crashed(self, name: str) -> bool:
        return self.own_fault.get(name, False)

    @property
    def quarantined(self) -> list[bytes]:
        """Requests that were in hand at two deaths."""
        return [digest for digest, deaths in self.with_request.items() if deaths > 1]
