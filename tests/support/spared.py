"""The life of an executor and its spares in virtual time: both die at any instant, and starts fail.

Who decides is the production `Spares`; what it says is carried out here, and held to what a supervisor needs of it.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

from chaos import Chaos
from slipstream.runtime.simulator import Simulator
from slipstream.runtime.supervision.helper_restarts import FIRST_PAUSE_S, MAX_PAUSE_S
from slipstream.runtime.supervision.spares import Spares

FORK_S, START_S = 0.002, 0.05
"""Until an executor is there that was forked, or started from nothing."""

PREPARE_S = 0.1
"""Until a spare is ready, at most."""

RETRY_S = 0.001


class SpareLife:
    """An executor and its spares. ``up`` is called when an incarnation of the executor is ready."""

    def __init__(
        self, world: Simulator, rng: random.Random, up: Callable[[], None], *, from_the_first: bool
    ) -> None:
        self.world, self.rng, self.up = world, rng, up
        self.spares = Spares(from_the_first=from_the_first)
        self.spare = 0
        """The number of the spare process that runs; 0: none."""
        self.spare_ready = False
        self.spare_broken = False
        """What is forked from it cannot start."""
        self.spare_begun = self.spare_ended = -MAX_PAUSE_S
        self.first = True
        self.waits = False
        self.executor: str | None = None
        """``starting``, ``ready``, or None: there is none."""
        self.life = 0
        """Of the executor."""
        self.forked_from: int | None = None
        self.failed_forks: Counter[int] = Counter()
        self.sources: Counter[str] = Counter()
        self.short_lives = 0
        """Spares in a row that did not last."""

    @property
    def whole(self) -> bool:
        """There is an executor, and a spare beside it."""
        return self.executor == "ready" and self.spare_ready

    # --- what a supervisor does -----------------------------------------------------------------------

    def begin(self) -> None:
        """The service starts."""
        self.look()
        assert self.spare or not self.spares.from_the_first, "the first spare is not started"
        self.start_executor()

    def look(self) -> None:
        """Start a spare if it is time, or come again then."""
        whole = self.executor == "ready"
        due = self.spares.due(serving=not self.first, whole=whole)
        if due is None:
            return
        if due > self.world.now:
            self.world.at(due, self.look)
            return
        assert not self.spare, "there is a spare already"
        assert whole or self.first, "a spare is started while streams wait"
        if self.spare_ended > 0:
            least = min(MAX_PAUSE_S, FIRST_PAUSE_S * 2 ** (self.short_lives - 1))
            assert self.world.now >= self.spare_ended + least - 1e-9, (
                "spares that do not last are started too often"
            )
        self.spares.on_start()
        self.spare, self.spare_ready = self.spares.number, False
        assert not self.failed_forks[self.spare], "a spare has the number of one that was not trusted"
        self.spare_begun, self.spare_broken = self.world.now, self.rng.random() < 0.3
        number = self.spare
        if self.rng.random() < 0.2:
            self.world.after(self.rng.random() * PREPARE_S, lambda: self.end_spare(number))
        else:
            self.world.after(self.rng.random() * PREPARE_S, lambda: self.prepared(number))

    def prepared(self, number: int) -> None:
        if self.spare == number:
            self.spare_ready = True
            self.spares.on_ready(self.world.now)
            self.waited_for()

    def end_spare(self, number: int) -> None:
        """It dies, or is ended."""
        if self.spare != number or not number:
            return
        lasted = self.spare_ready and self.world.now - self.spare_begun >= 60.0
        self.short_lives = 1 if lasted else self.short_lives + 1
        self.spare, self.spare_ready, self.spare_ended = 0, False, self.world.now
        self.spares.on_death(self.world.now)
        self.waited_for()
        self.look()

    def waited_for(self) -> None:
        """The first executor waits no longer."""
        if self.waits:
            self.waits = False
            self.start_executor()

    def start_executor(self) -> None:
        assert self.executor is None, "there are two executors"
        source = self.spares.source(first=self.first)
        if source == "later":
            assert self.first, "streams wait for a spare that is not ready"
            self.waits = True
            return
        self.sources[source] += 1
        self.executor = "starting"
        self.life += 1
        life, takes = self.life, START_S
        self.forked_from = None
        if source == "spare":
            assert self.spare_ready, "an executor is forked from what does not wait"
            self.forked_from, takes = self.spare, FORK_S
            if self.spare_broken:
                self.world.after(FORK_S / 2, lambda: self.fails(life))
                return
        self.world.after(takes, lambda: self.comes_up(life))

    def fails(self, life: int) -> None:
        """A fork that cannot start."""
        if self.life == life and self.executor == "starting":
            assert self.forked_from is not None
            self.failed_forks[self.forked_from] += 1
            assert self.failed_forks[self.forked_from] == 1, (
                "a spare whose fork could not start is used again"
            )
            self.dies(own_fault=True, after_s=RETRY_S)

    def comes_up(self, life: int) -> None:
        if self.life == life and self.executor == "starting":
            self.executor, self.first = "ready", False
            self.up()
            self.look()

    def dies(self, *, own_fault: bool, after_s: float) -> None:
        """The executor does; the next one comes."""
        if self.executor is None:
            return
        was_ready, number = self.executor == "ready", self.forked_from
        self.executor = None
        if number is not None and self.spares.is_to_blame(was_ready=was_ready, own_fault=own_fault):
            assert self.spare == number, "a spare is ended for the fork of another"
            assert not was_ready, "a spare is ended for what a request did"
            assert own_fault, "a spare is ended for a kill from outside"
            self.end_spare(number)
        self.world.after(after_s, self.start_executor)


def live(seed: int) -> SpareLife:
    """One life: deaths at random instants, and then peace, in which all is whole again with a spare that waits."""
    world, rng = Simulator(seed, {}), random.Random(seed)
    life = SpareLife(world, rng, lambda: None, from_the_first=rng.random() < 0.5)
    world.at(0.0, life.begin)
    for _ in range(rng.randrange(1, 12)):
        when = rng.random() * rng.choice([0.2, 5.0, 200.0])
        own_fault, after_s = rng.random() < 0.5, rng.choice([0.0, 0.02])
        kind = rng.choice(["executor", "spare", "both"])
        if kind != "spare":
            world.at(when, lambda f=own_fault, a=after_s: life.dies(own_fault=f, after_s=a))
        if kind != "executor":
            world.at(when, lambda: life.end_spare(life.spare))
    peace = 210.0
    world.at(peace, lambda: None)
    world.run(lambda: world.now >= peace)
    for _ in range(20):  # spares that cannot start, or are broken, are followed by others
        world.at(world.now + 2 * MAX_PAUSE_S, lambda: None)
        until = world.now + 2 * MAX_PAUSE_S
        world.run(lambda until=until: life.whole or world.now >= until)
        if life.whole:
            return life
    raise AssertionError("no executor with a spare beside it, though nothing fails any more")


class SparedChaos(Chaos):
    """Everything fails, and executors are forked from a spare, which fails as well."""

    def __init__(self, seed: int, **options: object) -> None:
        self.life: SpareLife | None = None
        super().__init__(seed, **options)
        rng = random.Random(seed)
        self.life = SpareLife(self, rng, self.executor_is_up, from_the_first=False)
        self.life.executor, self.life.first = "ready", False
        self.life.look()
        self.life.prepared(self.life.spare)
        if rng.random() < 0.5:
            self.at(rng.random() * 0.3, lambda: self.life.end_spare(self.life.spare))  # type: ignore[union-attr]

    def executor_is_up(self) -> None:
        if "executor" not in self.actors:
            self.start("executor")

    def restart(self, name: str, after_s: float) -> None:
        if name != "executor" or self.life is None:
            super().restart(name, after_s)
        else:
            self.life.dies(own_fault=self.deaths.crashed("executor"), after_s=after_s)
