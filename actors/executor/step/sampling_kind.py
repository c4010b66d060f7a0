"""The kind of a step's sampling: which features its rows ask for, so that no work is done for the others."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SamplingKind:
    """The features of sampling that the rows of a step need, taken together."""

    greedy: bool = True
    """No sampling row has a temperature."""
    truncated: bool = False
    """Some sampling row has top-k, top-p or min-p."""
    candidates: int = 0
    """Most likely tokens that hold the cut of every row that has top-k; 0: no row has it."""
    nucleus: bool = False
    """Some sampling row has top-p and no top-k."""
    min_tokens: bool = False
    """Some sampling row may not stop yet."""
    penalties: bool = False
    """Some sampling row has a penalty."""
    biased: bool = False
    """Some sampling row has a logit bias."""
    logprobs: int = 0
    """Logprobs of each sampling row: 0, 1 for the sampled token's, or 1 + MAX_LOGPROBS."""
