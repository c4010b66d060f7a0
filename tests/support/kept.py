"""The life of a keeper and of two executors in virtual time: all die at any instant, and some weights are of no use.

What the keeper answers is the production `HeldFiles`, and when it comes again says the production `HelperRestarts`; who
asks is played here, and holds both to what weights need of them.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter

from slipstream.runtime.keeping import DONE, FETCH, FORGET, KEEP, REFUSED, HeldFiles
from slipstream.runtime.simulator import Simulator
from slipstream.runtime.supervision.helper_restarts import FIRST_PAUSE_S, MAX_PAUSE_S, HelperRestarts
from slipstream.runtime.supervision.restarts import PERIOD_S

NAMES = (b"executor", b"executor.1")
KEEPER_S = 0.02
"""Until a keeper is ready."""
LOAD_S, MAP_S = 0.5, 0.02
"""Until an executor is ready that loads its weights, or has them mapped."""
LOOK_S = 0.01
"""Between the tries of an executor for whom there is no keeper."""


class Executor:
    """One of two, by its present incarnation."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.life = 0
        self.ready = False
        self.weights: int | None = None
        """Which it has; each load makes others."""


class KeeperLife:
    """A keeper, and two executors whose weights it has."""

    def __init__(self, seed: int) -> None:
        self.world, self.rng = Simulator(seed, {}), random.Random(seed)
        self.states = HelperRestarts()
        self.held_files: HeldFiles | None = None
        self.open: dict[int, tuple[bytes, int, int]] = {}
        """Files that the keeper has open: whose, of which weights, and the place of each among them."""
        self.numbers = itertools.count(3)
        self.loads = itertools.count(1)
        self.sources: Counter[str] = Counter()
        self.executors = [Executor(name) for name in NAMES]
        self.keeper_ended = self.keeper_begun = -1.0
        self.short_lives = 0
        self.first = True

    # --- the keeper -----------------------------------------------------------------------------------

    def look(self) -> None:
        due = self.states.next_due()
        if due is None:
            return
        if due > self.world.now:
            self.world.at(due, self.look)
            return
        assert self.keeper_begun <= self.keeper_ended, "there is a keeper already"
        if self.keeper_ended >= 0:
            least = min(MAX_PAUSE_S, FIRST_PAUSE_S * (2 ** (self.short_lives - 1) - 1))
            paused = self.world.now - self.keeper_ended
            assert least - 1e-9 <= paused <= least + 1e-6, "a keeper comes too early, or later than it could"
        self.states.on_start()
        self.keeper_begun, number = self.world.now, self.states.number
        self.world.after(KEEPER_S, lambda: self.keeper_ready(number))

    def keeper_ready(self, number: int) -> None:
        if self.states.number == number and self.keeper_begun > self.keeper_ended:
            self.held_files = HeldFiles(self.closed)
            self.states.on_ready(self.world.now)

    def keeper_dies(self) -> None:
        if self.keeper_begun <= self.keeper_ended:
            return
        lasted = self.held_files is not None and self.world.now - self.keeper_begun - KEEPER_S >= PERIOD_S
        self.short_lives = 1 if lasted else self.short_lives + 1
        self.held_files, self.keeper_ended = None, self.world.now + 1e-9
        self.open.clear()
        self.states.on_death(self.keeper_ended)
        self.look_again()

    def look_again(self) -> None:
        self.world.after(2e-9, self.look)

    def closed(self, file: int) -> None:
        assert file in self.open, "a file is closed twice"
        del self.open[file]

    def ask(self, what: bytes, name: bytes, files: list[tuple[bytes, int, int]]) -> tuple[bytes, list[int]]:
        """Ask the keeper that there is."""
        assert self.held_files is not None
        given: list[int] = []
        for file in files:
            given.append(next(self.numbers))
            self.open[given[-1]] = file
        said, found = self.held_files.answer(what + b" " + name, given)
        held = sorted(file for kept in self.held_files.files.values() for file in kept)
        assert held == sorted(self.open), "a file is open that nobody keeps, or kept and not open"
        return said, found

    # --- an executor ----------------------------------------------------------------------------------

    def starts(self, executor: Executor) -> None:
        executor.life += 1
        executor.ready, executor.weights = False, None
        life = executor.life
        kept = None if self.held_files is None or executor.life == 1 else self.taken_over(executor)
        if kept is not None and self.rng.random() < 0.1:  # it is of no use
            said, _ = self.ask(FORGET, executor.name, [])
            assert said == DONE
            kept = None
        if kept is None and self.held_files is not None:
            assert all(owner != executor.name for owner, _, _ in self.open.values()), (
                "weights are loaded although others are kept: they are there twice"
            )
        self.sources["loaded" if kept is None else "kept"] += 1
        weights, takes = (next(self.loads), LOAD_S) if kept is None else (kept, MAP_S)
        self.world.after(takes, lambda: self.comes_up(executor, life, weights))

    def taken_over(self, executor: Executor) -> int | None:
        """Which weights the keeper has of it."""
        said, files = self.ask(FETCH, executor.name, [])
        assert said == DONE
        if not files:
            return None
        assert all(file in self.open for file in files), "what was handed over is closed"
        kept = [self.open[file] for file in files]
        assert {owner for owner, _, _ in kept} == {executor.name}, "it was handed the weights of another"
        assert len({weights for _, weights, _ in kept}) == 1, "it was handed parts of two loads"
        assert [place for _, _, place in kept] == list(range(self.pieces(kept[0][1]))), "a piece is missing"
        assert self.ask(FETCH, executor.name, [])[1] == files, "what is fetched is not kept any more"
        return kept[0][1]

    def pieces(self, weights: int) -> int:
        """A table, and some pieces of an arena."""
        return 2 + weights % 3

    def comes_up(self, executor: Executor, life: int, weights: int) -> None:
        if executor.life == life:
            executor.ready, executor.weights = True, weights
            self.hold(executor, life, -1)

    def hold(self, executor: Executor, life: int, held_by: int) -> None:
        """What its thread does: hand the files to each keeper."""
        if executor.life != life or executor.weights is None:
            return
        if self.held_files is not None and held_by != self.states.number:
            files = [
                (executor.name, executor.weights, place) for place in range(self.pieces(executor.weights))
            ]
            assert self.ask(KEEP, executor.name, files) == (DONE, [])
            held_by = self.states.number
        self.world.after(LOOK_S, lambda: self.hold(executor, life, held_by))

    def dies(self, executor: Executor) -> None:
        executor.life += 1
        executor.ready, executor.weights = False, None
        self.world.after(0.02, lambda life=executor.life: self.restarts(executor, life))

    def restarts(self, executor: Executor, life: int) -> None:
        if executor.life == life:
            self.look()  # as a supervisor does in every turn
            self.starts(executor)

    def stranger(self) -> None:
        """Somebody asks what makes no sense, or leaves files where they are not wanted."""
        if self.held_files is None:
            return
        odd = self.rng.choice([(b"burn", NAMES[0], 2), (KEEP, b"", 1), (KEEP, NAMES[0], 0), (b"", b"", 0)])
        what, name, files = odd
        before = {kept: list(own) for kept, own in self.held_files.files.items()}
        said, _ = self.ask(what, name, [(b"stranger", 0, place) for place in range(files)])
        assert said == REFUSED, "what makes no sense is done"
        self.ask(FETCH, NAMES[0], [(b"stranger", 0, 0)])
        assert self.held_files.files == before, "a stranger changed what is kept"

    # --- a life ---------------------------------------------------------------------------------------

    @property
    def whole(self) -> bool:
        """Both executors run, and the keeper has the weights of both."""
        kept = {(name, weights) for name, weights, _ in self.open.values()}
        return all(executor.ready for executor in self.executors) and kept == {
            (executor.name, executor.weights) for executor in self.executors
        }

    def wait(self, seconds: float, what: str) -> None:
        until = self.world.now + seconds
        self.world.at(until, lambda: None)
        self.world.run(lambda: self.whole or self.world.now >= until)
        assert self.whole, what


