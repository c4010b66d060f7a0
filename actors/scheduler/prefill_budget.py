"""The pace of prompts: how many of their tokens a step takes while others decode.

Streams that run feel a long step as a gap between two tokens. So beside them a step takes only as much of the
prompts as keeps the device busy for nearly as long again as it is without them: the gap does not more than
double. The times are the device's own, of the steps so far, and of what the executor tried before them.

Where the device runs steps with prompts another way (without a CUDA graph, say), any prompt may make a step too
long, and cutting it small would only make more of them. So the line through sizes and times of the last steps
(linear regression) tells what a step takes whatever its size. It is believed only when that more than doubles
the step by itself: a smaller fixed part can be an illusion, since tokens far behind in a prompt take longer than
its first.

The more requests wait for their first token, the more of each step is theirs, up to the whole budget: then
their number is what keeps everyone waiting, and longer steps end it sooner.
"""

from __future__ import annotations

import math

SHARE = 0.75
"""Time for prompts beside streams, as a part of what the step takes without them: below 1, as times vary."""

SURPLUS = 0.25
"""The same, as a part of what a step takes with any prompt at all, where that alone is more than twice as long."""

CROWD = 4
"""Beyond so many prompts, they get a larger part of each step."""

LEAST = 16
"""Tokens of prompts that a step takes whatever it costs."""

GROWTH = 2.0
"""A step takes at most so many times the tokens of those before: further, what it costs is a guess."""

FORGET = 0.9
"""Weight of what was learned, against the step that is learned from."""

SPREAD = 0.1
"""Steps whose sizes differ by less, as a part of their mean, tell nothing of what one token more would take."""


class Pace:
    """What steps took, and what follows for the next."""

    def __init__(self) -> None:
        self.decode_ns = 0.0
        """What a step takes that runs no prompt; 0: there was none yet."""
        self.weight = self.tokens = self.beyond_ns = self.tokens_squared = self.product = 0.0
        """Steps with prompts, their tokens, their time beyond that of a step without, and the squares and
        products that a regression of the time on the tokens needs: sums, the old fading."""
        self.token_ns = math.inf
        """What one token of a prompt takes: its share of all, until sizes that differ say less."""
        self.fixed_ns = 0.0
        """What any prompt adds to a step, whatever its size."""
        self.largest = 0.0
        """Tokens of the largest step, fading."""

    def learn(self, tokens: int, ns: int, *, streams: bool) -> None:
        """A step ran so many tokens of prompts, beside streams or not, and took so long."""
        if not tokens:
            self.decode_ns = FORGET * self.decode_ns + (1 - FORGET) * ns if self.decode_ns else float(ns)
            return
        beyond_ns = ns - (self.decode_ns if streams else 0.0)
        self.weight = FORGET * self.weight + 1
        self.tokens = FORGET * self.tokens + tokens
        self.beyond_ns = FORGET * self.beyond_ns + beyond_ns
        self.tokens_squared = FORGET * self.tokens_squared + tokens * tokens
        self.product = FORGET * self.product + tokens * beyond_ns
        self.largest = max(FORGET * self.largest, tokens)
        self.tell_apart()

    def tell_apart(self) -> None:
        """The line through the steps so far, if their sizes differ enough to have one."""
        mean, mean_ns = self.tokens / self.weight, self.beyond_ns / self.weight
        variance = self.tokens_squared / self.weight - mean * mean
        if variance > (SPREAD * mean) ** 2:
            self.token_ns = (self.product / self.weight - mean * mean_ns) / variance
        self.token_ns = max(0.0, min(self.token_ns, mean_ns / mean))
        self.fixed_ns = max(0.0, mean_ns - self.token_ns * mean)

    def limit(self, budget: int, prompts: int) -> int:
        """Most tokens of ``prompts`` prompts in the next step, beside sequences that decode."""
        if not self.tokens or not self.decode_ns:
            return budget
        crowd = max(1.0, prompts / CROWD)
        most = min(float(budget), GROWTH * self.largest * crowd)
        room_ns, token_ns = SHARE * self.decode_ns, self.beyond_ns / self.tokens
        if self.fixed_ns > self.decode_ns:
            room_ns, token_ns = SURPLUS * (self.decode_ns + self.fixed_ns), self.token_ns
        if token_ns > 0:
            most = min(most, room_ns * crowd / token_ns)
        return min(budget, max(LEAST, int(most)))
