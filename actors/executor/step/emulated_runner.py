"""The runner of an emulated device: makes tokens by a known function, in the place of a model."""

from __future__ import annotations

import numpy as np

from .description import Step
from .fields import JOIN, PLACEHOLDER, UNWRITTEN
from .layout import ResultLayout, StepLayout
from .sampling_kind import SamplingKind


def next_token(previous: np.ndarray, position: np.ndarray, seed: np.ndarray, vocab_size: int) -> np.ndarray:
    """The known function: the token at ``position`` after ``previous``, all int64 [rows].

    It depends on the token before it, so one wrong carry-over changes every token that follows.
    """
    with np.errstate(over="ignore"):
        mixed = previous.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= position.astype(np.uint64) * np.uint64(0xBF58476D1CE4E5B9) + seed.astype(np.uint64)
        mixed = (mixed ^ (mixed >> np.uint64(31))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(29)
    return (mixed % np.uint64(vocab_size)).astype(np.int64)


def known_logprobs(token: np.ndarray, columns: int, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids int32 and logprobs float32 [rows, columns] of int64 tokens [rows]: each is the most likely.

    The sampled token's comes first, then those of the most likely tokens, each half as likely as the last.
    """
    order = np.maximum(np.arange(columns) - 1, 0)
    ids = (token[:, None] + order) % vocab_size
    values = -np.log(2.0) * (1 + token[:, None] % 5 + order)
    return ids.astype(np.int32), values.astype(np.float32)


def next_allowed(token: np.ndarray, masks: np.ndarray, vocab_size: int) -> np.ndarray:
    """The first token from ``token`` (int64 [rows]) on, in a circle, whose bit is set in ``masks`` [rows, words]."""
    bits = np.unpackbits(masks.view(np.uint8), axis=1, bitorder="little")[:, :vocab_size]
    around = (token[:, None] + np.arange(vocab_size)) % vocab_size
    return (token + np.take_along_axis(bits, around, axis=1).argmax(axis=1)) % vocab_size


class EmulatedRunner:
    """The token table, carry-over and stop test of the real runner, around ``next_token``.

    Of the sampling parameters only ``seed``, ``adapter``, ``min_tokens`` and a grammar change its tokens.
    """

    def __init__(
        self, seq_slots: int, max_model_len: int, vocab_size: int, *, check_carry_over: bool = False
    ) -> None:
        """``check_carry_over`` raises when a step reads a token that no step has written."""
        self.vocab_size = vocab_size
        self.check_carry_over = check_carry_over
        slots = seq_slots + 1  # the last is the null slot, which never moves
        self.tokens = np.zeros((slots, max_model_len + 1), np.int64)
        self.position = np.zeros(slots, np.int64)
        self.finished = np.zeros(slots, np.bool_)
        self.finished[-1] = True
        self.seed = np.zeros(slots, np.int64)
        self.stops_from = np.zeros(slots, np.int64)
        self.max_length = np.zeros(slots, np.int64)
        self.stop_tokens = np.zeros((slots, JOIN["stop_tokens"].shape[0]), np.int64)

    def run(self, inputs: np.ndarray, outputs: np.ndarray, step: Step) -> None:
        self.begin(inputs, step)
        self.finish(inputs, None, outputs, step)

    def begin(self, inputs: np.ndarray, step: Step) -> None:
        self.apply(inputs, step)
        self.forward(inputs, step.layout)

    def finish(self, inputs: np.ndarray, masks: np.ndarray | None, outputs: np.ndarray, step: Step) -> None:
        """As `ModelRunner.finish`."""
        layout = step.layout
        slots, allowed = layout.view(inputs, "sample_slots")[: layout.samples], None
        if masks is not None:
            rows = layout.view(inputs, "masked_rows")
            allowed = rows, masks[: step.mask_size].reshape(-1, step.mask_words)
        self.sample(slots, allowed, outputs, step.kind, step.results)
        if layout.prompt_logprobs:
            self.report_prompts(inputs, outputs, step)

    # --- the parts of a step, as those of `ModelRunner` -------------------------------------------------

    def apply(self, inputs: np.ndarray, step: Step) -> None:
        if step.layout.joins:
            self.join(step.layout.view(inputs, "joins"))

    def forward(self, inputs: np.ndarray, layout: StepLayout) -> None:
        if layout.decode_only:
            rows, counts = layout.view(inputs, "sample_slots")[: layout.rows], 1
        else:
            slots, known = layout.view(inputs, "token_slots"), layout.view(inputs, "known_tokens")
            positions = self.position[slots] + layout.view(inputs, "token_offsets")
            new = known != PLACEHOLDER
            self.tokens[slots[new], positions[new]] = known[new]
            rows, counts = layout.view(inputs, "row_slots"), np.diff(layout.view(inputs, "query_start"))
        self.position[rows] += counts * ~self.finished[rows]

    def join(self, joins: np.ndarray) -> None:
        slots = joins["slot"]
        self.position[slots] = joins["start"]
        self.finished[slots] = False
        seed = joins["seed_high"].astype(np.int64) << 32 | joins["seed_low"].astype(np.uint32)
        self.seed[slots] = seed ^ joins["adapter"]
        self.stops_from[slots] = joins["prompt_len"] + joins["min_tokens"]
        self.max_length[slots] = joins["max_length"]
        self.stop_tokens[slots] = joins["stop_tokens"]
        if self.check_carry_over:
            self.tokens[slots] = UNWRITTEN

    def sample(
        self,
        slots: np.ndarray,
        allowed: tuple[np.ndarray, np.ndarray] | None,
        outputs: np.ndarray,
        kind: SamplingKind,
        results: ResultLayout,
    ) -> None:
        """``allowed`` are the rows [M] that have a mask, and the masks [M, words]."""
        position, finished = self.position[slots], self.finished[slots]
        previous = self.tokens[slots, position - 1]
        if self.check_carry_over and (previous == UNWRITTEN).any():
            raise RuntimeError("a step reads a token that no step has written")
        token = next_token(previous, position, self.seed[slots], self.vocab_size)
        stopping = (self.stop_tokens[slots] == token[:, None]).any(axis=1)
        early = stopping & (position < self.stops_from[slots])
        while early.any():  # no stop token before min_tokens: the next one that is none
            token[early] = (token[early] + 1) % self.vocab_size
            stopping = (self.stop_tokens[slots] == token[:, None]).any(axis=1)
            early &= stopping
        if allowed is not None:
            rows, masks = allowed
            token[rows] = next_allowed(token[rows], masks, self.vocab_size)
            stopping = (self.stop_tokens[slots] == token[:, None]).any(axis=1)
        self.tokens[slots, position] = token
        results.view(outputs, "tokens")[:] = np.where(finished, -1, token)
        if kind.logprobs:
            ids, values = known_logprobs(token, kind.logprobs, self.vocab_size)
            results.view(outputs, "logprob_tokens")[:] = ids.ravel()
            results.view(outputs, "logprobs")[:] = values.view(np.int32).ravel()
        self.finished[slots] = finished | stopping | (position + 1 >= self.max_length[slots])

    def report_prompts(self, inputs: np.ndarray, outputs: np.ndarray, step: Step) -> None:
        prompt = step.layout.view(inputs, "prompt_tokens").astype(np.int64)
        ids, values = known_logprobs(prompt, step.prompt_columns, self.vocab_size)
        step.results.view(outputs, "prompt_logprob_tokens")[:] = ids.ravel()
        step.results.view(outputs, "prompt_logprobs")[:] = values.view(np.int32).ravel()
