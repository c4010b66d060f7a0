"""The pace of prompts: how many of their tokens a step takes while others decode.

Streams that run feel a long step as a gap between two tokens. So beside them a step takes only as much of the
prompts as keeps the device busy for nearly as long again as it is without them: the gap does not more than
double. The times are the device's own, of the steps so far.

The more requests wait for their first token, the more of each step is theirs, up to the whole budget: then
their number is what keeps everyone waiting, and longer steps end it sooner.
"""

from __future__ import annotations

import math

SHARE = 0.75
"""Time for prompts beside streams, as a part of what the step takes without them: below 1, as times vary."""

CROWD = 4
"""Beyond so many prompts, they get a larger part of each step."""

LEAST = 16
"""Tokens of prompts that a step takes whatever it costs."""

GROWTH = 2.0
"""A step takes at most so many times the tokens of those before: further, what it costs is a guess."""

FORGET = 0.9
"""Weight of what was learned, against the step that is learned from."""

DRIFT = 1.02
"""By so much the bound rises with each step: tokens far behind in a prompt take longer than its first."""


class Pace:
    """What steps took, and what follows for the next."""

    def __init__(self) -> None:
        self.decode_ns = 0.0
        """What a step takes that runs no prompt; 0: there was none yet."""
        self.tokens = self.beyond_ns = 0.0
        """Tokens of prompts, and the time of their steps beyond that of a step without: sums, the old fading."""
        self.most_ns = math.inf
        """What one token takes at most: no token takes more than the whole step, shared out among its tokens."""
        self.largest = 0.0
        """Tokens of the largest step, fading."""

    def learn(self, tokens: int, ns: int, *, streams: bool) -> None:
        """A step ran so many tokens of prompts, beside streams or not, and took so long."""
        if not tokens:
            self.decode_ns = FORGET * self.decode_ns + (1 - FORGET) * ns if self.decode_ns else float(ns)
            return
        self.tokens = FORGET * self.tokens + tokens
        self.beyond_ns = FORGET * self.beyond_ns + ns - (self.decode_ns if streams else 0.0)
        self.most_ns = min(DRIFT * self.most_ns, ns / tokens)
        self.largest = max(FORGET * self.largest, tokens)

    def limit(self, budget: int, prompts: int) -> int:
        """Most tokens of ``prompts`` prompts in the next step, beside sequences that decode."""
        if not self.tokens or not self.decode_ns:
            return budget
        crowd = max(1.0, prompts / CROWD)
        most = min(float(budget), GROWTH * self.largest * crowd)
        token_ns = min(self.most_ns, self.beyond_ns / self.tokens)
        if token_ns > 0:
            most = min(most, SHARE * self.decode_ns * crowd / token_ns)
        return min(budget, max(LEAST, int(most)))
