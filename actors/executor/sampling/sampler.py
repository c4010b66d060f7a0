"""Samples the next tokens: those of all rows of a step at once.

Randomness is counter based: the number for a token is a function of (request seed, token index) and of nothing else. A
request therefore draws the same numbers whatever else is in the batch, at any depth of the pipeline, and again after a
restart. What a row does not ask for leaves its logits as they are, bit for bit.

On a CPU the parameters of other rows therefore change nothing. On a GPU a step whose rows ask for no more than a
temperature is sampled by Triton kernels (`kernels.py`); their exponentials differ in the last bits from those of torch,
by which all rows are sampled beside one that asks for more. Another token follows only if the draw falls between the
two, and in a batch-invariant service (`invariant.py`) none.

A row's logits go through, in this order: logit bias, min-tokens, the penalties of repetition, frequency and presence,
the grammar's mask, and then what `distribution` does. The order is that of transformers' logits processors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ....protocol.limits import MAX_LOGIT_BIAS
from ..step.fields import BIAS, JOIN, column
from ..step.sampling_kind import SamplingKind
from .distribution import draw
from .random_numbers import seed_of, uniform

IN_PROMPT = 1 << 30
"""Bit of a prompt's token in the table of counts; what is below it counts the answer's."""


class Sampler:
    """Samples tokens; keeps of each slot, beside its record of ``fields.JOIN``, logit biases and counts of tokens.

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

    # --- sampling ---------------------------------------------------------------------------------

    def sample(
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
            return sample_by_kernels(logits, position, asked, greedy=kind.greedy)
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
        return self.draw(logits, position, asked, kind).int()

    def draw(
        self, logits: Tensor, position: Tensor, asked: Callable[[str], Tensor], kind: SamplingKind
    ) -> Tensor:
        """As `distribution.draw`, with what the rows ``asked`` for and the draws of the tokens at ``position``."""
        return draw(
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


def sample_by_kernels(
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
