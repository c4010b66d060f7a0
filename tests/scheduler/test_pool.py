"""The pool of cache blocks: none is lost, none has two owners unless counted, none is reused too early."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from slipstream.actors.scheduler.blocks import BlockList, BlockPool
from slipstream.actors.scheduler.pool import Pool
from slipstream.actors.scheduler.prefix import extend_hashes, salt_of

BLOCKS = 9


class PoolMachine(RuleBasedStateMachine):
    """Sequences come, run in steps, share, copy, publish and leave, in any order; steps finish in order."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(BLOCKS, 4, caching=True)
        self.owners: dict[int, BlockList] = {}
        self.last_step: dict[int, int] = {}
        self.touched: dict[int, int] = {}
        """The last step that uses each block."""
        self.launched = -1
        self.numbers = 0

    @initialize(caching=st.booleans())
    def choose(self, caching: bool) -> None:
        self.pool = BlockPool(BLOCKS, 4, caching=caching)

    def held(self) -> set[int]:
        return {block for held in self.owners.values() for block in held.blocks}

    def one_of(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.owners)))

    @rule(data=st.data(), content=st.integers(0, 3))
    def admit(self, data: st.DataObject, content: int) -> None:
        """A sequence takes what the cache has of its prefix, and new blocks for the rest."""
        pool, held = self.pool, BlockList()
        hashes = [bytes([content, index]) for index in range(data.draw(st.integers(0, 3)))]
        pool.share(held, pool.find(hashes))
        wanted = data.draw(st.integers(0, 3))
        if pool.available < wanted:
            pool.release(held, pool.completed)
            return
        for _ in range(wanted):
            self.grow_one(held)
        self.owners[self.numbers] = held
        self.last_step[self.numbers] = -1
        self.numbers += 1

    @rule()
    def forget(self) -> None:
        """Nothing that was computed is found again, and no block is lost by it."""
        available = self.pool.available
        self.pool.forget()
        assert self.pool.available == available
        assert not any(self.pool.find([bytes([content, 0])]) for content in range(4))

    def grow_one(self, held: BlockList) -> None:
        before, owned = list(self.pool.generation), self.held()
        (block,) = self.pool.grow(held, 1)
        assert block != 0
        assert block not in owned, "a block with two owners"
        assert self.touched.get(block, -1) <= self.pool.completed, "reused while a step touches it"
        assert self.pool.generation[block] == before[block] + 1
        assert self.pool.references[block] == 1

    @precondition(lambda self: self.owners and self.pool.available)
    @rule(data=st.data())
    def grow(self, data: st.DataObject) -> None:
        self.grow_one(self.owners[self.one_of(data)])

    @precondition(lambda self: self.owners)
    @rule(data=st.data(), content=st.integers(0, 3))
    def publish(self, data: st.DataObject, content: int) -> None:
        """A block may be found by its full content and by an earlier part of it."""
        for index, block in enumerate(self.owners[self.one_of(data)].blocks[:3]):
            self.pool.publish(block, bytes([content, index]), self.launched)

    @rule(content=st.integers(0, 3), index=st.integers(0, 2))
    def copy(self, content: int, index: int) -> None:
        """A step reads a block that nobody of those it runs holds, to copy it."""
        block = self.pool.block_of.get(bytes([content, index]))
        if block is not None:
            source = BlockList()
            self.pool.share(source, [block])
            self.launched += 1
            self.touched[block] = self.launched
            self.pool.release(source, self.launched)

    @precondition(lambda self: self.owners)
    @rule(data=st.data())
    def launch(self, data: st.DataObject) -> None:
        """A step in which some of the sequences run."""
        self.launched += 1
        for owner in data.draw(st.sets(st.sampled_from(sorted(self.owners)))):
            self.last_step[owner] = self.launched
            for block in self.owners[owner].blocks:
                self.touched[block] = self.launched

    @precondition(lambda self: self.pool.completed < self.launched)
    @rule()
    def complete(self) -> None:
        self.pool.complete(self.pool.completed + 1)

    @precondition(lambda self: self.owners)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        owner = self.one_of(data)
        self.pool.release(self.owners.pop(owner), self.last_step.pop(owner))

    @invariant()
    def every_block_is_in_exactly_one_place(self) -> None:
        pool = self.pool
        places = [*pool.free, *pool.unused, *pool.retiring, *self.held()]
        assert sorted(places) == list(range(1, BLOCKS))

    @invariant()
    def every_holder_is_counted(self) -> None:
        counts = [0] * BLOCKS
        for held in self.owners.values():
            for block in held.blocks:
                counts[block] += 1
        assert self.pool.references == counts

    @invariant()
    def what_is_held_is_held_in_the_generation_that_it_has(self) -> None:
        for held in self.owners.values():
            assert held.generations == [self.pool.generation[block] for block in held.blocks]

    @invariant()
    def what_waits_for_a_step_waits_for_one_that_is_not_over(self) -> None:
        assert all(self.pool.completed < step <= self.launched for step in self.pool.retiring.values())

    @invariant()
    def the_index_of_contents_is_the_same_both_ways(self) -> None:
        pool = self.pool
        assert {hash: block for block, hashes in pool.hashes_of.items() for hash in hashes} == pool.block_of
        assert set(pool.unused) <= set(pool.hashes_of)

    @rule()
    def all_leave_and_all_steps_finish(self) -> None:
        for owner, held in self.owners.items():
            self.pool.release(held, self.last_step[owner])
        self.owners.clear()
        while self.pool.completed < self.launched:
            self.pool.complete(self.pool.completed + 1)
        assert self.pool.available == BLOCKS - 1
        assert not self.pool.by_step


PoolMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestBlockPool = PoolMachine.TestCase


def taken(pool: BlockPool, count: int) -> BlockList:
    held = BlockList()
    pool.grow(held, count)
    return held


def test_the_block_that_was_used_least_recently_gives_way_first() -> None:
    pool = BlockPool(5, 4, caching=True)
    held = [taken(pool, 1) for _ in range(4)]
    blocks = [of.blocks[0] for of in held]
    for block in blocks:
        pool.publish(block, bytes([block]), 0)
    for index in (2, 0, 3, 1):
        pool.release(held[index], -1)
    again = BlockList()
    pool.share(again, [blocks[2]])
    pool.release(again, -1)
    assert taken(pool, 4).blocks == [blocks[0], blocks[3], blocks[1], blocks[2]]
    assert pool.find([bytes([block]) for block in blocks]) == []
    assert pool.evictions == 4
    assert not pool.block_of


def test_a_prefix_outlives_what_continues_it() -> None:
    pool = BlockPool(5, 4, caching=True)
    held = taken(pool, 4)
    blocks = list(held.blocks)
    for index, block in enumerate(blocks):
        pool.publish(block, bytes([index]), 0)
    pool.release(held, -1)
    taken(pool, 2)
    assert pool.find([bytes([index]) for index in range(4)]) == blocks[:2]


def hashes(tokens: list[int], salt: bytes = b"") -> list[bytes]:
    known: list[bytes] = []
    extend_hashes(known, np.array(tokens, np.int32).data, 4, salt)
    return known


def test_equal_blocks_behind_different_beginnings_have_different_hashes() -> None:
    first, second = hashes([1, 2, 3, 4, 9, 9, 9, 9]), hashes([5, 6, 7, 8, 9, 9, 9, 9])
    assert first[1] != second[1]
    assert hashes([1, 2, 3, 4, 9, 9, 9, 9, 7]) == first


def test_a_salt_that_spells_the_tokens_of_a_block_is_not_that_block() -> None:
    """One that asks for the second block under this salt would find the keys and values behind another prefix."""
    first, second = list(range(64, 80)), list(range(16))
    spelled = np.array(first, np.int32).tobytes().decode()

    def of(tokens: list[int], salt: bytes) -> list[bytes]:
        known: list[bytes] = []
        extend_hashes(known, np.array(tokens, np.int32).data, 16, salt)
        return known

    assert of(second, salt_of(spelled))[0] not in of(first + second, salt_of(""))
    assert salt_of(spelled) not in of(first, b"")


def test_hashes_of_different_salts_have_nothing_in_common() -> None:
    tokens = list(range(16))
    salted = [hashes(tokens, salt) for salt in (b"", b"ann", b"ben")]
    assert len({hash for of in salted for hash in of}) == 12


def test_a_shared_block_waits_for_the_last_step_of_all_that_held_it_whoever_leaves_last() -> None:
    pool = BlockPool(3, 4, caching=True)
    first, second = taken(pool, 1), BlockList()
    pool.share(second, first.blocks)
    pool.release(first, 5)  # ran in step 5
    pool.complete(4)
    pool.release(second, 4)  # had no budget since step 4
    assert pool.available == 1
    pool.complete(5)
    assert pool.available == 2


def test_who_gives_a_block_back_twice_or_after_it_has_a_new_owner_is_told() -> None:
    """By the generation: the count alone would take the reference of the new owner."""
    pool = BlockPool(2, 4, caching=True)
    stale = BlockList()
    first = taken(pool, 1)
    stale.blocks, stale.generations = list(first.blocks), list(first.generations)
    pool.release(first, -1)
    with pytest.raises(RuntimeError, match="block 1 is given back by who does not hold it"):
        pool.release(stale, -1)
    second = taken(pool, 1)
    with pytest.raises(RuntimeError, match="does not hold it"):
        pool.release(stale, -1)
    assert pool.references[second.blocks[0]] == 1


def test_a_slot_is_handed_out_again_only_when_its_last_step_is_over_and_as_a_new_generation() -> None:
    pool = Pool(1)
    slot = pool.take()
    pool.retire(slot, 7)
    assert pool.complete(6) == []
    assert not pool.available
    assert pool.complete(7) == [slot]
    assert (pool.take(), pool.generation[slot]) == (slot, 2)
