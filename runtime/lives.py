"""The lives of actors in virtual time: they start, become ready, stand still and crash, and the others hear of it.

A start takes time, in which an actor can crash again. The supervisor's own rule (`introductions`) decides which actors
it knows from the beginning; it hears of every other one when that is ready.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from ..protocol.events import PeerDown, PeerUp
from . import introductions
from .actor import Actor, Address
from .deaths import Deaths
from .links import Links
from .virtual_time import VirtualTime

MAX_DELAY_S = 0.002
"""Longest time that a message is on its way: a few steps, so that messages of different actors overtake each other."""

START_S = 0.03
"""Longest time from the beginning of a start to an actor's first message. Mostly it is a tenth of that, about as long
as a step. The actor is ready at most ``MAX_DELAY_S`` later."""


class Lives(VirtualTime, ABC):
    """The lives of all actors; ``factories`` build the first and every later incarnation of each."""

    def __init__(
        self, seed: int, factories: dict[str, Callable[[Any], Actor]], groups: Sequence[Sequence[str]]
    ) -> None:
        """``groups``: actors that crash together and start together, in this order."""
        super().__init__()
        self.life_rng = random.Random(~seed)
        """Draws how long starts and news take. It is separate, so that these draws do not change the load of a seed."""
        self.factories = factories
        self.groups = groups
        self.actors: dict[str, Actor] = {}
        """The actors that are ready."""
        self.starting: dict[str, Actor] = {}
        self.known: dict[str, list[PeerUp]] = {}
        """The peers that each starting actor knows from the beginning."""
        self.unheard: set[str] = set()
        """The actors that are ready, of which the supervisor has not heard yet."""
        self.links: dict[str, Links] = {}
        self.epoch = 0
        self.news: dict[str, list[PeerUp | PeerDown]] = {}
        """News of deaths and of new incarnations that is on its way to each actor."""
        self.stands_still: dict[str, float] = {}
        """Actors that are stopped, and until when."""
        self.postponed: dict[str, list[Callable[[], None]]] = {}
        """What has come for actors that are stopped or starting, in its order."""
        self.last_words: dict[int, float] = {}
        """For each dead incarnation, by its epoch, the time until which its messages still arrive; later ones are
        lost."""
        self.in_hand: dict[str, bytes] = {}
        """The digest of the client's request that an actor handles."""
        self.deaths = Deaths()

    def start_all(self) -> None:
        """The first incarnations are ready at once: with one that cannot start no service begins."""
        for name in self.factories:
            self.start(name)
            self.speak(name, self.epoch)
            self.become_ready(name, self.epoch)

    @abstractmethod
    def turn(self, name: str, sender: Address, message: Any) -> None:
        """One actor handles one message."""

    def start(self, name: str) -> None:
        """Begin a new incarnation; the supervisor's own rule decides which peers it knows."""
        self.epoch = epoch = self.epoch + 1
        self.known[name] = [
            PeerUp(other, self.links[other].epoch) for other in self.links if self.knows(name, other)
        ]
        self.starting[name] = self.factories[name](self)
        self.links[name] = Links(name, epoch)
        self.news[name], self.postponed[name] = [], []
        self.after(self.life_rng.random() ** 3 * START_S, lambda: self.speak(name, epoch))

    def knows(self, name: str, other: str) -> bool:
        return other != name and introductions.knows_at_once(
            running=other in self.actors or other in self.starting,
            ready=other in self.actors,
            same_group=any(name in group and other in group for group in self.groups),
        )

    def is_starting(self, name: str, epoch: int) -> bool:
        return name in self.starting and self.links[name].epoch == epoch

    def speak(self, name: str, epoch: int) -> None:
        """Let it send its first messages to the peers that it knows, before they or the supervisor hear that it is
        ready."""
        if self.is_starting(name, epoch):
            for peer in self.known[name]:
                self.introduce(self.links[name], peer.name, peer.epoch)
            self.after(self.life_rng.random() * MAX_DELAY_S, lambda: self.become_ready(name, epoch))

    def become_ready(self, name: str, epoch: int) -> None:
        """From now on it handles messages, beginning with those that have come meanwhile."""
        if not self.is_starting(name, epoch):
            return
        self.actors[name] = self.starting.pop(name)
        self.unheard.add(name)
        self.after(self.life_rng.random() * MAX_DELAY_S, lambda: self.hear_ready(name, epoch))
        self.take_in_news(name)
        for event in self.postponed.pop(name, ()):
            event()

    def hear_ready(self, name: str, epoch: int) -> None:
        """The supervisor hears that it is ready, and tells all others."""
        if name in self.unheard and self.links[name].epoch == epoch:
            self.unheard.remove(name)
            self.send_news(PeerUp(name, epoch))

    def send_news(self, news: PeerUp | PeerDown) -> None:
        """Send news to all others; the gateway is the last of the list. The news may take a while, but each takes it in
        before it handles anything else."""
        for other in self.factories:
            if other != news.name and (other in self.actors or other in self.starting):
                self.news[other].append(news)
                self.after(self.life_rng.random() * MAX_DELAY_S, lambda other=other: self.take_in_news(other))

    def take_in_news(self, name: str) -> None:
        """The actor takes in the news of deaths and of new incarnations."""
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
        """End the actor, with its state and its group, and start new ones later.

        If one was not ready, nobody hears of the death, and it has had nothing in hand.
        """
        group = next((group for group in self.groups if name in group), (name,))
        members = [member for member in group if member in self.actors or member in self.starting]
        for member in members:  # the supervisor first reads what it has said
            self.hear_ready(member, self.links[member].epoch)
        were_ready = all(member in self.actors for member in members)
        for member in members:
            self.end_incarnation(member)
            if were_ready:
                self.deaths.note_death(member, own_fault, self.in_hand.pop(member, b""))
                self.send_news(PeerDown(member, own_fault))
            self.restart(member, restart_after_s)

    def end_incarnation(self, name: str) -> None:
        for state in (self.actors, self.starting, self.stands_still, self.postponed):
            state.pop(name, None)
        self.last_words[self.links[name].epoch] = self.now + self.life_rng.random() * MAX_DELAY_S

    def restart(self, name: str, after_s: float) -> None:
        """The next incarnation begins after a while."""
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
        """True if the actor stands still or is starting; ``event`` then comes when it goes on."""
        if name not in self.stands_still and name not in self.starting:
            return False
        self.postponed[name].append(event)
        return True
