"""Numbers that are handed out, retired and reused: the sequence slots, and by the same rule the cache blocks
(``blocks.py``).

One rule holds for both: *a number retired after step s is handed out again only when step s is completed.* It alone
keeps steps that are still on the device from using what has a new holder. Each time that a number is handed out it gets
a new generation, which tells the new holder from the one before: a result is taken only by the holder that its step ran
for, and a block is given back only by the sequence that was given it.
"""

from __future__ import annotations

from collections import deque


class Pool:
    """Numbers ``first`` to ``first + count - 1``."""

    def __init__(self, count: int, first: int = 0) -> None:
        self.free: deque[int] = deque(range(first, first + count))
        self.generation = [0] * (first + count)
        self.completed = -1
        """The last step that the device has finished; steps finish in order."""
        self.retiring: dict[int, int] = {}
        """The numbers that are not free yet, each with the step that uses it last."""
        self.by_step: dict[int, list[int]] = {}
        """The same by step; a number that was taken again meanwhile (`BlockPool.share`) is left in it."""

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

    def complete(self, step: int) -> list[int]:
        """Step ``step`` is finished on the device; returns the numbers that are free with it."""
        self.completed = step
        over = []
        for number in self.by_step.pop(step, ()):
            if self.retiring.get(number) == step:
                del self.retiring[number]
                self.reuse(number)
                over.append(number)
        return over

    def reuse(self, number: int) -> None:
        self.free.append(number)
