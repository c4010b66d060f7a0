"""The blocks of the cache: handed out, shared by reference counts, found by their content, and evicted.

A number is reused by the rule of ``pool.py``. A block that nobody holds keeps its content, and can be found by it,
until its number is needed. So to hand out a block may be to evict from the prefix cache, which is why both are here;
``prefix.py`` says which hash a content has.
"""

from __future__ import annotations

from collections import OrderedDict

from .pool import Pool


class BlockList:
    """The blocks of one sequence, each with its generation at the time when the sequence was given it."""

    __slots__ = ("blocks", "generations")

    def __init__(self) -> None:
        self.blocks: list[int] = []
        self.generations: list[int] = []

    def __len__(self) -> int:
        return len(self.blocks)


class BlockPool(Pool):
    """The blocks that an executor has; their content is found by the hash of its whole prefix.

    Of the blocks that nobody holds, the least recently used is evicted first. A block of a step that is still under way
    may be shared too: all steps run in order on one stream, so it is written before a later step reads it.
    """

    def __init__(self, count: int, block_size: int, *, caching: bool) -> None:
        super().__init__(count - 1, first=1)  # block 0 is the null block, to which padding rows point
        self.count = count - 1
        self.block_size = block_size
        self.caching = caching
        self.references = [0] * count
        self.last_use = [-1] * count
        """The last step of any holder that has released the block."""
        self.hashes_of: dict[int, tuple[bytes, ...]] = {}
        """The hashes by which a block is found: that of a prompt that ends in it, and that of the full block."""
        self.block_of: dict[bytes, int] = {}
        self.written = [-1] * count
        """For each block, the step that wrote the newest content by which it is found."""
        self.unused: OrderedDict[int, None] = OrderedDict()
        """Blocks that have content and no holder, least recently used first."""
        self.evictions = 0
        """How often the content of a block was given up for other content."""

    @property
    def available(self) -> int:
        return len(self.free) + len(self.unused)

    @property
    def usage(self) -> float:
        """Share of the blocks that somebody holds or that a step under way may touch."""
        return 1.0 - self.available / self.count

    def take(self) -> int:
        if self.free:
            block = self.free.popleft()
        else:
            block, _ = self.unused.popitem(last=False)
            for hash in self.hashes_of.pop(block):
                del self.block_of[hash]
            self.evictions += 1
        self.generation[block] += 1
        self.references[block] = 1
        return block

    def grow(self, block_list: BlockList, count: int) -> list[int]:
        """Give new blocks to a holder, behind those that it has; returns them."""
        blocks = [self.take() for _ in range(count)]
        generation = self.generation
        block_list.blocks += blocks
        block_list.generations += [generation[block] for block in blocks]
        return blocks

    def share(self, block_list: BlockList, blocks: list[int]) -> None:
        """Add a holder to each of these blocks, which were found by their content."""
        generation = self.generation
        for block in blocks:
            if not self.references[block]:
                self.unused.pop(block, None)
                self.retiring.pop(block, None)
            self.references[block] += 1
        block_list.blocks += blocks
        block_list.generations += [generation[block] for block in blocks]

    def release(self, block_list: BlockList, last_step: int) -> None:
        """Take a holder from each block, the last block first, so that a prefix stays in the cache longer than what
        follows it."""
        current, references, last_use = self.generation, self.references, self.last_use
        for block, generation in zip(
            reversed(block_list.blocks), reversed(block_list.generations), strict=True
        ):
            if current[block] != generation or not references[block]:
                raise RuntimeError(f"block {block} is given back by who does not hold it")
            if last_step > last_use[block]:
                last_use[block] = last_step
            references[block] -= 1
            if not references[block]:
                self.retire(block, last_use[block])
        block_list.blocks, block_list.generations = [], []

    def reuse(self, number: int) -> None:
        if number in self.hashes_of:
            self.unused[number] = None
        else:
            self.free.append(number)

    # --- content ------------------------------------------------------------------------------------

    def find(self, hashes: list[bytes]) -> list[int]:
        """The blocks of the longest prefix that is cached."""
        found: list[int] = []
        for hash in hashes:
            block = self.block_of.get(hash)
            if block is None:
                break
            found.append(block)
        return found

    def forget(self) -> None:
        """Empty the prefix cache; sequences keep the blocks that they hold."""
        self.free.extend(self.unused)
        self.unused.clear()
        self.hashes_of.clear()
        self.block_of.clear()

    def publish(self, block: int, hash: bytes, step: int) -> None:
        """Let a block be found by its content, which step ``step`` completes, unless another block has the same
        content."""
        if self.caching and hash not in self.block_of:
            self.block_of[hash] = block
            self.hashes_of[block] = (*self.hashes_of.get(block, ()), hash)
            self.written[block] = step
