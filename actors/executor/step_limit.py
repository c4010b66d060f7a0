"""The time that a step may take before its device counts as hung, learned from earlier steps.

Where nobody knows how fast the device is, as on a CPU, a fixed limit has to be far above what the slowest one takes
with the largest step. Measured steps allow a closer one.
"""

from __future__ import annotations

MIN_S = 10.0
"""Not less, however fast the steps are: other work on the machine holds them up for seconds."""

MARGIN = 10.0
"""Attention to a long context, or others on the machine, may make a step longer than expected by this factor."""


class StepLimit:
    """The time limit for steps of up to ``max_tokens`` tokens: ``most_s`` until one was measured."""

    def __init__(self, max_tokens: int, most_s: float) -> None:
        self.max_tokens = max_tokens
        self.most_s = most_s
        self.limit_s = most_s
        self.largest_step = 0
        """Tokens of the largest step until now, from whose time that of larger ones is expected; 0: there was none."""

    def learn(self, tokens: int, seconds: float) -> None:
        """A step of ``tokens`` tokens took ``seconds``."""
        if tokens < self.largest_step:
            return
        self.largest_step = tokens
        expected = seconds * self.max_tokens / max(1, tokens)
        self.limit_s = min(self.most_s, max(MIN_S, MARGIN * expected))
