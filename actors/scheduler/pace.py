"""The pace of prompts: how many of their tokens a step takes while others decode.

Streams that run feel a long step as a gap between two tokens. So beside them a step takes only as much of the
prompts as keeps the device busy for nearly as long again as it is without them: the gap does not more than
double. The times are the device's own, of the steps so far; what a token of a prompt takes is the slope of a
line through them.

The more requests wait for their first token, the more of each step is theirs, up to the whole budget: then
their number is what keeps everyone waiting, and longer steps end it sooner.
"""

from __future__ import annotations

SHARE = 0.75
"""Time for prompts beside streams, as a part of what the step takes without them: below 1, as times vary."""

CROWD = 4
"""Beyond so many prompts, they get a larger part of each step."""

LEAST = 16
"""Tokens of prompts that a step takes whatever it costs."""

SPREAD = 0.3
"""Steps tell the slope if their sizes differ by this part of their mean."""

GROWTH = 2.0
"""A step takes at most so many times the tokens of the steps that are known: further, the line is a guess."""

FORGET = 0.9
"""Weight of what was learned, against the step that is learned from."""


class Pace:
    """What steps took, and what follows for the next."""

    def __init__(self) -> None:
        self.decode_ns = 0.0
        """What a step takes that runs no prompt; 0: there was none yet."""
        self.weight = self.tokens = self.time = self.tokens2 = self.product = 0.0
        """Of the steps that ran prompts: sums of 1, tokens, ns, tokens², tokens * ns, the old ones fading."""
        self.slope: float | None = None
        """Nanoseconds for a token of a prompt, as told by steps of different sizes."""

    def learn(self, tokens: int, ns: int) -> None:
        """A step ran so many tokens of prompts, and took so long."""
        if not tokens:
            self.decode_ns = FORGET * self.decode_ns + (1 - FORGET) * ns if self.decode_ns else float(ns)
            return
        self.weight = FORGET * self.weight + 1.0
        self.tokens = FORGET * self.tokens + tokens
        self.time = FORGET * self.time + ns
        self.tokens2 = FORGET * self.tokens2 + tokens * tokens
        self.product = FORGET * self.product + tokens * ns

        mean = self.tokens / self.weight
        variance = self.tokens2 / self.weight - mean * mean
        if variance > (SPREAD * mean) ** 2:
            self.slope = (self.product - mean * self.time) / self.weight / variance

    def line(self) -> tuple[float, float]:
        """What a step with prompts takes: ns in any case, and ns for each of their tokens."""
        mean, time = self.tokens / self.weight, self.time / self.weight
        slope = (time - self.decode_ns) / mean if self.slope is None else self.slope
        slope = min(max(slope, 0.0), time / mean)
        return time - slope * mean, slope

    def limit(self, budget: int, prompts: int) -> int:
        """Most tokens of ``prompts`` prompts in the next step, beside sequences that decode."""
        if not self.weight or not self.decode_ns:
            return budget
        fixed, slope = self.line()
        allowed = SHARE * max(fixed, self.decode_ns) * max(1.0, prompts / CROWD)
        tokens = allowed / slope if allowed < slope * budget else budget
        largest = GROWTH * max(1.0, prompts / CROWD) * self.tokens / self.weight
        return min(budget, max(LEAST, int(min(tokens, largest))))
