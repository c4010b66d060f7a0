"""Builds the plan of a step, and records what will be needed when its result comes."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ...protocol.internal import Join, Plan
from ...protocol.limits import PROMPT_LOGPROBS_PER_STEP
from .sequence import Sequence


@dataclass(slots=True)
class PlanBuilder:
    """The plan of one step while it is being made."""

    budget: int
    """Tokens that the step can still take."""
    tokens: int = 0
    """The number of tokens in the step."""
    step_sizes: tuple[int, ...] = ()
    """As ``Capacity.step_sizes``."""
    joins: list[Join] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    """Pairs of slot and block, flattened; ``copies`` (from, to) and ``chunks`` (slot, tokens) are laid out alike."""
    copies: list[int] = field(default_factory=list)
    chunks: list[int] = field(default_factory=list)
    prompt_logprobs: list[tuple[Sequence, int]] = field(default_factory=list)
    """The prompts whose logprobs the step reports, and of how many tokens, in the order of ``chunks``."""

    def plan(self, step: int, leaves: list[int]) -> Plan:
        """The message to the executor; ``leaves`` are the slots that it frees first."""
        return Plan(
            step,
            leaves=int32(leaves),
            joins=self.joins,
            blocks=int32(self.blocks),
            copies=int32(self.copies),
            chunks=int32(self.chunks),
        )

    def take(self, sequence: Sequence, start: int, tokens: int) -> int:
        """Add up to ``tokens`` tokens of a prompt, from ``start`` on; returns how many this step has room for."""
        if tokens > self.budget:
            tokens = self.budget = self.fitting(self.budget)
        if sequence.needs_prompt_logprobs:
            left = PROMPT_LOGPROBS_PER_STEP - sum(reported for _, reported in self.prompt_logprobs)
            if min(start + tokens, sequence.prompt_len - 1) - start > left:
                tokens = left
        self.budget -= tokens
        self.tokens += tokens
        return tokens

    def fitting(self, tokens: int) -> int:
        """How many of these ``tokens`` to take of a prompt that does not fit: so many that the step needs no padding,
        which would take the device as long as tokens do."""
        place = bisect_right(self.step_sizes, self.tokens + tokens)
        size = self.step_sizes[place - 1] if place else 0
        return size - self.tokens if size > self.tokens else tokens


class OutstandingStep(NamedTuple):
    """A step that was planned and whose result has not come."""

    step: int
    slots: np.ndarray
    """The slots that sample in it, in ascending order."""
    generations: bytes
    """The generations of the slots (int64), when the plan was made."""
    prefill: int
    """Tokens of prompts that run in it."""
    expected_s: float
    """The time that the device is expected to take for it; 0: not known."""
    prompt_logprobs: list[tuple[Sequence, int]]
    """``PlanBuilder.prompt_logprobs``."""


def int32(numbers: list[int]) -> bytes:
    return array("i", numbers).tobytes()
