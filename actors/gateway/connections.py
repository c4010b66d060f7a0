"""The connections of clients, and what waits for one that does not read.

What a step brings is held until the turn is over, so that a gateway that is behind sends less often and
catches up. A client that does not read has its deltas merged, one for each answer; beyond a bound it is
cut off. It never holds up anyone else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...protocol.messages import ClientBlocked, Delta, Deltas, Pong, ToClient, Trace

if TYPE_CHECKING:
    from .ledger import Request

PROBE_S = 1.0
"""A client that has requests and was sent nothing for this long is probed, to learn whether it is there."""

RETRY_S = 0.01
"""When a client that does not read is tried again."""

MAX_HELD_TOKENS = 100_000
"""What a client that does not read may have waiting; beyond it, its requests are aborted."""

MAX_HELD_MESSAGES = 1024
"""The same for messages that do not merge, such as errors and statistics."""

MAX_HELD_TRACES = 2
"""Of those messages, the ones that may be large."""

MAX_CLIENTS = 4096


@dataclass(slots=True, eq=False)
class Client:
    """One connection."""

    address: bytes
    number: int
    requests: dict[str, Request] = field(default_factory=dict)
    sent_at: float = 0.0
    held: dict[tuple[str, int], Delta] = field(default_factory=dict)
    """Merged deltas, by request and answer, that wait: for the end of the turn, or for the client to read."""
    held_tokens: int = 0
    held_messages: list[ToClient] = field(default_factory=list)
    """What waits with them, and is sent after them."""
    blocked: bool = False
    """The client does not read."""
    retry_at: float = 0.0

    def uses(self, id: str) -> bool:
        """Whether a request has this id whose end the client has not been told."""
        return id in self.requests or any(held == id for held, _ in self.held)


class Connections:
    """All clients that have said hello."""

    def __init__(
        self,
        send: Callable[[bytes, ToClient], None],
        wake_by: Callable[[float], None],
        lost: Callable[[Client], None],
    ) -> None:
        self.send = send
        self.wake_by = wake_by
        self.lost = lost
        """Called with a client that is gone or cut off, so that its requests end."""
        self.clients: dict[bytes, Client] = {}
        self.next_number = 0

    @property
    def idle(self) -> bool:
        """Everything has been sent."""
        return not any(client.blocked or client.held for client in self.clients.values())

    def greet(self, address: bytes, now: float) -> Client:
        """The client of a connection, a new one if it had said no hello yet."""
        client = self.clients.get(address)
        if client is None:
            self.make_place()
            client = self.clients[address] = Client(address, self.next_number, sent_at=now)
            self.next_number += 1
        return client

    def make_place(self) -> None:
        """Forget the oldest connection without a request; should it speak again, it says hello again."""
        if len(self.clients) >= MAX_CLIENTS:
            idle = next((a for a, c in self.clients.items() if not c.requests), None)
            if idle is not None:
                del self.clients[idle]

    def cut_off(self, client: Client) -> None:
        """Forget a connection and end its requests; should it speak again, it says hello again."""
        if self.clients.pop(client.address, None) is not None:
            self.lost(client)

    # --- sending ----------------------------------------------------------------------------------

    def tell(self, client: Client, message: ToClient) -> None:
        """Send something other than deltas."""
        if client.blocked or client.held:
            self.hold_message(client, message)
        else:
            self.send(client.address, message)

    def send_deltas(self, client: Client, items: list[Delta], now: float) -> None:
        """Send when all that has arrived is taken in."""
        self.hold(client, items)
        if not client.blocked:
            self.wake_by(now)

    def hold(self, client: Client, items: list[Delta]) -> None:
        for item in items:
            client.held_tokens += weight_of(item)
            held = client.held.setdefault((item.id, item.index), item)
            if held is not item:
                merge(held, item)
                if item.usage is not None:  # the last delta of a request: behind those of its other answers
                    client.held[item.id, item.index] = client.held.pop((item.id, item.index))
        if client.blocked and client.held_tokens > MAX_HELD_TOKENS:
            self.cut_off(client)

    def hold_message(self, client: Client, message: ToClient) -> None:
        client.held_messages.append(message)
        held = client.held_messages
        traces = isinstance(message, Trace) and sum(isinstance(other, Trace) for other in held)
        if len(held) > MAX_HELD_MESSAGES or traces > MAX_HELD_TRACES:
            self.cut_off(client)

    def on_blocked(self, blocked: ClientBlocked, now: float) -> None:
        """Hold what the client did not take; its deltas merge until it reads again."""
        client = self.clients.get(blocked.client)
        if client is None:
            return
        client.blocked = True
        client.retry_at = now + RETRY_S
        self.wake_by(client.retry_at)
        if isinstance(blocked.message, Deltas):
            self.hold(client, blocked.message.items)
        else:
            self.hold_message(client, blocked.message)

    # --- time -------------------------------------------------------------------------------------

    def on_wake(self, now: float) -> None:
        """Send what waits, try again whoever did not read, and probe who was sent nothing for long."""
        for client in list(self.clients.values()):
            if client.blocked and now < client.retry_at:
                self.wake_by(client.retry_at)
            elif client.blocked or client.held:
                self.send_held(client, now)
            elif client.requests and now - client.sent_at >= PROBE_S:
                client.sent_at = now
                self.tell(client, Pong())

    def send_held(self, client: Client, now: float) -> None:
        """Send what waits for a client; the host says if it does not read."""
        items, messages = list(client.held.values()), client.held_messages
        client.held, client.held_tokens, client.held_messages, client.blocked = {}, 0, [], False
        if items:
            client.sent_at = now
        for part in by_weight(items):
            self.send(client.address, Deltas(items=part))
        for message in messages:
            self.send(client.address, message)


def weight_of(delta: Delta) -> int:
    """Tokens and logprobs, which is what makes a delta large."""
    weight = len(delta.token_ids)
    if delta.logprobs:
        weight += sum(map(len, delta.logprobs))
    if delta.prompt_logprobs:
        weight += sum(map(len, filter(None, delta.prompt_logprobs)))
    return weight


def by_weight(items: list[Delta]) -> Iterator[list[Delta]]:
    """In messages that a client can take: it reads no frame of any size."""
    part: list[Delta] = []
    weight = 0
    for item in items:
        heavy = weight_of(item)
        if part and weight + heavy > MAX_HELD_TOKENS:
            yield part
            part, weight = [], 0
        part.append(item)
        weight += heavy
    if part:
        yield part


def merge(held: Delta, item: Delta) -> None:
    """Append a delta of an answer to one that waits."""
    held.text += item.text
    held.token_ids += item.token_ids
    held.logprobs += item.logprobs
    held.finish_reason, held.stop_reason, held.usage = item.finish_reason, item.stop_reason, item.usage
    if item.prompt_token_ids is not None:
        held.prompt_token_ids = item.prompt_token_ids
    if item.prompt_logprobs is not None:
        held.prompt_logprobs = item.prompt_logprobs
