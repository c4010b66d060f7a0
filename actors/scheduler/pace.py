"""The pace of prompts: how many of their tokens a step takes while others decode.

Streams that run feel a long step as a gap between two tokens. So beside them a step takes only as much of the
prompts as keeps the device busy for as long again as it is without them: at most, the gap doubles. The times
are the device's own, of the steps so far; what a token of a prompt takes is the slope of a line through them.

The more requests wait for their first token, the more of each step is theirs, up to the whole budget: then
their number is what keeps everyone waiting, and longer steps end it sooner.
"""

from __future__ import annotations

CROWD = 4
"""Beyond so many prompts, they get a larger part of each step."""

LEAST = 16
"""Tokens of prompts that a step takes whatever it costs."""

FORGET = 0.9
"""Weight of what was learned, against the step that is learned from."""


class Pace:
    """What steps took, and what follows for the next."""

    def __init__(self) -> None:
        self.decode_ns = 0.0
        """What a step takes that runs no prompt; 0: there was none yet."""
        self.weight = self.tokens = self.time = self.tokens2 = self.product = 0.0
        """Of the steps that ran prompts: sums of 1, tokens, ns, tokens², tokens * ns, the old ones fading."""

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

    def line(self) -> tuple[float, float]:
        """What a step with prompts takes: ns in any case, and ns for each of their tokens."""
        mean, time = self.tokens / self.weight, self.time / self.weight
        variance = self.tokens2 / self.weight - mean * mean
        if variance > 0.01 * mean * mean:
            slope = (self.product / self.weight - mean * time) / variance
        else:  # steps of one size tell no slope: their time beyond that of a step without prompts
            slope = (time - self.decode_ns) / mean
        slope = min(max(slope, 0.0), time / mean)
        return time - slope * mean, slope

    def limit(self, budget: int, prompts: int) -> int:
        """Most tokens of ``prompts`` prompts in the next step, beside sequences that decode."""
        if not self.weight or not self.decode_ns:
            return budget
        fixed, slope = self.line()
        allowed = max(fixed, self.decode_ns) * max(1.0, prompts / CROWD)
        if allowed >= slope * budget:
            return budget
        return min(budget, max(LEAST, int(allowed / slope)))
