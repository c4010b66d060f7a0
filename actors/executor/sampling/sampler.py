"""Choosing the next tokens: all rows of a step at once.

Randomness is counter based: the number for a token is a function of (request seed, token index) and of
nothing else. A request therefore draws the same numbers whatever else is in the batch, at any depth of
the pipeline, and again after a restart. What a row does not ask for leaves its logits as they are, bit for bit.

On a CPU a neighbour's wishes therefore change nothing. On a GPU a step whose rows ask for no more than a
temperature is sampled by Triton kernels (`kernels.py`); their exponentials differ in the last bits from those of
torch, by which all rows are sampled beside one that asks for more. Another token follows only if the draw falls
between the two, and in a batch-invariant service (`invariant.py`) none.

A row's logits go through, in this order: logit bias, min-tokens, the penalties of repetition, frequency
and presence, the grammar's mask, temperature, top-k, top-p, min-p, the draw. The order is that of transformers' logits
processors; vLLM applies min-p before top-k and top-p.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ....protocol.limits import MAX_LOGIT_BIAS
from ..step.fields import BIAS, JOIN, column
from ..step.layout import SamplingKind

IN_PROMPT = 1 << 30
"""Mark of a prompt's token in the table of counts; what is below it counts the answer's."""

WEIGHT_UNIT = 2.0**44
"""A weight of 1 as an integer: the weights of up to 2**18 tokens add up to less than 2**63."""

DRAW_BLOCK = 256
"""The draw first finds the block of this many tokens, then the token in it."""


class Sampler:
    """What sampling keeps of each slot beside its record of ``fields.JOIN``: logit biases, and counts of tokens.

    All tensors, first dimension ``slots``.
    """

    def __init__(self, slots: int, vocab_size: int, device: torch.device) -> None:
        def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(slots, *shape, dtype=dtype, device=device)

        self.bias_tokens = zeros(MAX_LOGIT_BIAS, dtype=torch.int64)
        self.bias = zeros(MAX_LOGIT_BIAS, dtype=torch.float32)
        self.vocab_size = vocab_size
        self.counts = zeros(vocab_size, dtype=torch.int32)
        """How often the answer has the token, and ``IN_PROMPT`` if the prompt has it, [slots, vocab].

        Only the rows of sequences with a penalty mean anything. At 256 slots and 128,000 tokens it takes
        131 MB, as much as the logits of one step; it is made at the start, before the cache takes what is left.
        """

    # --- who is in which slot ---------------------------------------------------------------------

    def join(self, slots: Tensor, penalised: Sequence[int]) -> None:
        """New holders of ``slots`` int64 [N]; ``penalised`` are the slots of those with a penalty."""
        self.bias[slots] = 0.0
        for slot in penalised:
            self.counts[slot] = 0

    def join_biases(self, biases: Tensor) -> None:
        """Logit biases of new holders: int32 records of ``fields.BIAS``."""
        slots = column(biases, BIAS, "slot").long()
        self.bias_tokens[slots] = column(biases, BIAS, "tokens").long()
        self.bias[slots] = column(biases, BIAS, "biases")

    # --- what was said before ---------------------------------------------------------------------

    def count_known(self, slots: Tensor, tokens: Tensor, in_prompt: Tensor) -> None:
        """Count tokens that the host knew: ``slots`` int64, ``tokens`` int32, ``in_prompt`` bool, all [N].

        The tokens of a sequence come in order, and a prompt is marked before anything is added to it.
        """
        counts, place = self.counts.view(-1), slots * self.vocab_size + tokens
        counts.scatter_reduce_(0, place, in_prompt.int() * IN_PROMPT, "amax")
        counts.scatter_add_(0, place, (~in_prompt).int())

    def count_sampled(self, slots: Tensor, tokens: Tensor) -> None:
        """Count one sampled token (int32 [S]) of each of ``slots`` (int64 [S]), for the steps after this."""
        place = slots * self.vocab_size + tokens
        self.counts.view(-1).scatter_add_(0, place, torch.ones_like(tokens))

    # --- the choice -------------------------------------------------------------------------------

    def choose(
        self,
        logits: Tensor,
        slots: Tensor,
        requests: Tensor,
        position: Tensor,
        kind: SamplingKind,
        allowed: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """The next tokens int32 [S] of ``slots`` int64 [S], at ``position`` int64 [S] of each sequence.

        ``logits`` [S, V], in any dtype, stay as they are; ``requests`` int32 [S, width] are the slots' records of
        ``fields.JOIN``. ``kind`` says what some row of the step asks for. ``allowed`` are rows int64 [M] and their
        masks int32 [M, words].
        """
        plain = kind == SamplingKind(greedy=kind.greedy, logprobs=kind.logprobs) and allowed is None

        def asked(name: str) -> Tensor:
            return column(requests, JOIN, name)

        if logits.is_cuda and plain:
            return choose_by_kernels(logits, position, asked, greedy=kind.greedy)
        if kind.greedy and plain:
            return logits.argmax(dim=-1).int()
        index = position - asked("prompt_len")
        logits = logits.float()
        if kind.biased:
            logits = logits.scatter_add(1, self.bias_tokens[slots], self.bias[slots])
        if kind.min_tokens:
            stop = asked("stop_tokens")
            early = (index < asked("min_tokens"))[:, None] & (stop >= 0)
            barred = torch.where(early, float("-inf"), 0.0)
            logits = logits.scatter_add(1, stop.long().clamp(min=0), barred)
        if kind.penalties:
            logits = penalise(
                logits,
                self.counts[slots],
                asked("repetition_penalty"),
                asked("presence_penalty"),
                asked("frequency_penalty"),
            )
        if allowed is not None:
            rows, masks = allowed
            logits = logits.index_copy(0, rows, masked(logits[rows], masks))
        if kind.greedy:
            return logits.argmax(dim=-1).int()
        return self.sample(logits, position, asked, kind).int()

    def sample(
        self, logits: Tensor, position: Tensor, asked: Callable[[str], Tensor], kind: SamplingKind
    ) -> Tensor:
        """As `sampler.sample`, with what the rows ``asked`` for and the draws of the tokens at ``position``."""
        return sample(
            logits,
            asked("temperature"),
            asked("top_k").long(),
            asked("top_p"),
            asked("min_p"),
            uniform(seed_of(asked("seed_low"), asked("seed_high")), position - asked("prompt_len")),
            truncated=kind.truncated,
            candidates=kind.candidates,
            nucleus=kind.nucleus,
        )

    def totals(self, logits: Tensor) -> Tensor:
        """The logarithms [S, 1] of the sums of the exponentials of ``logits`` float32 [S, V]."""
        return logits.logsumexp(dim=-1, keepdim=True)


def choose_by_kernels(
    logits: Tensor, position: Tensor, asked: Callable[[str], Tensor], *, greedy: bool
) -> Tensor:
    """The next tokens of rows that ask for a temperature and nothing else, on a GPU.

    Exponentials differ from those of torch by their last bits, less than logits do between batches.
    """
    from .kernels import best_tokens, sampled_tokens  # triton comes with torch where there is a GPU

    if greedy:
        return best_tokens(logits)
    names = ("temperature", "top_k", "prompt_len", "seed_low", "seed_high")
    return sampled_tokens(logits, position, *(asked(name) for name in names))


def seed_of(low: Tensor, high: Tensor) -> Tensor:
    """The seed int64 of its two words int32."""
    return (high.long() << 32) | (low.long() & 0xFFFFFFFF)


def penalise(
    logits: Tensor, counts: Tensor, repetition: Tensor, presence: Tensor, frequency: Tensor
) -> Tensor:
    """``logits`` [S, V] less the penalties [S]; ``counts`` int32 [S, V] as in ``Sampler.counts``.

    Repetition is about prompt and answer, and divides positive logits and multiplies negative ones (Keskar
    et al., 2019); frequency and presence are about the answer and are subtracted, as in vLLM.
    """
    repetition = repetition[:, None]
    repeated = torch.where(logits > 0, logits / repetition, logits * repetition)
    penalised = torch.where(counts > 0, repeated, logits)
    said = counts & (IN_PROMPT - 1)
    penalised -= frequency[:, None] * said
    penalised -= presence[:, None] * (said > 0)
    return penalised


def masked(logits: Tensor, masks: Tensor) -> Tensor:
    """``logits`` [M, V] where the bit of the token is set in ``masks`` int32 [M, words], otherwise -inf.

    A token that is allowed but barred by min-tokens is the last to be taken, not an impossible one: there
    may be no other.
    """
    bit = torch.arange(8, dtype=torch.uint8, device=masks.device)
    # A byte for each token, of value 0 or 1, which is a bool: an int32 for each would be as large as the logits.
    allowed = ((masks.view(torch.uint8)[:, :, None] >> bit) & 1).flatten(1).view(torch.bool)
    lowest = torch.finfo(logits.dtype).min
    return torch.where(allowed[:, : logits.shape[1]], logits.clamp(min=lowest), float("-inf"))


def sample(
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
    return torch.where(is_greedy, greedy, draw(weights, draws))


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

    A radix selection, which costs a quarter of the sort that it stands for: the bits of floats of one sign
    are in order, so 11 of them say in which of 2048 bins the cut is, and then twice 10 of them where in the
    bin. Weights are added as integers, so that the sums do not depend on the order.
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


def draw(weights: Tensor, draws: Tensor) -> Tensor:
    """The place int64 [S] at which the cumulated ``weights`` [S, V], of any sum, pass ``draws`` [S] of it.

    In two levels, which spares the cumulated sums of the whole vocabulary in float64. A place without
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


