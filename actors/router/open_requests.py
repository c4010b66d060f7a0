"""The requests that are open at the router: whose each is, where it runs, and what it was asked for."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...protocol.client.pending import Stream
from ...protocol.messages import Delta, Formats
from ..public.connections import Connection
from ..public.deadlines import Deadlines
from .prompt_blocks import blocks_of
from .replica import Replica


class PassedOn(Stream):
    """A stream whose deltas go on to the client as they came: the client's own library parses them."""

    def parsed(self, delta: Delta, formats: Formats) -> Delta:
        return delta


@dataclass(slots=True, eq=False)
class Routed:
    """An open request, wherever it runs now."""

    number: int
    connection: Connection
    id: str
    """The client's; at the services it has another, since ids of two clients may be the same."""
    stream: Stream
    """What was asked, and what has come of it: it goes from session to session."""
    answers: int
    size: int
    """Bytes of the prompt."""
    hashes: list[bytes]
    """The hashes of the prompt's blocks."""
    wants_prompt_ids: bool
    replica: Replica | None = None
    """Where it is open."""
    expected: float = 0.0
    """Which share of its prompt that one is taken to have in its cache."""
    uncomputed: int = 0
    """Blocks of its prompt that have to be computed there, until its first token comes."""
    refused_by: set[str] = field(default_factory=set)
    """Endpoints of services that had no room for it, since it was last taken."""
    accepted: bool = False
    """It was open at a service that went, or something of it has come: it is not refused any more for want of room."""
    losses: int = 0
    """Services that went, one after the other, while it was open there and nothing of it came."""
    waits_until: float | None = None
    """No service can take it now; then it is given up."""
    sent_prompt_ids: bool = False
    sent_prompt_logprobs: bool = False
    """A service that continues it tells these anew."""

    def go_to(self, replica: Replica) -> None:
        """It is open there from now on."""
        blocks = blocks_of(len(self.hashes))
        matched = blocks_of(replica.prefixes.matched(self.hashes))
        self.expected = matched / blocks if blocks else 0.0
        self.uncomputed = blocks - matched
        self.replica, self.waits_until = replica, None
        replica.carry(self.answers, self.uncomputed)

    def leave(self) -> None:
        """It is not open any more where it was."""
        if self.replica is not None:
            self.replica.carry(-self.answers, -self.uncomputed)
            self.replica, self.uncomputed = None, 0

    def on_computed(self) -> None:
        """Its prompt is no more work to its service."""
        if self.replica is not None:
            self.replica.carry(0, -self.uncomputed)
            self.uncomputed = 0

    def hand_on(self, items: list[Delta]) -> None:
        """Add what has come of it, as its client is to get it."""
        self.losses, self.accepted = 0, True
        if self.uncomputed:
            self.on_computed()
        while self.stream.deltas:
            delta = self.stream.deltas.popleft()
            delta.id = self.id
            if delta.prompt_token_ids is not None:
                if self.sent_prompt_ids or not self.wants_prompt_ids:
                    delta.prompt_token_ids = None
                self.sent_prompt_ids = True
            if delta.prompt_logprobs is not None:
                if self.sent_prompt_logprobs:
                    delta.prompt_logprobs = None
                self.sent_prompt_logprobs = True
            if delta.usage is not None and self.replica is not None:
                prompt, cached = delta.usage.prompt_tokens, delta.usage.cached_tokens
                self.replica.prefixes.learn(self.expected * prompt, cached, prompt)
            items.append(delta)


class OpenRequests:
    """All of them, by their own number and by what their clients call them."""

    def __init__(self) -> None:
        self.by_number: dict[int, Routed] = {}
        self.by_id: dict[tuple[int, str], Routed] = {}
        """By the number of their connection and the id that its client gave."""
        self.waiting: dict[Routed, None] = {}
        """Requests that no service can take now, in the order in which they came."""
        self.deadlines = Deadlines(self.by_number)
        self.answers = 0
        self.bytes = 0
        """Bytes of all prompts."""

    def add(self, request: Routed) -> None:
        self.by_number[request.number] = request
        self.by_id[request.connection.number, request.id] = request
        request.connection.open_ids.add(request.id)
        self.answers += request.answers
        self.bytes += request.size

    def find(self, connection: Connection, id: str) -> Routed | None:
        return self.by_id.get((connection.number, id))

    def of(self, connection: Connection) -> list[Routed]:
        """The requests of a connection, in the order in which they came."""
        found = (self.by_id[connection.number, id] for id in connection.open_ids)
        return sorted(found, key=lambda request: request.number)

    def forget(self, request: Routed) -> None:
        del self.by_number[request.number]
        del self.by_id[request.connection.number, request.id]
        request.connection.open_ids.discard(request.id)
        self.waiting.pop(request, None)
        self.answers -= request.answers
        self.bytes -= request.size
