"""The kind of a step's sampling: which features its rows ask for, so that no work is done for the others."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SamplingKind:
    """The features of sampling that the rows of a step need, taken together."""

    greedy: bool = True
    """Whether no sampling row has a temperature."""
    truncated: bool = False
    """Whether some sampling row has top-k, top-p or min-p."""
    candidates: int = 0
    """The number of most likely tokens that is enough for every row with top-k; 0: no row has it."""
    nucleus: bool = False
    """Whether some sampling row has top-p and no top-k."""
    min_tokens: bool = False
    """Whether some sampling row may not stop yet."""
    penalties: bool = False
    """Whether some sampling row has a penalty."""
    biased: bool = False
    """Whether some sampling row has a logit bias."""
    logprobs: int = 0
    """The number of logprobs of each sampling row: 0, or 1 for that of the sampled token, or 1 + MAX_LOGPROBS."""
