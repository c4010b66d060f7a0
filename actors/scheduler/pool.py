"""Numbers that are handed out, retired and reused: sequence slots and cache blocks.

One rule holds for both, and it alone keeps a step that is still on the device safe from reuse: *a
number retired after step s is handed out again only when step s is completed.* Each hand-out gives
the number a new generation, so that a late user of an old one can be told from the new owner.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from hashlib import blake2b


class Pool:
    """Numbers ``first`` to ``first + count - 1``."""

    def __init__(self, count: int, first: int = 0) -> None:
        self.free: deque[int] = deque(range(first, first + count))
        self.generation = [0] * (first + count)
        self.completed = -1
        """The last step that the device has finished; steps finish in order."""
        self.retiring: dict[int, int] = {}
        """Number to its last step, for those that wait for it."""
        self.by_step: dict[int, list[int]] = {}

    @property
    def available(self) -> int:
        return len(self.free)

    def take(self) -> int:
        """Hand out a number; ``IndexError`` if none is available."""
        number = self.free.popleft()
        self.generation[number] += 1
        return number

    def retire(self, number: int, last_step: int) -> None:
        """Give a number back whose last use is step ``last_step``."""
        if last_step <= self.completed:
            self.reuse(number)
        else:
            self.retiring[number] = last_step
            self.by_step.setdefault(last_step, []).append(number)

    def complete(self, step: int) -> None:
        """Step ``step`` is finished on the device."""
        self.completed = step
        for number in self.by_step.pop(step, ()):
            if self.retiring.get(number) == step:
                del self.retiring[number]
                self.reuse(number)

    def reuse(self, number: int) -> None:
        self.free.append(number)


class BlockPool(Pool):
    """Cache blocks, shared by reference counts; full ones are found again by the hash of their prefix.

    A block that nobody holds but whose content is known stays findable until its number is needed,
    least recently used first. Finding a block of a step still under way is safe: all steps run in
    order on one stream, so it is written before a later step reads it.
    """

    def __init__(self, count: int, block_size: int, *, caching: bool) -> None:
        super().__init__(count - 1, first=1)  # block 0 is the null block of padding rows
        self.block_size = block_size
        self.caching = caching
        self.references = [0] * count
        self.last_use = [-1] * count
        """The last step of any holder that has released the block."""
        self.hash_of: dict[int, bytes] = {}
        self.block_of: dict[bytes, int] = {}
        self.unused: OrderedDict[int, None] = OrderedDict()
        """Blocks with known content and no holder, oldest first."""

    @property
    def available(self) -> int:
        return len(self.free) + len(self.unused)

    def take(self) -> int:
        if not self.free:
            block, _ = self.unused.popitem(last=False)
            del self.block_of[self.hash_of.pop(block)]
            self.free.append(block)
        block = super().take()
        self.references[block] = 1
        return block

    def release(self, blocks: Iterable[int], last_step: int) -> None:
        """One holder less for each block, last first so that a prefix outlives what continues it."""
        for block in reversed(list(blocks)):
            self.last_use[block] = max(self.last_use[block], last_step)
            self.references[block] -= 1
            if self.references[block] == 0:
                self.retire(block, self.last_use[block])

    def reuse(self, number: int) -> None:
        if number in self.hash_of:
            self.unused[number] = None
        else:
            self.free.append(number)

    # --- the prefix cache -------------------------------------------------------------------------

    def hashes(self, tokens: memoryview, known: list[bytes]) -> None:
        """Extend ``known``, the hashes of the full blocks of ``tokens`` (int32) over their whole prefix."""
        size = self.block_size
        for index in range(len(known), len(tokens) // size):
            parent = known[-1] if known else b""
            block = tokens[index * size : (index + 1) * size]
            known.append(blake2b(block, key=parent, digest_size=16).digest())

    def find(self, hashes: list[bytes]) -> list[int]:
        """The blocks that hold the longest cached beginning."""
        found: list[int] = []
        for digest in hashes:
            block = self.block_of.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def hold(self, blocks: list[int]) -> None:
        """One holder more for each block."""
        for block in blocks:
            self.references[block] += 1
            self.unused.pop(block, None)
            self.retiring.pop(block, None)

    def publish(self, block: int, digest: bytes) -> None:
        """Let the full block be found by its hash; the first block with a content keeps it."""
        if self.caching and digest not in self.block_of and block not in self.hash_of:
            self.block_of[digest] = block
            self.hash_of[block] = digest
