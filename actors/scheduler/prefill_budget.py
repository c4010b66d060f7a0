"""Decides how many prompt tokens a step takes beside sequences that decode.

The aim: while one prompt is computed, the gap between two tokens of a stream stays below 22 ms, or below twice what it
is without prompts, whichever is longer. On a device that fills its steps within 60 ms it may become as long as that
while prompts take half of the device's time. On a slower one *prompts that wait for each other* make it longer: with
four of them it is up to twelve times what it is without prompts, and where more of them wait than streams run, steps
are filled. An answer that stands still, since its sequence is computed again, has the longest gap of all: steps are
filled for it too.

So a fast device gives a prompt nearly all of its time: the first token comes about as soon as if the prompt ran alone.
A slow device shares its time between prompts and streams, unless prompts come faster than they would then be computed:
each step reads all weights, so many small chunks of a large model take up to twice as long as few large ones.
``examples/prefill_simulation.py`` shows what follows for several loads, beside other rules.

What a step and a prompt token take is learned: first from the steps that the executor timed at its start, then from
those that run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

GAP_NS = 22_000_000
"""45 tokens a second, several times what a person reads. Simulated for 8B on an H200 at 10 requests/s: 26 ms makes the
gap (ITL p99) 4 ms longer for a first token that is 1 ms earlier. Measured: with 28 ms where a prompt ends, and more for
several of them, the median first token came 2.5 ms earlier, of 44.6, and the gap was 8 ms longer."""

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

MAX_LENGTHENING = 12.0
"""The longest step then, as a multiple of one without prompts: eleven twelfths of the device's time go to prompts. With
8 a 70B model had 0.94 of vLLM's tokens a second where 256 prompts came at once; longer steps gain little more."""

LEAST = 16
"""Prompt tokens of a step whatever they cost: fewer cost a step as much, since it reads the same weights."""

DECAY = 0.8
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
        """Learn from ``Capacity.step_times``: the smallest stands for a step without prompts."""
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
            self.decode_ns = DECAY * self.decode_ns + (1 - DECAY) * ns if self.decode_ns else float(ns)
        elif self.decode_ns:
            self.tokens = DECAY * self.tokens + tokens
            self.prompt_ns = DECAY * self.prompt_ns + max(0.0, ns - self.decode_ns)

    def expected_ns(self, prompt_tokens: int) -> float:
        """The expected time of a step with this many prompt tokens; 0 if it is not known."""
        if not prompt_tokens or not self.decode_ns:
            return self.decode_ns
        return self.decode_ns + prompt_tokens * self.prompt_ns / self.tokens if self.tokens else 0.0

    def limit(self, budget: int, prompts: int, streams: int) -> int:
        """Most prompt tokens in the next step beside ``streams`` that decode, of the ``budget`` that is left in it.

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
        if full_ns > BUSY_GAP_NS:
            if prompts >= max(streams, MANY_PROMPTS):
                return budget
            longest_ns = max(gap_ns, BUSY_GAP_NS, MAX_LENGTHENING * self.decode_ns)
            gap_ns += (longest_ns - gap_ns) * min(1.0, max(0, prompts - 1) / (MANY_PROMPTS - 1))
        return int(min(budget, max(LEAST, (gap_ns - self.decode_ns) * self.tokens / self.prompt_ns)))
