"""Decides how many prompt tokens a step takes beside sequences that decode.

The aim: while one prompt is under way, the gap between two tokens of a stream stays below 22 ms, below 28 ms where the
prompt ends, or below twice what it is without prompts, whichever is longest. Two things make it longer. *Prompts that
wait for each other*: with four of them it may be eight times what it is without prompts, or 60 ms. *Prompts that take
half of the device's time*, on a device that fills its steps within 60 ms. An answer that stands still, since its
sequence is computed again, has the longest gap of all: steps are filled for it.

So fast devices give a prompt nearly all of their time, and its first token comes about as soon as if it ran alone,
while slow ones share theirs, until prompts would come faster than they are computed: each step reads all weights, so
that many small chunks of a large model take the device up to twice as long as few large ones.
``examples/prefill_simulation.py`` shows what follows for several loads, beside other rules.

What a step and a prompt token take is learned: first from the steps that the executor timed at its start, then from
those that run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

GAP_NS = 22_000_000
"""45 tokens a second, several times what a person reads. Simulated for 8B on an H200 at 10 requests/s: 26 ms for all
chunks, not the last ones alone, makes the gap (ITL p99) 4 ms longer for a first token that is 1 ms earlier."""

END_GAP_NS = 28_000_000
"""The gap in which a prompt may end: what is left of it would cost another step, which reads all weights for little.
Simulated for 8B on an H200 at 10 requests/s, where a prompt of 1,024 tokens takes 27 ms: the median first token comes
after 34 instead of 38 ms, and the 99th percentile of gaps is 27 instead of 22 ms."""

BUSY_GAP_NS = 60_000_000
"""The longest gap where prompts take much of the device's time. 8B on an H200 fills its steps in 51 ms; where
that takes longer than this, or a step without prompts is long already, steps are not filled."""

BUSY = (0.3, 0.5)
"""The share of the device's time that prompts take, from which the gap grows, and at which it is the longest. Simulated
for 8B: 0.2 at 10 requests/s, 0.5 at 25."""

BUSY_OVER_NS = 1_000_000_000
"""The time over which that share is averaged, the old fading: bursts of prompts are longer, gaps between them not."""

LENGTHENING = 1.75
"""A longer step, as a multiple of one without prompts: below 2, as times vary."""

MANY_PROMPTS = 4
"""Prompts that wait for each other from which on the gap is the longest. Simulated for 70B on two H200s with 4 requests
a second the first token comes after 0.37 s, with 5 prompts after 0.40; 8B with 25 has no difference."""

MOST_LENGTHENING = 8.0
"""The longest step then, as a multiple of one without prompts: seven eighths of the device's time are the prompts', and
a larger one would gain little."""

LEAST = 16
"""Prompt tokens of a step whatever they cost: fewer cost a step as much, since it reads the same weights."""

FORGET = 0.8
"""Weight of what was learned, against the step that is learned from: five steps count, so that one which
something else disturbed says little, and a context that grows says enough."""


class PrefillBudget:
    """Learns from the times of steps how many prompt tokens the next step can take."""

    def __init__(self) -> None:
        self.decode_ns = 0.0
        """The time of a step without prompts; 0: not known."""
        self.tokens = self.prompt_ns = 0.0
        """Prompt tokens of the steps so far and the time they took, the old fading."""
        self.busy = 0.0
        """The share of the device's time that prompts take."""

    def begin(self, steps: Iterable[tuple[int, int]]) -> None:
        """Learn from ``Capacity.steps``: the smallest stands for a step without prompts."""
        for number, (tokens, ns) in enumerate(sorted(steps)):
            self.learn_cost(tokens if number else 0, ns)

    def learn(self, tokens: int, ns: int) -> None:
        """A step ran ``tokens`` of prompts (0: none) and took ``ns``."""
        self.learn_cost(tokens, ns)
        if self.decode_ns and ns > 0:
            share = max(0.0, ns - self.decode_ns) / ns if tokens else 0.0
            self.busy += (1.0 - math.exp(-ns / BUSY_OVER_NS)) * (share - self.busy)

    def learn_cost(self, tokens: int, ns: int) -> None:
        if not tokens:
            self.decode_ns = FORGET * self.decode_ns + (1 - FORGET) * ns if self.decode_ns else float(ns)
        elif self.decode_ns:
            self.tokens = FORGET * self.tokens + tokens
            self.prompt_ns = FORGET * self.prompt_ns + max(0.0, ns - self.decode_ns)

    def expected_ns(self, prompt_tokens: int) -> float:
        """The expected time of a step with this many prompt tokens; 0 if it is not known."""
        if not prompt_tokens or not self.decode_ns:
            return self.decode_ns
        return self.decode_ns + prompt_tokens * self.prompt_ns / self.tokens if self.tokens else 0.0

    def limit(self, budget: int, prompts: int = 1) -> int:
        """Most prompt tokens in the next step beside sequences that decode, of the ``budget`` that is left in it.

        ``prompts`` are under way, or could be if there were budget.
        """
        if not self.prompt_ns:
            return budget
        low, high = BUSY
        full_ns = self.decode_ns + budget * self.prompt_ns / self.tokens
        gap_ns: float = GAP_NS
        if LENGTHENING * self.decode_ns <= GAP_NS < full_ns <= BUSY_GAP_NS:
            gap_ns += (full_ns - GAP_NS) * min(1.0, max(0.0, (self.busy - low) / (high - low)))
        gap_ns = max(gap_ns, LENGTHENING * self.decode_ns)
        longest_ns = max(gap_ns, BUSY_GAP_NS, MOST_LENGTHENING * self.decode_ns)
        gap_ns += (longest_ns - gap_ns) * min(1.0, max(0, prompts - 1) / (MANY_PROMPTS - 1))
        return self.within(gap_ns, budget)

    def limit_at_end(self, budget: int) -> int:
        """As ``limit``, where a prompt ends with them."""
        return self.within(END_GAP_NS, budget) if self.prompt_ns else budget

    def within(self, gap_ns: float, budget: int) -> int:
        """Most prompt tokens of a step that takes ``gap_ns``."""
        return int(min(budget, max(LEAST, (gap_ns - self.decode_ns) * self.tokens / self.prompt_ns)))
