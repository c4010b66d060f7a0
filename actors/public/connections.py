"""The connections of clients, and the messages that wait for a client that does not read.

The deltas of a step wait until the turn is over, so that a gateway that is behind sends fewer messages and catches up.
The deltas for a client that does not read are merged into one for each answer; beyond a bound the client is cut off.
It never delays other clients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ...protocol.events import ClientBlocked
from ...protocol.messages import Delta, Deltas, Pong, ToClient, Trace

PROBE_S = 1.0
"""A client with requests that was sent nothing for this long is probed, to learn whether it is still there. What is
computed for a client that has left is wasted, and one message a second costs little."""

RETRY_S = 0.01
"""Pause before the next try to send to a client that does not read: a few steps, whose deltas are merged."""

MAX_WAITING_TOKENS = 100_000
"""Most tokens that may wait for a client that does not read; beyond it, its requests are aborted."""

MAX_WAITING_MESSAGES = 1024
"""Most waiting messages that cannot be merged, such as errors and statistics: as many as there are open requests by
default, since each may end with an error."""

MAX_UNREAD_TRACES = 2
"""Most traces among these messages, which may be large."""

MAX_REMEMBERED = 4096
"""Most connections that are remembered: several times as many as open requests by default. A client whose connection
was forgotten only has to say hello again."""


@dataclass(slots=True, eq=False)
class Connection:
    """One client that has said hello."""

    address: bytes
    number: int
    open_ids: set[str] = field(default_factory=set)
    """The ids of its open requests; the ledger, which holds the requests, updates them."""
    sent_at: float = 0.0
    waiting_deltas: dict[tuple[str, int], Delta] = field(default_factory=dict)
    """Merged deltas that wait for the end of the turn, or for the client to read, by request and answer."""
    waiting_tokens: int = 0
    waiting_messages: list[ToClient] = field(default_factory=list)
    """Other messages that wait, and are sent after the deltas."""
    blocked: bool = False
    """The client does not read."""
    retry_at: float = 0.0

    def uses(self, id: str) -> bool:
        """Whether the id belongs to a request whose end the client has not been sent yet."""
        return id in self.open_ids or any(waiting == id for waiting, _ in self.waiting_deltas)


class Connections:
    """All connections whose client has said hello."""

    def __init__(
        self,
        send: Callable[[bytes, ToClient], None],
        wake_by: Callable[[float], None],
        lost: Callable[[Connection], None],
    ) -> None:
        self.send = send
        self.wake_by = wake_by
        self.lost = lost
        """Called with a connection that is gone or cut off, so that its requests end."""
        self.known: dict[bytes, Connection] = {}
        self.waiting: dict[Connection, None] = {}
        """The connections for which something waits, in the order in which it came: a turn looks at no others."""
        self.probe_at = float("inf")
        """The earliest time at which a connection with a request may have been silent for ``PROBE_S``."""
        self.next_number = 0

    @property
    def idle(self) -> bool:
        """Everything has been sent."""
        return not self.waiting

    def greet(self, address: bytes, now: float) -> Connection:
        """The connection of an address; a new one if its client says hello for the first time."""
        connection = self.known.get(address)
        if connection is None:
            self.forget_oldest_idle()
            connection = self.known[address] = Connection(address, self.next_number, sent_at=now)
            self.next_number += 1
        return connection

    def forget_oldest_idle(self) -> None:
        """If there are too many, forget the oldest connection without a request, whose client can say hello again."""
        if len(self.known) >= MAX_REMEMBERED:
            idle = next((c for c in self.known.values() if not c.open_ids), None)
            if idle is not None:
                self.forget(idle)

    def forget(self, connection: Connection) -> None:
        del self.known[connection.address]
        self.waiting.pop(connection, None)

    def cut_off(self, connection: Connection) -> None:
        """Forget a connection and end its requests; its client may say hello again."""
        if self.known.get(connection.address) is connection:
            self.forget(connection)
            self.lost(connection)

    # --- sending ----------------------------------------------------------------------------------

    def send_to(self, connection: Connection, message: ToClient) -> None:
        """Send something other than deltas."""
        if connection.blocked or connection.waiting_deltas:
            self.keep_message(connection, message)
        else:
            self.send(connection.address, message)

    def send_deltas(self, connection: Connection, items: list[Delta], now: float) -> None:
        """Send the deltas once all messages that have arrived are handled."""
        self.keep(connection, items)
        if not connection.blocked:
            self.wake_by(now)

    def keep(self, connection: Connection, items: list[Delta]) -> None:
        self.waiting[connection] = None
        for item in items:
            connection.waiting_tokens += weight_of(item)
            waiting = connection.waiting_deltas.setdefault((item.id, item.index), item)
            if waiting is not item:
                merge(waiting, item)
                if item.usage is not None:
                    put_last(connection.waiting_deltas, waiting)
        if connection.blocked and connection.waiting_tokens > MAX_WAITING_TOKENS:
            self.cut_off(connection)

    def keep_message(self, connection: Connection, message: ToClient) -> None:
        self.waiting[connection] = None
        connection.waiting_messages.append(message)
        waiting = connection.waiting_messages
        traces = isinstance(message, Trace) and sum(isinstance(other, Trace) for other in waiting)
        if len(waiting) > MAX_WAITING_MESSAGES or traces > MAX_UNREAD_TRACES:
            self.cut_off(connection)

    def on_blocked(self, blocked: ClientBlocked, now: float) -> None:
        """Keep the message that the client did not take, and merge its deltas until it reads again."""
        connection = self.known.get(blocked.client)
        if connection is None:
            return
        connection.blocked = True
        connection.retry_at = now + RETRY_S
        self.wake_by(connection.retry_at)
        if isinstance(blocked.message, Deltas):
            self.keep(connection, blocked.message.items)
        else:
            self.keep_message(connection, blocked.message)

    # --- time -------------------------------------------------------------------------------------

    def probe_by(self, when: float) -> None:
        """Probe at ``when``: there is a new request, whose client has to be there still."""
        self.probe_at = min(self.probe_at, when)
        self.wake_by(self.probe_at)

    def on_wake(self, now: float) -> None:
        """Send what waits, retry clients that did not read, and probe those that were sent nothing for long."""
        for connection in list(self.waiting):
            if connection.blocked and now < connection.retry_at:
                self.wake_by(connection.retry_at)
            else:
                self.send_waiting(connection, now)
        if now >= self.probe_at:
            self.probe(now)
        if self.probe_at < float("inf"):
            self.wake_by(self.probe_at)

    def probe(self, now: float) -> None:
        """Probe the connections that are due; about once in ``PROBE_S`` all are looked at."""
        self.probe_at = float("inf")
        for connection in list(self.known.values()):
            if not connection.open_ids:
                continue
            due = connection.sent_at + PROBE_S
            if now >= due:
                due = now + PROBE_S
                if connection not in self.waiting:
                    connection.sent_at = now
                    self.send_to(connection, Pong())
            self.probe_at = min(self.probe_at, due)

    def send_waiting(self, connection: Connection, now: float) -> None:
        """Send all that waits for a client; the host reports if it does not read."""
        items, messages = list(connection.waiting_deltas.values()), connection.waiting_messages
        whole = connection.waiting_tokens <= MAX_WAITING_TOKENS
        connection.waiting_deltas, connection.waiting_tokens, connection.waiting_messages = {}, 0, []
        connection.blocked = False
        self.waiting.pop(connection, None)
        if items:
            connection.sent_at = now
            for part in [items] if whole else by_weight(items):
                self.send(connection.address, Deltas(items=part))
        for message in messages:
            self.send(connection.address, message)


def weight_of(delta: Delta) -> int:
    """The number of tokens and logprobs, which make a delta large."""
    weight = len(delta.token_ids)
    if delta.logprobs:
        weight += sum(map(len, delta.logprobs))
    if delta.prompt_logprobs:
        weight += sum(map(len, filter(None, delta.prompt_logprobs)))
    return weight


def by_weight(items: list[Delta]) -> Iterator[list[Delta]]:
    """Divide deltas among messages, since a client reads frames only up to a limit."""
    part: list[Delta] = []
    weight = 0
    for item in items:
        heavy = weight_of(item)
        if part and weight + heavy > MAX_WAITING_TOKENS:
            yield part
            part, weight = [], 0
        part.append(item)
        weight += heavy
    if part:
        yield part


def put_last(waiting: dict[tuple[str, int], Delta], last: Delta) -> None:
    """Put the last delta of a request behind those of its other answers; the prompt's ids stay in the first."""
    key = (last.id, last.index)
    waiting[key] = waiting.pop(key)
    if last.prompt_token_ids is not None:
        first = next(delta for (id, _), delta in waiting.items() if id == last.id)
        first.prompt_token_ids, last.prompt_token_ids = last.prompt_token_ids, first.prompt_token_ids


def merge(waiting: Delta, item: Delta) -> None:
    """Append a delta to one of the same answer that waits."""
    waiting.text += item.text
    waiting.token_ids += item.token_ids
    waiting.logprobs += item.logprobs
    waiting.finish_reason, waiting.stop_reason, waiting.usage = (
        item.finish_reason,
        item.stop_reason,
        item.usage,
    )
    if item.prompt_token_ids is not None:
        waiting.prompt_token_ids = item.prompt_token_ids
    if item.prompt_logprobs is not None:
        waiting.prompt_logprobs = item.prompt_logprobs
