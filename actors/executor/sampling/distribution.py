"""The draw of one token for each row, from the distribution that its logits and its parameters make.

A row's logits go through temperature, top-k, top-p, min-p and the draw, in this order, which is that of transformers'
logits processors; vLLM applies min-p before top-k and top-p.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WEIGHT_UNIT = 2.0**44
"""A weight of 1 as an integer: the weights of up to 2**18 tokens add up to less than 2**63."""


DRAW_BLOCK = 256
"""Tokens of a block; the draw finds the block first, then the token in it. About the square root of a vocabulary of 64k
to 128k, so that both searches are about as long."""


def draw(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    draws: Tensor,
    *,
    truncated: bool,
    candidates: int,
    nucleus: bool,
) -> Tensor:
    """One token id per row: ``logits`` float32 [S, V], the parameters [S], ``draws`` float64 [S] give int64 [S].

    A row of temperature 0 or top-k 1 takes its most likely token, the first of equals. Otherwise the token
    is where the cumulated probability, in the order of token ids, passes the draw. ``truncated``,
    ``candidates`` and ``nucleus`` are as in `SamplingKind`.
    """
    greedy = logits.argmax(dim=-1)
    is_greedy = (temperature == 0) | (top_k == 1)
    scaled = below_best(logits, at(logits, greedy), torch.where(is_greedy, 1.0, temperature))
    weights = scaled.exp()
    if truncated:
        weights = truncate(weights, scaled, top_k, top_p, min_p, candidates=candidates, nucleus=nucleus)
    return torch.where(is_greedy, greedy, inverse_transform(weights, draws))


def below_best(logits: Tensor, best: Tensor, temperature: Tensor) -> Tensor:
    """``logits`` [S, V] less the ``best`` of each row [S], by its ``temperature`` [S].

    Less the best before the division: no temperature, however small, makes an infinity of it.
    """
    scaled = logits - best[:, None]
    scaled /= temperature[:, None]
    return scaled


def truncated_logits(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    *,
    candidates: int,
    nucleus: bool,
) -> Tensor:
    """``logits`` float32 [S, V] without those that `truncate` leaves out, which are minus infinity."""
    best, temperature = logits.amax(dim=-1), torch.where(temperature == 0, 1.0, temperature)
    scaled = below_best(logits, best, temperature)
    weights = truncate(scaled.exp(), scaled, top_k, top_p, min_p, candidates=candidates, nucleus=nucleus)
    return torch.where(weights > 0, logits, float("-inf"))


def truncate(
    weights: Tensor,
    scaled: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    *,
    candidates: int,
    nucleus: bool,
) -> Tensor:
    """``weights`` [S, V] without those that top-k, then top-p, then min-p leave out.

    They are the exponentials of ``scaled``, whose greatest is 0. Edges are those of transformers' logits
    processors: top-p keeps the token that passes ``top_p``, and what equals the least token that is kept is
    kept too.
    """
    lowest = min_p.log()
    if candidates:
        cut = least_of_top_k(scaled, top_k, top_p, candidates)
        lowest = torch.where(top_k > 0, torch.maximum(lowest, cut), lowest)
    if nucleus:
        cut = least_of_top_p(weights, scaled, top_p)
        lowest = torch.where((top_k == 0) & (top_p < 1), torch.maximum(lowest, cut), lowest)
    return torch.where(scaled >= lowest[:, None], weights, 0.0)


def least_of_top_k(scaled: Tensor, top_k: Tensor, top_p: Tensor, candidates: int) -> Tensor:
    """The least of ``scaled`` [S, V] that top-k, then top-p keep: [S]. ``candidates`` is at least every top-k."""
    best = scaled.topk(min(candidates, scaled.shape[1])).values
    last = (top_k - 1).clamp(0, best.shape[1] - 1)
    place = torch.arange(best.shape[1], device=scaled.device)
    weights = torch.where(place <= last[:, None], best.exp(), 0.0)
    ends = weights.cumsum(dim=-1, dtype=torch.float64)
    wanted = top_p * ends[:, -1]
    last = torch.where(top_p < 1, torch.minimum(last, (ends < wanted[:, None]).sum(dim=-1)), last)
    return at(best, last)


def least_of_top_p(weights: Tensor, scaled: Tensor, top_p: Tensor) -> Tensor:
    """The least of ``scaled`` [S, V] that top-p keeps: [S], for any ``top_p`` below 1.

    A radix selection, which costs a quarter of a sort. Floats of one sign are in the order of their bits, so the
    highest 11 bits say in which of 2048 bins the cut is, and the next 10 and the last 10 where in the bin.
    Weights are added as integers, so that the sums do not depend on the order.
    """
    bits = scaled.abs().view(torch.int32)
    amounts = (weights * WEIGHT_UNIT).long()
    found = torch.zeros_like(bits[:, :1])
    wanted = torch.ceil(amounts.sum(dim=-1, keepdim=True) * top_p.double()[:, None]).long()
    for digits, below in ((11, 20), (10, 10), (10, 0)):
        bins = torch.zeros(len(bits), 1 << digits, dtype=torch.int64, device=bits.device)
        number = bits >> below
        inside = torch.where(number >> digits == found, amounts, 0)
        ends = bins.scatter_add_(1, (number & ((1 << digits) - 1)).long(), inside).cumsum(dim=-1)
        place = (ends < wanted).sum(dim=-1, keepdim=True).clamp(max=(1 << digits) - 1)
        wanted = wanted - torch.where(place > 0, ends.gather(1, (place - 1).clamp(min=0)), 0)
        found = (found << digits) + place.int()
    return -found.view(torch.float32)[:, 0]


def inverse_transform(weights: Tensor, draws: Tensor) -> Tensor:
    """The index int64 [S] at which the cumulative sum of ``weights`` [S, V] exceeds ``draws`` [S] times their total.

    In two levels, which spares the cumulative sums of the whole vocabulary in float64. An index without
    weight is never drawn.
    """
    rows, vocab = weights.shape
    if vocab % DRAW_BLOCK:
        weights = F.pad(weights, (0, -vocab % DRAW_BLOCK))
    blocks = weights.view(rows, -1, DRAW_BLOCK)
    block_ends = blocks.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    wanted = draws * block_ends[:, -1]
    block = first_beyond(block_ends, wanted)
    before = torch.where(block > 0, at(block_ends, (block - 1).clamp(min=0)), 0.0)
    inside = blocks.gather(1, block[:, None, None].expand(-1, 1, DRAW_BLOCK))[:, 0]
    ends = inside.cumsum(dim=-1, dtype=torch.float64)
    return (block * DRAW_BLOCK + first_beyond(ends, wanted - before)).clamp(max=vocab - 1)


def first_beyond(ends: Tensor, wanted: Tensor) -> Tensor:
    """The first place int64 [S] where rising ``ends`` [S, N] are beyond ``wanted`` [S].

    Rounding may have brought ``wanted`` up to the last of them. A row whose logits were NaN has no such
    place; it gets the last, for an index out of bounds would end the device and with it all other rows.
    """
    below_last = torch.nextafter(ends[:, -1], torch.zeros_like(wanted))
    passed = (ends <= torch.minimum(wanted, below_last)[:, None]).sum(dim=-1)
    return passed.clamp(max=ends.shape[1] - 1)


def at(values: Tensor, place: Tensor) -> Tensor:
    """``values`` [S, N] at one place (int64 [S]) of each row."""
    return values.gather(1, place[:, None])[:, 0]
