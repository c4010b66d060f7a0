"""How many prompt tokens a step takes beside sequences that decode.

The aim: while a prompt runs, the gap between two tokens of a stream stays below 22 ms, or below twice what it is
without, whichever is longer; each further prompt that waits may lengthen it by as much again.

So fast devices give a prompt nearly all of their time, and its first token comes about as soon as if it ran alone,
while slow ones share theirs. Where several prompts wait, their number is what keeps everyone waiting, and longer
steps end it sooner. ``examples/prefill_simulation.py`` shows what follows for several loads, beside other rules.

What a step and a prompt token take is learned: first from the steps that the executor timed at its start, then from
those that run.
"""

from __future__ import annotations

from collections.abc import Iterable

GAP_NS = 22_000_000
"""45 tokens a second, several times what a person reads. Simulated for 8B on an H200: at 10 requests/s, 15 ms makes the
first token 5 ms later, and 25 ms makes the gap (ITL p99) 3 ms longer for a first token that is not 1 ms earlier."""

LENGTHENING = 1.75
"""A longer step, as a multiple of one without prompts: below 2, as times vary."""

LEAST = 16
"""Prompt tokens of a step whatever they cost: fewer cost a step as much, since it reads the same weights."""

FORGET = 0.8
"""Weight of what was learned, against the step that is learned from: five steps count, so that one which
something else disturbed says little, and a context that grows says enough."""


class PrefillBudget:
    """What steps took, and what follows for the next."""

    def __init__(self) -> None:
        self.decode_ns = 0.0
        """What a step without prompts takes; 0: not known."""
        self.tokens = self.prompt_ns = 0.0
        """Prompt tokens of the steps so far and the time they took, the old fading."""

    def begin(self, steps: Iterable[tuple[int, int]]) -> None:
        """Learn from ``Capacity.steps``: the smallest stands for a step without prompts."""
        for number, (tokens, ns) in enumerate(sorted(steps)):
            self.learn(tokens if number else 0, ns)

    def learn(self, tokens: int, ns: int) -> None:
        """A step ran ``tokens`` of prompts (0: none) and took ``ns``."""
        if not tokens:
            self.decode_ns = FORGET * self.decode_ns + (1 - FORGET) * ns if self.decode_ns else float(ns)
        elif self.decode_ns:
            self.tokens = FORGET * self.tokens + tokens
            self.prompt_ns = FORGET * self.prompt_ns + max(0.0, ns - self.decode_ns)

    def limit(self, budget: int, prompts: int) -> int:
        """Most prompt tokens in the next step beside sequences that decode, of the ``budget`` that is left in it."""
        if not self.prompt_ns:
            return budget
        room_ns = max(GAP_NS, LENGTHENING * self.decode_ns) - self.decode_ns
        return int(min(budget, max(LEAST, room_ns * prompts * self.tokens / self.prompt_ns)))
