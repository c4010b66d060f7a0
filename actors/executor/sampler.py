"""Choosing the next tokens: all rows of a step at once.

Randomness is counter based: the number for a token is a function of (request seed, token index) and of
nothing else. A request therefore draws the same numbers whatever else is in the batch, at any depth of
the pipeline, and again after a restart.
"""

from __future__ import annotations

import torch
from torch import Tensor


def to_signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word


GOLDEN = to_signed(0x9E3779B97F4A7C15)
MIX_1 = to_signed(0xBF58476D1CE4E5B9)
MIX_2 = to_signed(0x94D049BB133111EB)


def uniform(seed: Tensor, index: Tensor) -> Tensor:
    """float64 in [0, 1) for each pair of int64; SplitMix64 (Steele, Lea and Flood, 2014) as a function.

    int64 arithmetic wraps as the algorithm's unsigned does; a right shift has to lose the sign.
    """
    z = mixed(seed) + GOLDEN * (index + 1)
    z = mixed(z)
    return ((z >> 11) & ((1 << 53) - 1)).double() * 2.0**-53


def mixed(z: Tensor) -> Tensor:
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * MIX_1
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * MIX_2
    return z ^ ((z >> 31) & ((1 << 33) - 1))


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    draws: Tensor,
    *,
    truncated: bool,
) -> Tensor:
    """One token id per row: ``logits`` float32 [S, V], the parameters [S], ``draws`` float64 [S] give int64 [S].

    A row of temperature 0 takes its most likely token. Otherwise the token is where the cumulated
    probability passes the draw. ``truncated`` says that some row has top-k, top-p or min-p.
    """
    greedy = logits.argmax(dim=-1)
    is_greedy = temperature == 0
    scaled = logits / torch.where(is_greedy, 1.0, temperature)[:, None]
    if truncated:
        order_logits, order = scaled.sort(dim=-1, descending=True)
        probabilities = truncate(order_logits.softmax(dim=-1), top_k, top_p, min_p)
        place = draw(probabilities, draws)
        sampled = order.gather(1, place[:, None])[:, 0]
    else:
        sampled = draw(scaled.softmax(dim=-1), draws)
    return torch.where(is_greedy, greedy, sampled)


def truncate(probabilities: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Zero what top-k, then top-p, then min-p leave out; ``probabilities`` [S, V] fall from left to right.

    The order and the edges are those of transformers' logits processors: top-p keeps the token that
    passes ``top_p``, and the most likely token is always kept.
    """
    place = torch.arange(probabilities.shape[1], device=probabilities.device)
    limit = torch.where(top_k > 0, top_k, probabilities.shape[1])
    kept = torch.where(place < limit[:, None], probabilities, 0.0)
    kept = kept / kept.sum(dim=-1, keepdim=True)
    before = kept.cumsum(dim=-1) - kept
    kept = torch.where((before < top_p[:, None]) | (place == 0), kept, 0.0)
    return torch.where(kept >= min_p[:, None] * kept[:, :1], kept, 0.0)


def draw(probabilities: Tensor, draws: Tensor) -> Tensor:
    """The place at which the cumulated ``probabilities`` [S, V], of any sum, pass ``draws`` [S] of it."""
    cumulated = probabilities.double().cumsum(dim=-1)
    threshold = draws * cumulated[:, -1]
    return (cumulated <= threshold[:, None]).sum(dim=-1).clamp(max=probabilities.shape[1] - 1)
