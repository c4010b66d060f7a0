"""The simulator: all actors in one thread, virtual time, one seed.

It runs the production actors themselves. Messages take a random time, but stay in order between two actors. An actor
can crash at any instant, which loses its state and the messages that it had not yet given to the system. It can stand
still for a while. A frame between two living actors can be lost, which its receiver notices. And a client's connection
can break, or not be read. A crashed actor is replaced by a new incarnation after a start that takes time too, and in
which it can crash again. A run depends on its seed alone, so a failure is reproduced by one number.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from ..protocol.codec import decode_from_client, encode, encode_from_client, request_id
from ..protocol.digest import digest_of
from ..protocol.events import ClientBlocked, ClientGone, ClientMessage, Completed
from ..protocol.messages import Error
from .actor import Actor, Address, Send
from .links import LostMessage
from .lives import MAX_DELAY_S, Lives

RESTART_S = 0.005
"""Time after which an actor that the simulator has ended starts again: longer than a message is on its way, so that
some messages are lost."""

NO_PROGRESS_S = 0.2
"""Time after which a receiver is ended that has missed a frame, if no later frame has shown it the gap."""


class Simulator(Lives):
    """A simulated service: its actors, the messages between them, and their clients."""

    client_messages = 64
    """Most messages on their way to one client that does not read; then the public actor gets ``ClientBlocked``."""

    def __init__(
        self,
        seed: int,
        factories: dict[str, Callable[[Simulator], Actor]],
        groups: Sequence[Sequence[str]] = (),
    ) -> None:
        super().__init__(seed, factories, groups)
        self.rng = random.Random(seed)
        self.arrival: dict[tuple[Address, Address], float] = {}
        """The time at which the last message from one actor to another arrives, so that no later one overtakes it."""
        self.losing: set[tuple[str, str]] = set()
        """Pairs of sender and receiver whose next frame is lost."""
        self.outside: list[tuple[bytes, bytes]] = []
        """Frames of clients that wait for the public actor to come back."""
        self.closed: set[bytes] = set()
        """Connections that have ended."""
        self.unread: defaultdict[bytes, list[bytes]] = defaultdict(list)
        """The frames that have arrived at connections that are not read."""
        self.under_way: defaultdict[bytes, int] = defaultdict(int)
        """The number of messages that were sent to each connection and have not been read."""
        self.not_reading: set[bytes] = set()
        self.inbox: dict[bytes, list[bytes]] = {}
        """The frames that each connection has received."""
        self.public = ""
        """The actor that clients speak to."""
        self.kills: Callable[[str, Any], bool] = lambda name, message: False
        """Whether an actor dies of a message instead of handling it."""
        self.on_client: Callable[[bytes, bytes], None] = lambda client, frame: None
        self.wakes: dict[str, float] = {}
        self.expecting_gap: set[int] = set()
        """The incarnations to which a frame was lost: no other may find a gap."""
        self.start_all()

    def become_ready(self, name: str, epoch: int) -> None:
        super().become_ready(name, epoch)
        if name in self.actors and self.actors[name].endpoint is not None:
            self.public = name
            waiting, self.outside = self.outside, []
            for client, frame in waiting:
                self.arrive_from_client(client, frame)

    def end_incarnation(self, name: str) -> None:
        super().end_incarnation(name)
        self.wakes.pop(name, None)

    def lose(self, sender: str, to: str) -> None:
        """Lose the next frame from one actor to another."""
        self.losing.add((sender, to))

    # --- messages ---------------------------------------------------------------------------------

    def turn(self, name: str, sender: Address, message: Any) -> None:
        if self.kills(name, message):
            self.crash(name, RESTART_S, own_fault=True)
        actor = self.actors.get(name) or self.starting.get(name)
        if actor is None:
            return
        self.turns += 1
        self.deliver(name, actor.receive(sender, message, self.now))
        self.schedule(name, actor)

    def deliver(self, name: str, sends: list[Send]) -> None:
        links = self.links[name]
        blocked: set[bytes] = set()
        for to, message in sends:
            if isinstance(to, bytes):
                if to in blocked:  # nothing overtakes what could not be sent
                    self.turn(name, b"", ClientBlocked(to, message))
                elif not self.deliver_to_client(name, to, message):
                    blocked.add(to)
            elif to == name:
                self.turn(name, to, message)
            elif isinstance(to, str) and to in links.peers and (to in self.actors or to in self.starting):
                frame = links.seal(to, message)
                epoch = links.peers[to]
                if (name, to) in self.losing:
                    self.losing.remove((name, to))
                    self.expecting_gap.add(epoch)
                    self.after(NO_PROGRESS_S, lambda to=to, epoch=epoch: self.end(to, epoch))
                    continue
                self.travel(
                    name, to, lambda to=to, frame=frame, epoch=epoch: self.reach_actor(to, epoch, frame)
                )

    def deliver_to_client(self, name: str, client: bytes, message: Any) -> bool:
        """Send to a client; returns False if it does not read, and the actor gets ``ClientBlocked``."""
        if client in self.closed:
            self.turn(name, b"", ClientGone(client))
            return True
        if self.under_way[client] >= self.client_messages:
            self.turn(name, b"", ClientBlocked(client, message))
            return False
        self.under_way[client] += 1
        frame = encode(message)
        self.travel(name, client, lambda: self.reach_client(client, frame))
        return True

    def travel(self, sender: Address, to: Address, arrive: Callable[[], None]) -> None:
        edge = (sender, to)
        time = max(self.now + self.rng.random() * MAX_DELAY_S, self.arrival.get(edge, 0.0))
        self.arrival[edge] = time
        epoch = self.links[sender].epoch if isinstance(sender, str) else 0

        def arrive_if_sent() -> None:
            if self.now <= self.last_words.get(epoch, self.now):
                arrive()

        self.at(time, arrive_if_sent)

    def reach_actor(self, to: str, epoch: int, frame: bytes | bytearray) -> None:
        """A mailbox belongs to one incarnation: what was meant for a dead one is lost."""
        links = self.links[to]
        if links.epoch != epoch or self.later(to, lambda: self.reach_actor(to, epoch, frame)):
            return
        if to not in self.actors:
            return
        self.take_in_news(to)
        try:
            opened = links.open(frame)
        except LostMessage:
            if epoch not in self.expecting_gap:
                raise
            self.crash(to, RESTART_S)
            return
        for sender, message in opened:
            if self.deaths.crashed(to):
                self.turn_by_turn(to, sender, message)
            else:
                self.turn(to, sender, message)

    def turn_by_turn(self, name: str, sender: Address, message: Any) -> None:
        """Have an actor handle a message request by request."""
        if name not in self.actors:
            return
        for digest, part in self.actors[name].parts(message):
            self.in_hand[name] = digest
            self.turn(name, sender, part)
            if name not in self.actors:
                return
            self.in_hand.pop(name, None)

    def end(self, name: str, epoch: int) -> None:
        """End an incarnation that makes no progress, as the supervisor would."""
        if name in self.actors and self.links[name].epoch == epoch:
            self.crash(name, RESTART_S)

    # --- clients ----------------------------------------------------------------------------------

    def say(self, client: bytes, message: Any) -> None:
        """A client sends a public message, over its connection."""
        self.arrive_from_client(client, encode_from_client(message))

    def arrive_from_client(self, client: bytes, frame: bytes) -> None:
        """Carry a frame of a client. It waits while its receiver is down, and is lost if the receiver dies while it is
        on its way."""
        public = self.public
        if public not in self.actors:
            self.outside.append((client, frame))
            return
        epoch = self.links[public].epoch
        self.travel(client, public, lambda: self.reach_public(client, epoch, frame))

    def reach_public(self, client: bytes, epoch: int, frame: bytes) -> None:
        """Handle a client's message as a host does."""
        name = self.public
        if name not in self.actors or self.links[name].epoch != epoch or client in self.closed:
            return
        if self.later(name, lambda: self.reach_public(client, epoch, frame)):
            return
        self.take_in_news(name)
        message = decode_from_client(frame)
        digest = digest_of(message)
        if self.deaths.is_quarantined(digest):
            refusal = Error(code="quarantined", message="not tried again", id=request_id(frame))
            self.deliver_to_client(name, client, refusal)
            return
        self.in_hand[name] = digest
        self.turn(name, client, ClientMessage(client, message))
        self.in_hand.pop(name, None)

    def reach_client(self, client: bytes, frame: bytes) -> None:
        if client in self.closed:
            return
        if client in self.not_reading:
            self.unread[client].append(frame)
            return
        self.under_way[client] -= 1
        self.inbox.setdefault(client, []).append(frame)
        self.on_client(client, frame)

    def stop_reading(self, client: bytes, seconds: float) -> None:
        """Have the client read nothing from its connection for a while."""
        self.not_reading.add(client)
        self.after(seconds, lambda: self.resume_reading(client))

    def resume_reading(self, client: bytes) -> None:
        self.not_reading.discard(client)
        for frame in self.unread.pop(client, ()):
            self.reach_client(client, frame)

    def close(self, client: bytes) -> None:
        """End the connection; what is on its way in either direction is lost."""
        self.closed.add(client)
        self.unread.pop(client, None)
        self.outside = [(other, frame) for other, frame in self.outside if other != client]

    # --- time -------------------------------------------------------------------------------------

    def schedule(self, name: str, actor: Actor) -> None:
        """Schedule the actor's own timer, and the next completion of its device."""
        due = [actor.wake_at] if actor.wake_at is not None else []
        completion = actor.next_completion()
        if completion is not None:
            due.append(completion)
        if due and min(due) != self.wakes.get(name):
            self.wakes[name] = time = max(self.now, min(due))
            self.at(time, lambda: self.wake(name, actor))

    def wake(self, name: str, actor: Actor) -> None:
        living = self.actors.get(name) or self.starting.get(name)
        if living is not actor or self.later(name, lambda: self.wake(name, actor)):
            return
        self.wakes.pop(name, None)
        completion = actor.next_completion()
        if completion is not None and completion <= self.now:
            self.turn(name, "device", Completed())
        if actor.wake_at is not None and actor.wake_at <= self.now:
            self.deliver(name, actor.wake(self.now))
        self.schedule(name, actor)
