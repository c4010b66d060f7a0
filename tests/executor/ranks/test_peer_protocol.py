"""Why two halves and no flag are enough: the protocol of the kernels as a model, whose writes arrive in any order.

Each program of each rank is a generator that a run advances one access at a time. What a program writes is under way
until the run lets it arrive, at any time before the kernel of its rank ends; only writes of a rank to one place keep
their order. Kernels have one program or several, and cut the same places differently. A program has sent a tile more
than it waits for, or all. A fault planted in any step of the argument in ``exchange_kernels.py`` is found.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

import pytest

RUNS = 400
SUMS = 8
PROGRAMS = 2
WORDS = 10
TILE = 2
AHEAD = (1, WORDS)
"""Tiles that the programs of a kernel send beyond the one that they wait for."""

Word = tuple[int, int, int]
"""Of which sum, from which rank, at which place."""


class Place(NamedTuple):
    """In the memory of ``rank``: where ``sender``'s word ``word`` comes into one of the two halves."""

    rank: int
    half: int
    sender: int
    word: int


class Broken(Exception):
    """A rank has summed what is not of this sum, or all wait for ever."""


class Model:
    """All ranks' memory, and what is on its way there."""

    def __init__(self, size: int, seed: int, fault: str) -> None:
        self.size, self.fault = size, fault
        self.rng = random.Random(seed)
        self.memory: dict[Place, Word] = {}
        """What is not empty."""
        self.under_way: list[list[tuple[Place, Word | None]]] = [[] for _ in range(size)]
        """Of each rank, what it has written; None empties."""
        self.sums = [(self.rng.randint(1, WORDS), self.rng.randint(1, PROGRAMS)) for _ in range(SUMS)]
        """Words and programs of each."""
        self.ahead = [-1 if fault == "waits before it sends" else self.rng.choice(AHEAD) for _ in range(SUMS)]
        self.current = [[0] * PROGRAMS for _ in range(size)]
        self.ended = [0] * size
        """Kernels of each rank."""

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

    def program(self, rank: int, program: int, number: int) -> Iterator[bool]:
        """One program of a kernel, access by access; True while it comes no further."""
        fault, write = self.fault, self.under_way[rank].append
        words, programs = self.sums[number]
        own = range(program, words, programs)
        others = [other for other in range(self.size) if other != rank]
        half = self.current[rank][program]
        if fault == "emptied a sum later" and number:
            for word in range(program, self.sums[number - 1][0], programs):
                for other in others:
                    write((Place(rank, 1 - half, other, word), None))
        one_way = fault == "a broadcast goes one way" and number % 2 == 1
        tiles = [own[start : start + TILE] for start in range(0, len(own), TILE)]
        ahead = self.ahead[number]
        for tile in range(-max(ahead, 0), len(tiles) - min(ahead, 0)):
            for word in tiles[tile + ahead] if 0 <= tile + ahead < len(tiles) else ():
                for other in others if not one_way or rank == 0 else ():
                    if fault != "a word is empty" or (number, rank, word) != (5, 0, 0):
                        write((Place(other, half, rank, word), (number, rank, word)))
                    yield False
            if not 0 <= tile < len(tiles):
                continue
            for other in others:
                if one_way and other != 0:
                    continue
                places = [Place(rank, half, other, word) for word in tiles[tile]]
                if fault == "emptied before it is read":
                    self.under_way[rank] += [(place, None) for place in places]
                looked_at = places[:1] if fault == "one word is looked at" else places
                while not all(place in self.memory for place in looked_at):
                    yield True
                for word, place in zip(tiles[tile], places, strict=True):
                    if self.memory.get(place) != (number, other, word):
                        raise Broken(f"sum {number} on rank {rank}: {self.memory.get(place)}")
                    if fault not in ("never emptied", "emptied a sum later", "emptied before it is read"):
                        write((place, None))
                    yield False
        if fault == "one rank keeps its half" and (rank, number) == (1, 3):
            return
        ending = [program]
        if program == 0 and fault != "only programs that run take the other half":
            ending += range(programs, PROGRAMS)
        for each in ending:
            self.current[rank][each] = half if fault == "one half" else 1 - half

    def kernels(self, rank: int) -> Iterator[bool]:
        """All sums of one rank: the programs of one run in any order, and no kernel begins before the last one has
        ended, with all that it has written."""
        for number, (_, programs) in enumerate(self.sums):
            running = {program: self.program(rank, program, number) for program in range(programs)}
            waiting = set[int]()
            while running:
                if len(waiting) == len(running):
                    yield True
                    waiting = set()
                program = self.rng.choice([program for program in running if program not in waiting])
                held_up = next(running[program], None)
                if held_up is None:
                    del running[program]
                elif held_up:
                    waiting.add(program)
                else:
                    yield False
                    waiting = set()  # meanwhile anything may have arrived
            while self.under_way[rank] and self.fault != "the next kernel comes too early":
                yield True
            self.ended[rank] += 1

    def run(self) -> None:
        ranks = {rank: self.kernels(rank) for rank in range(self.size)}
        waiting: set[int] = set()
        while ranks:
            able = [("go on", rank) for rank in ranks if rank not in waiting]
            able += [("arrive", rank) for rank, writes in enumerate(self.under_way) if writes]
            if not able:
                raise Broken(f"all wait for ever, in sums {self.ended}")
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
        assert model.ended == [SUMS] * size


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(
    "fault",
    [
        "one half",
        "never emptied",
        "emptied a sum later",
        "emptied before it is read",
        "one word is looked at",
        "a word is empty",
        "the next kernel comes too early",
        "one rank keeps its half",
        "only programs that run take the other half",
        "a broadcast goes one way",
        "waits before it sends",
    ],
)
def test_a_protocol_that_is_wrong_in_one_step_breaks(fault: str, size: int) -> None:
    def breaks(seed: int) -> bool:
        try:
            Model(size, seed, fault).run()
        except Broken:
            return True
        return False

    assert any(breaks(seed) for seed in range(RUNS))