def live(seed: int) -> KeeperLife:
    """Deaths at random instants, and then peace, in which all is kept and found again."""
    life = KeeperLife(seed)
    rng = life.rng
    life.world.at(0.0, life.look)
    for executor in life.executors:
        life.world.at(0.001, lambda executor=executor: life.starts(executor))
    most = rng.choice([0.5, 3.0, 200.0])
    for _ in range(rng.randrange(1, 10)):
        when, executor = rng.random() * most, rng.choice(life.executors)
        kind = rng.choice(["executor", "executor", "keeper", "both", "stranger"])
        if kind in ("keeper", "both"):
            life.world.at(when, life.keeper_dies)
        if kind in ("executor", "both"):
            life.world.at(when, lambda executor=executor: life.dies(executor))
        if kind == "stranger":
            life.world.at(when, life.stranger)
    life.world.at(most, lambda: None)
    life.world.run(lambda: life.world.now >= most)
    life.wait(2 * MAX_PAUSE_S, "the weights are not kept, though nothing fails any more")
    life.rng = random.Random(1)  # of which the first is no tenth
    found = [executor.weights for executor in life.executors]
    for executor in life.executors:
        life.dies(executor)
    life.wait(1.0, "what was kept is not found again")
    assert [executor.weights for executor in life.executors] == found, (
        "weights that were kept are loaded anew"
    )
    return life
