"""The simulator: all actors in one thread, virtual time, one seed.

It runs the production actors themselves. Messages take a random time, and stay in order between two
ends; an actor can crash at any instant, which loses its state and what it had not yet handed to the
system; it can stand still for a while; a frame between two living actors can vanish, which its
receiver notices; and a client's connection can break or not be read. A new incarnation takes the
place of what crashed. A run is a function of its seed: a failure is one number.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from ..protocol.codec import decode_from_client, encode, encode_from_client, request_id
from ..protocol.digest import digest_of
from ..protocol.events import ClientBlocked, ClientGone, ClientMessage, Completed, PeerDown, PeerUp
from ..protocol.messages import Error
from .actor import Actor, Address, Send
from .links import Links, LostMessage

MAX_DELAY_S = 0.002
"""Longest time that a message is on its way: a few steps, so that messages of different actors overtake each other."""

RESTART_S = 0.005
"""Time that an actor which the simulator ends is away: longer than a message is on its way, so that some are lost with
it."""

NO_PROGRESS_S = 0.2
"""When a receiver is ended that lost a frame, and gets no later one that would show the gap."""


class Simulator:
    """A world of actors; ``factories`` build the first and every later incarnation of each."""

    client_messages = 64
    """Most messages on their way to one client that does not read; then the public actor gets ``ClientBlocked``."""

    def __init__(
        self,
        seed: int,
        factories: dict[str, Callable[[Simulator], Actor]],
        groups: Sequence[Sequence[str]] = (),
    ) -> None:
        """``groups``: actors that crash together and start together, in this order."""
        self.rng = random.Random(seed)
        self.news_rng = random.Random(~seed)
        """How long news takes; apart, so that it does not shift the load that a seed stands for."""
        self.factories = factories
        self.groups = groups
        self.now = 0.0
        self.order = 0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.actors: dict[str, Actor] = {}
        self.links: dict[str, Links] = {}
        self.epoch = 0
        self.arrival: dict[tuple[Address, Address], float] = {}
        """When the last message of each edge arrives: a later one does not overtake it."""
        self.last_words: dict[int, float] = {}
        """For each dead incarnation, until when what it sent still arrives; the rest died with it."""
        self.stands_still: dict[str, float] = {}
        """Actors that do nothing, and until when."""
        self.postponed: dict[str, list[Callable[[], None]]] = {}
        """What has come for them meanwhile, in its order."""
        self.losing: set[tuple[str, str]] = set()
        """Edges whose next frame vanishes."""
        self.outside: list[tuple[bytes, bytes]] = []
        """Frames of clients that wait for the public actor to come back."""
        self.closed: set[bytes] = set()
        """Connections that are no more."""
        self.unread: defaultdict[bytes, list[bytes]] = defaultdict(list)
        """What has arrived at connections that are not read."""
        self.under_way: defaultdict[bytes, int] = defaultdict(int)
        """Messages sent to each connection and not yet taken by it."""
        self.not_reading: set[bytes] = set()
        self.inbox: dict[bytes, list[bytes]] = {}
        """The frames that each connection has received."""
        self.news: dict[str, list[PeerUp | PeerDown]] = {}
        """News of deaths and of new incarnations that is on its way to each actor."""
        self.public = ""
        """The actor that clients speak to."""
        self.in_hand: dict[str, bytes] = {}
        """The digest of the client's request that an actor handles."""
        self.deaths_with: Counter[bytes] = Counter()
        """How many actors ended by their own fault with this in hand."""
        self.kills: Callable[[str, Any], bool] = lambda name, message: False
        """Whether an actor dies of a message instead of handling it."""
        self.on_client: Callable[[bytes, bytes], None] = lambda client, frame: None
        self.wakes: dict[str, float] = {}
        self.turns = 0
        """Messages that actors have handled."""
        self.crashed: dict[str, bool] = {}
        """Whether the last incarnation of each ended by its own fault, which the next one is to know."""
        self.careful: set[str] = set()
        """Actors whose last incarnation did: of them it is noted which request they have in hand."""
        self.expecting_gap: set[int] = set()
        """Incarnations that a frame was lost on the way to: no other may find a gap."""
        for name in factories:
            self.start(name)

    def clock_ns(self) -> int:
        return round(self.now * 1e9)

    def at(self, time: float, event: Callable[[], None]) -> None:
        self.order += 1
        heapq.heappush(self.events, (time, self.order, event))

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        self.at(self.now + seconds, event)

    # --- life and death ---------------------------------------------------------------------------

    def start(self, name: str) -> None:
        """A new incarnation, and the news of it to all others.

        As with a real host, it knows all others at once, and may send to them before they hear of it;
        the news may take a while, but they take it in before they handle anything else.
        """
        self.epoch += 1
        if self.crashed.get(name):
            self.careful.add(name)
        else:
            self.careful.discard(name)
        self.actors[name] = self.factories[name](self)
        if self.actors[name].endpoint is not None:
            self.public = name
        self.links[name] = links = Links(name, self.epoch)
        self.wakes.pop(name, None)
        self.news[name] = []
        for other in self.factories:
            if other != name and other in self.actors:
                self.introduce(links, other, self.links[other].epoch)
        self.after(self.news_rng.random() * MAX_DELAY_S, lambda epoch=self.epoch: self.send_news(name, epoch))
        if name == self.public:
            waiting, self.outside = self.outside, []
            for client, frame in waiting:
                self.arrive_from_client(client, frame)

    def send_news(self, name: str, epoch: int) -> None:
        """The supervisor sends the news to all others, to the gateway last, which is the last of the list."""
        for other in self.factories:
            if other != name and other in self.actors:
                self.news[other].append(PeerUp(name, epoch))
                self.after(self.news_rng.random() * MAX_DELAY_S, lambda other=other: self.take_in_news(other))

    def take_in_news(self, name: str) -> None:
        """The actor takes in the news of new incarnations."""
        if name in self.actors and not self.later(name, lambda: self.take_in_news(name)):
            heard, self.news[name] = self.news[name], []
            for peer in heard:
                if isinstance(peer, PeerUp):
                    self.introduce(self.links[name], peer.name, peer.epoch)
                else:
                    self.turn(name, peer.name, peer)

    def introduce(self, links: Links, name: str, epoch: int) -> None:
        if links.peer_up(name, epoch):
            self.turn(links.name, name, PeerUp(name, epoch))

    def crash(self, name: str, restart_after_s: float, *, own_fault: bool = False) -> None:
        """The actor is gone, with its state and its group; a new one comes."""
        for member in next((group for group in self.groups if name in group), (name,)):
            self.crash_alone(member, restart_after_s, own_fault)

    def crash_alone(self, name: str, restart_after_s: float, own_fault: bool) -> None:
        if name in self.actors:
            self.crashed[name] = own_fault
            self.deaths_with[self.in_hand.pop(name, b"")] += own_fault
            del self.actors[name]
            for other in self.actors:
                self.news[other].append(PeerDown(name, own_fault))
                self.after(self.news_rng.random() * MAX_DELAY_S, lambda other=other: self.take_in_news(other))
            self.stands_still.pop(name, None)
            self.postponed.pop(name, None)
            self.last_words[self.links[name].epoch] = self.now + self.news_rng.random() * MAX_DELAY_S
            self.restart(name, restart_after_s)

    def restart(self, name: str, after_s: float) -> None:
        """The next incarnation comes after a while."""
        self.after(after_s, lambda: self.start(name))

    def stand_still(self, name: str, seconds: float) -> None:
        """The actor does nothing for a while, as if stopped; what comes for it waits."""
        if name in self.actors:
            self.stands_still[name] = until = max(self.now + seconds, self.stands_still.get(name, 0.0))
            self.postponed.setdefault(name, [])
            self.at(until, lambda: self.go_on(name))

    def go_on(self, name: str) -> None:
        """An actor that stood still handles what has come meanwhile, unless it has to stand still for longer."""
        if self.stands_still.get(name, float("inf")) <= self.now:
            del self.stands_still[name]
            for event in self.postponed.pop(name):
                event()

    def later(self, name: str, event: Callable[[], None]) -> bool:
        """True if the actor stands still; ``event`` then comes when it goes on."""
        if name not in self.stands_still:
            return False
        self.postponed[name].append(event)
        return True

    def lose(self, sender: str, to: str) -> None:
        """The next frame of the edge vanishes."""
        self.losing.add((sender, to))

    # --- messages ---------------------------------------------------------------------------------

    def turn(self, name: str, sender: Address, message: Any) -> None:
        """One actor handles one message."""
        if self.kills(name, message):
            self.crash(name, RESTART_S, own_fault=True)
        if name not in self.actors:
            return
        actor = self.actors[name]
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
            elif isinstance(to, str) and to in self.actors and to in links.peers:
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
        """False if it does not read; the actor gets ``ClientBlocked``."""
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
        if to not in self.actors or links.epoch != epoch:
            return
        if self.later(to, lambda: self.reach_actor(to, epoch, frame)):
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
            if to in self.careful:
                self.turn_by_turn(to, sender, message)
            else:
                self.turn(to, sender, message)

    def turn_by_turn(self, name: str, sender: Address, message: Any) -> None:
        """One actor handles one message, one request after the other."""
        if name not in self.actors:
            return
        for digest, part in self.actors[name].parts(message):
            self.in_hand[name] = digest
            self.turn(name, sender, part)
            if name not in self.actors:
                return
            self.in_hand.pop(name, None)

    def end(self, name: str, epoch: int) -> None:
        """The supervisor's answer to an incarnation that makes no progress."""
        if name in self.actors and self.links[name].epoch == epoch:
            self.crash(name, RESTART_S)

    # --- clients ----------------------------------------------------------------------------------

    def say(self, client: bytes, message: Any) -> None:
        """A client sends a public message, over its connection."""
        self.arrive_from_client(client, encode_from_client(message))

    def arrive_from_client(self, client: bytes, frame: bytes) -> None:
        """A frame of a client; it waits while its receiver is down, and is lost with one that it is on its way to."""
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
        if digest and self.deaths_with[digest] > 1:
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
        """The client takes nothing from its connection for a while."""
        self.not_reading.add(client)
        self.after(seconds, lambda: self.resume_reading(client))

    def resume_reading(self, client: bytes) -> None:
        self.not_reading.discard(client)
        for frame in self.unread.pop(client, ()):
            self.reach_client(client, frame)

    def close(self, client: bytes) -> None:
        """The connection ends; what is on its way, either way, is lost."""
        self.closed.add(client)
        self.unread.pop(client, None)
        self.outside = [(other, frame) for other, frame in self.outside if other != client]

    # --- time -------------------------------------------------------------------------------------

    def schedule(self, name: str, actor: Actor) -> None:
        """The actor's own wake, and the next completion of its device."""
        due = [actor.wake_at] if actor.wake_at is not None else []
        completion = actor.next_completion()
        if completion is not None:
            due.append(completion)
        if due and min(due) != self.wakes.get(name):
            self.wakes[name] = time = max(self.now, min(due))
            self.at(time, lambda: self.wake(name, actor))

    def wake(self, name: str, actor: Actor) -> None:
        if self.actors.get(name) is not actor or self.later(name, lambda: self.wake(name, actor)):
            return
        self.wakes.pop(name, None)
        completion = actor.next_completion()
        if completion is not None and completion <= self.now:
            self.turn(name, "device", Completed())
        if actor.wake_at is not None and actor.wake_at <= self.now:
            self.deliver(name, actor.wake(self.now))
        self.schedule(name, actor)

    def run(
        self, until: Callable[[], bool], most_turns: int = 10_000_000, most_s: float = float("inf")
    ) -> None:
        """Let time pass until ``until``; ``AssertionError`` if that does not come.

        It does not if nothing happens any more, or after ``most_turns`` messages, or ``most_s`` seconds of
        virtual time.
        """
        begun, deadline = self.turns, self.now + most_s
        while not until():
            if not self.events:
                raise AssertionError(f"nothing happens any more at {self.now:.6f} s")
            if self.turns - begun > most_turns:
                raise AssertionError(f"not over after {most_turns} messages")
            if self.now > deadline:
                raise AssertionError(f"not over after {most_s:g} s")
            self.now, _, event = heapq.heappop(self.events)
            event()
