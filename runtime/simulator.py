"""The simulator: all actors in one thread, virtual time, one seed.

It runs the production actors themselves. Messages take a random time, and stay in order between two
actors; an actor can crash at any instant, which loses its state and whatever is on its way to or from
it, and a new incarnation takes its place. A run is a function of its seed: a failure is one number.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any

from ..protocol.messages import ClientMessage, Completed, PeerUp
from .actor import Actor, Address, Send
from .links import Links

MAX_DELAY_S = 0.002
"""Longest time that a message is on its way."""


class Simulator:
    """A world of actors; ``factories`` build the first and every later incarnation of each."""

    def __init__(self, seed: int, factories: dict[str, Callable[[Simulator], Actor]]) -> None:
        self.rng = random.Random(seed)
        self.gossip = random.Random(~seed)
        """How long news takes; apart, so that it does not shift the load that a seed stands for."""
        self.factories = factories
        self.now = 0.0
        self.order = 0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.actors: dict[str, Actor] = {}
        self.links: dict[str, Links] = {}
        self.epoch = 0
        self.arrival: dict[tuple[Address, Address], float] = {}
        """When the last message of each edge arrives: a later one does not overtake it."""
        self.inbox: dict[bytes, list[Any]] = {}
        """What each client has received."""
        self.news: dict[str, list[tuple[str, int]]] = {}
        """New incarnations that each actor has been told of and has not yet heard."""
        self.on_client: Callable[[bytes, Any], None] = lambda client, message: None
        self.wakes: dict[str, float] = {}
        self.turns = 0
        """Messages that actors have handled."""
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

        As with a real host, it may take them a while to hear it, but they hear it before they handle
        anything else.
        """
        self.epoch += 1
        self.actors[name] = self.factories[name](self)
        self.links[name] = links = Links(name, self.epoch)
        self.wakes.pop(name, None)
        self.news[name] = []
        for other in self.factories:  # in the order of the list: the gateway hears last
            if other != name and other in self.actors:
                self.introduce(links, other, self.links[other].epoch)
                self.news[other].append((name, self.epoch))
                self.after(self.gossip.random() * MAX_DELAY_S, lambda other=other: self.take_in_news(other))

    def take_in_news(self, name: str) -> None:
        """The actor takes in what it has been told of new incarnations."""
        if name in self.actors:
            heard, self.news[name] = self.news[name], []
            for other, epoch in heard:
                self.introduce(self.links[name], other, epoch)

    def introduce(self, links: Links, name: str, epoch: int) -> None:
        if links.peer_up(name, epoch):
            self.turn(links.name, name, PeerUp(name, epoch))

    def crash(self, name: str, restart_after_s: float) -> None:
        """The actor is gone, with its state; a new one comes."""
        if name in self.actors:
            del self.actors[name]
            self.after(restart_after_s, lambda: self.start(name))

    # --- messages ---------------------------------------------------------------------------------

    def turn(self, name: str, sender: Address, message: Any) -> None:
        """One actor handles one message."""
        actor = self.actors[name]
        self.turns += 1
        self.deliver(name, actor.receive(sender, message, self.now))
        self.schedule(name, actor)

    def deliver(self, name: str, sends: list[Send]) -> None:
        links = self.links[name]
        for to, message in sends:
            if isinstance(to, bytes):
                self.travel(name, to, lambda to=to, message=message: self.reach_client(to, message))
            elif to in self.actors and to in links.peers:
                frame = links.seal(to, message)
                epoch = links.peers[to]
                self.travel(
                    name, to, lambda to=to, frame=frame, epoch=epoch: self.reach_actor(to, epoch, frame)
                )

    def travel(self, sender: Address, to: Address, arrive: Callable[[], None]) -> None:
        edge = (sender, to)
        time = max(self.now + self.rng.random() * MAX_DELAY_S, self.arrival.get(edge, 0.0))
        self.arrival[edge] = time
        self.at(time, arrive)

    def reach_actor(self, to: str, epoch: int, frame: bytes) -> None:
        """A mailbox belongs to one incarnation: what was meant for a dead one is lost."""
        links = self.links[to]
        if to not in self.actors or links.epoch != epoch:
            return
        self.take_in_news(to)
        for sender, message in links.open(frame):
            self.turn(to, sender, message)

    def reach_client(self, client: bytes, message: Any) -> None:
        self.inbox.setdefault(client, []).append(message)
        self.on_client(client, message)

    def say(self, client: bytes, message: Any) -> None:
        """A client sends a public message to the gateway."""

        def arrive() -> None:
            if "gateway" in self.actors:
                self.turn("gateway", client, ClientMessage(client, message))

        self.travel(client, "gateway", arrive)

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
        if self.actors.get(name) is not actor:
            return
        self.wakes.pop(name, None)
        completion = actor.next_completion()
        if completion is not None and completion <= self.now:
            self.turn(name, "device", Completed())
        if actor.wake_at is not None and actor.wake_at <= self.now:
            self.deliver(name, actor.wake(self.now))
        self.schedule(name, actor)

    def run(self, until: Callable[[], bool], most_turns: int = 10_000_000) -> None:
        """Let time pass until ``until``; ``AssertionError`` if nothing happens any more before that."""
        begun = self.turns
        while not until():
            if not self.events:
                raise AssertionError(f"nothing happens any more at {self.now:.6f} s")
            if self.turns - begun > most_turns:
                raise AssertionError(f"not over after {most_turns} messages")
            self.now, _, event = heapq.heappop(self.events)
            event()
