"""Why two rooms and no flag are enough: the protocol of a channel as a model, whose writes arrive in any order.

Each rank is a generator that the scheduler of a run advances one access at a time. What it writes is under way until
the scheduler has it arrive, at any time before the rank's kernel ends; only writes of a rank to one place keep their
order. A fault planted in any step of the argument in ``kernels.py`` is found.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

import pytest

RUNS = 300
SUMS = 8
WORDS = 3

Word = tuple[int, int, int]
"""Of which sum, from which rank, at which place."""


class Place(NamedTuple):
    """In the memory of ``rank``: where ``sender``'s word ``word`` comes into one of the two rooms."""

    rank: int
    room: int
    sender: int
    word: int


class Broken(Exception):
    """A rank has summed what is not of this sum, or waits for ever."""


class Model:
    """All ranks' memory, and what is on its way there."""

    def __init__(self, size: int, seed: int, fault: str) -> None:
        self.size, self.fault = size, fault
        self.rng = random.Random(seed)
        self.memory: dict[Place, Word] = {}
        """What is not empty."""
        self.under_way: dict[int, list[tuple[Place, Word | None]]] = {rank: [] for rank in range(size)}
        """Of each rank, what it has written; None empties."""
        self.sizes = [self.rng.randint(1, WORDS) for _ in range(SUMS)]
        self.summed = [0] * size

    def write(self, rank: int, place: Place, word: Word | None) -> None:
        self.under_way[rank].append((place, word))

    def arrive(self, rank: int) -> None:
        """Let a write of ``rank`` arrive that is the first to its place."""
        writes = self.under_way[rank]
        places = [place for place, _ in writes]
        chosen = self.rng.choice([n for n, place in enumerate(places) if place not in places[:n]])
        place, word = writes.pop(chosen)
        if word is None:
            self.memory.pop(place, None)
        else:
            self.memory[place] = word

    def kernels(self, rank: int) -> Iterator[bool]:
        """The sums of one rank, access by access; True while it comes no further."""
        turn, fault = 0, self.fault
        others = [other for other in range(self.size) if other != rank]
        for number, words in enumerate(self.sizes):
            if fault == "emptied a sum later" and number:
                for other in others:
                    for word in range(self.sizes[number - 1]):
                        self.write(rank, Place(rank, 1 - turn, other, word), None)
            for other in others:
                for word in range(words):
                    sent = (number, rank, word)
                    if fault == "a word is empty" and sent == (5, 0, 0):
                        continue
                    self.write(rank, Place(other, turn, rank, word), sent)
                    yield False
            for other in others:
                places = [Place(rank, turn, other, word) for word in range(words)]
                if fault == "emptied before it is read":
                    for place in places:
                        self.write(rank, place, None)
                looked_at = places[:1] if fault == "one word is looked at" else places
                while not all(place in self.memory for place in looked_at):
                    yield True
                for word, place in enumerate(places):
                    if self.memory.get(place) != (number, other, word):
                        raise Broken(f"sum {number} on rank {rank}: {self.memory.get(place)}")
                    if fault not in ("never emptied", "emptied a sum later", "emptied before it is read"):
                        self.write(rank, place, None)
                    yield False
            self.summed[rank] += 1
            while fault != "the next kernel comes too early" and self.under_way[rank]:
                yield True
            if fault == "one rank keeps its turn" and rank == 1 and number == 3:
                continue
            turn = turn if fault == "one room" else 1 - turn

    def run(self) -> None:
        ranks = {rank: self.kernels(rank) for rank in range(self.size)}
        waiting: set[int] = set()
        while ranks:
            able = [("go on", rank) for rank in ranks if rank not in waiting]
            able += [("arrive", rank) for rank, writes in self.under_way.items() if writes]
            if not able:
                raise Broken(f"all wait for ever, in sums {self.summed}")
            what, rank = self.rng.choice(able)
            if what == "arrive":
                self.arrive(rank)
                waiting.clear()
                continue
            held_up = next(ranks[rank], None)
            if held_up is None:
                del ranks[rank]
            elif held_up:
                waiting.add(rank)
        if self.memory:
            raise Broken("words are left behind")


@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_rank_sums_what_belongs_together_and_leaves_nothing(size: int) -> None:
    for seed in range(RUNS):
        model = Model(size, seed, fault="")
        model.run()
        assert model.summed == [SUMS] * size


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(
    "fault",
    [
        "one room",
        "never emptied",
        "emptied a sum later",
        "emptied before it is read",
        "one word is looked at",
        "a word is empty",
        "the next kernel comes too early",
        "one rank keeps its turn",
    ],
)
def test_a_protocol_that_is_wrong_in_one_step_breaks(fault: str, size: int) -> None:
    broken = 0
    for seed in range(RUNS):
        try:
            Model(size, seed, fault).run()
        except Broken:
            broken += 1
    assert broken