def logprobs(logits: Tensor, totals: Tensor, tokens: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """Token ids int32 and logprobs float32, both [S, ``columns``]: the sampled token's, then the most likely ones.

    ``logits`` float32 [S, V] are the model's own, and ``totals`` [S, 1] as of `Sampler.totals`; ``tokens`` int32 [S]
    what was sampled. Columns for which
    the vocabulary has no tokens are zero.
    """
    ids = tokens[:, None]
    values = logits.gather(1, ids.long())
    if columns > 1:
        best = logits.topk(min(columns - 1, logits.shape[1]))
        ids = torch.cat([ids, best.indices.int()], dim=1)
        values = torch.cat([values, best.values], dim=1)
    values = values - totals
    unused = (0, columns - values.shape[1])
    return F.pad(ids, unused), F.pad(values, unused)


# --- random numbers ---------------------------------------------------------------------------------


def to_signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word


GOLDEN = to_signed(0x9E3779B97F4A7C15)
MIX_1 = to_signed(0xBF58476D1CE4E5B9)
MIX_2 = to_signed(0x94D049BB133111EB)


def uniform(seed: Tensor, index: Tensor) -> Tensor:
    """float64 in [0, 1) for each pair of int64; SplitMix64 (Steele, Lea and Flood, 2014) as a function.

    int64 arithmetic wraps as the algorithm's unsigned does; a right shift has to lose the sign.
    """
    z = mix(seed) + GOLDEN * (index + 1)
    z = mix(z)
    return ((z >> 11) & ((1 << 53) - 1)).double() * 2.0**-53


def mix(z: Tensor) -> Tensor:
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * MIX_1
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * MIX_2
    return z ^ ((z >> 31) & ((1 << 33) - 1))
