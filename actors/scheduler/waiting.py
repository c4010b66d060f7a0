"""Orders the requests that wait, by client and priority.

*Between clients* it is fair: each has an account of the tokens that were computed for it, and the one that has had
least is next (virtual token counter; Sheng et al., OSDI 2024). A new client begins with what every client would have
had until now if all shares had been equal. So it has neither a debt nor a credit from the time when it asked for
nothing, and clients that wait are not overtaken for ever by new ones. *Within a client* it is first come, first served.
A priority is a head start in both: a level is worth some tokens against other clients and some seconds against the
client's own requests. Both are finite, so every request is next in the end, whatever the others' priorities are.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field

from .sequence import Sequence

PRIORITY_TOKENS = 4096
"""Tokens of service that one level of priority is worth between clients: a few answers, so that a level is felt at
once, and little beside what a busy client has in a minute, so that it is paid back soon."""

RESUMED_LEVELS = 4
"""Levels that a sequence gains when it has lost its blocks to others: a stream waits for it, so it goes before new
requests of the usual priorities, but not before every priority that a client can state."""

PRIORITY_S = 5.0
"""Seconds of waiting that one level of priority is worth among the requests of a client: longer than a queue that
moves makes anyone wait, short enough that no level starves another."""


def sort_key(arrived: float, priority: int) -> float:
    """The place of a request among those of its client: lowest first."""
    return arrived - priority * PRIORITY_S


@dataclass(slots=True, eq=False)
class ClientShare:
    """A client that has requests here."""

    served: float
    """Tokens computed for it."""
    heap: list[tuple[float, int, int, Sequence]] = field(default_factory=list)
    """Its waiting sequences by sort key, and of equal keys in the order in which they came. Some may have ended
    already."""
    waiting: int = 0
    running: int = 0
    """Sequences that hold a slot."""
    score: float = math.inf
    """The score by which it is sorted in the queue now."""

    def first(self) -> Sequence | None:
        while self.heap and self.heap[0][-1].finished:
            heapq.heappop(self.heap)
        return self.heap[0][-1] if self.heap else None

    def score_of(self, sequence: Sequence) -> float:
        levels = sequence.params.priority + (RESUMED_LEVELS if sequence.resumes else 0)
        return self.served - levels * PRIORITY_TOKENS


class WaitingQueue:
    """All sequences that wait. Every operation takes logarithmic time, or less."""

    def __init__(self) -> None:
        self.clients: dict[int, ClientShare] = {}
        """By the number of the client's connection."""
        self.order: list[tuple[float, int, int, ClientShare]] = []
        """A heap of clients by score, and of equal scores the one with fewer running. An entry whose score is not its
        client's any more counts for nothing."""
        self.equal_share = 0.0
        """The tokens of each client if all shares had been equal, which is what a new client begins with."""
        self.waiting = 0
        self.entries = 0

    def __len__(self) -> int:
        return self.waiting

    def client_of(self, sequence: Sequence) -> ClientShare:
        return self.clients[sequence.connection]

    def push(self, sequence: Sequence) -> None:
        client = self.clients.get(sequence.connection)
        if client is None:
            client = self.clients[sequence.connection] = ClientShare(self.equal_share)
        self.entries += 1
        heapq.heappush(client.heap, (*sequence.order(), self.entries, sequence))
        client.waiting += 1
        self.waiting += 1
        self.advance(client)

    def advance(self, client: ClientShare) -> None:
        """Move the client forward if its first sequence gives it a better score; ``first`` moves it back if it got
        worse."""
        first = client.first()
        if first is not None and client.score_of(first) < client.score:
            self.set_score(client, client.score_of(first))

    def set_score(self, client: ClientShare, score: float) -> None:
        client.score = score
        self.entries += 1
        heapq.heappush(self.order, (score, client.running, self.entries, client))
        if len(self.order) > 2 * len(self.clients) + 16:  # most entries count for nothing: drop them
            self.order = [entry for entry in self.order if entry[0] == entry[3].score]
            heapq.heapify(self.order)

    def first(self) -> Sequence | None:
        """The sequence that is next."""
        while self.order:
            score, _, _, client = self.order[0]
            first = client.first() if score == client.score else None
            if first is not None and client.score_of(first) <= score:
                return first
            heapq.heappop(self.order)
            if score == client.score:  # its tokens since, or the end of its first sequence, made it worse
                client.score = math.inf
                if first is not None:
                    self.set_score(client, client.score_of(first))
        return None

    def pop(self) -> Sequence:
        """Take the next sequence out of the queue; it gets a slot."""
        sequence = self.first()
        assert sequence is not None
        client = self.client_of(sequence)
        heapq.heappop(client.heap)
        client.waiting -= 1
        client.running += 1
        self.waiting -= 1
        self.advance(client)
        return sequence

    def start_running(self, sequence: Sequence) -> None:
        """Count a sequence that gets a slot and has not waited here: a suspect."""
        client = self.clients.setdefault(sequence.connection, ClientShare(self.equal_share))
        client.running += 1

    def remove(self, sequence: Sequence) -> None:
        """The sequence has ended while it waited."""
        client = self.client_of(sequence)
        client.waiting -= 1
        self.waiting -= 1
        if len(client.heap) > 2 * client.waiting + 16:
            client.heap = [entry for entry in client.heap if not entry[-1].finished]
            heapq.heapify(client.heap)
        self.advance(client)
        self.forget(sequence.connection)

    def charge(self, sequence: Sequence, tokens: int) -> None:
        """Charge ``tokens`` tokens that were computed for a sequence that runs."""
        self.client_of(sequence).served += tokens
        self.equal_share += tokens / len(self.clients)

    def stop_running(self, sequence: Sequence) -> None:
        """The slot of a sequence is free again."""
        self.client_of(sequence).running -= 1
        self.forget(sequence.connection)

    def forget(self, number: int) -> None:
        client = self.clients[number]
        if not client.waiting and not client.running:
            client.score = math.inf
            del self.clients[number]
