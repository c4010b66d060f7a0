"""The running batch as the host keeps it, and how one step is packed into one array of int32.

Plans are deltas, so the executor remembers who holds which sequence slot. All inputs of a step travel
to the device in a single copy; ``StepShape`` says where each section lies. Positions are not among
them: every slot's position lives on the device and advances there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ....protocol.limits import MAX_LOGIT_BIAS, MAX_LOGPROBS, MAX_STOP_TOKEN_IDS, SCORED_TOKENS
from ....protocol.messages import Join, Plan

JOIN_FIELDS = 14
"""slot, start, prompt_len, seed (2), temperature, top_p, top_k, min_p, min_tokens, the penalties of
repetition, presence and frequency, and end. The stop tokens follow."""

JOIN_WIDTH = JOIN_FIELDS + MAX_STOP_TOKEN_IDS

BIAS_WIDTH = 1 + 2 * MAX_LOGIT_BIAS
"""A joining sequence that has a logit bias: slot, token ids, and what is added to the logit of each."""

UNWRITTEN = -1
"""What a cell of the token table holds before a step writes it, where ``check_carry_over`` is on."""

MIN_CANDIDATES = 64
"""Least of the powers of two that ``StepShape.candidates`` takes: not one shape for every top-k."""


@dataclass(frozen=True)
class StepShape:
    """The sizes of one step, known to the host, and from them the sections of its packed inputs."""

    decodes: int
    """Rows that run one token, padding included; their tokens come first."""
    chunks: tuple[tuple[int, int, int], ...]
    """(first token, tokens, kv_len) of each row that prefills."""
    samples: int
    """Rows that sample, padding included, which comes last."""
    padding: int
    """Rows of the null slot that fill a step which only decodes up to a captured size."""
    joins: int
    blocks: int
    max_decode_kv_len: int
    greedy: bool
    """No sampling row has a temperature."""
    truncated: bool
    """Some sampling row has top-k, top-p or min-p."""
    min_tokens: bool
    """Some sampling row may not stop yet."""
    candidates: int = 0
    """So many of the most likely tokens hold the cut of every row that has top-k; 0: no row has it."""
    nucleus: bool = False
    """Some sampling row has top-p and no top-k."""
    penalties: bool = False
    """Some row, sampling or not, has a penalty, so that its tokens are counted."""
    histories: tuple[tuple[int, int], ...] = ()
    """(slot, tokens) of each joining sequence with a penalty that begins with cached tokens."""
    biases: int = 0
    """Joining sequences that have a logit bias."""
    biased: bool = False
    """Some sampling row has a logit bias."""
    copies: int = 0
    """Blocks that are copied."""
    logprobs: int = 0
    """Logprobs of each sampling row: 0, 1 for the sampled token's, or 1 + MAX_LOGPROBS."""
    masked: tuple[tuple[int, int], ...] = ()
    """(sampling row, slot) of each row that has a mask."""
    mask_words: int = 0
    """int32 of one mask, a bit for each token of the vocabulary."""
    scored: int = 0
    """Tokens of prompts whose logprobs are told; their logits come after those of the rows that sample."""
    scored_columns: int = 0
    """As ``logprobs``, of each of them."""
    forward_only: bool = False
    """No step, but the forward pass of one: the name of its CUDA graph."""

    @cached_property
    def rows(self) -> int:
        return self.decodes + len(self.chunks)

    @cached_property
    def tokens(self) -> int:
        return self.decodes + sum(count for _, count, _ in self.chunks)

    @cached_property
    def sections(self) -> dict[str, slice]:
        """Where each section of the inputs lies, in elements."""
        return consecutive(
            row_slots=self.rows,
            query_start=self.rows + 1,
            token_slots=self.tokens,
            token_offsets=self.tokens,
            chunk_tokens=self.tokens - self.decodes,
            sample_slots=self.samples,
            logits_index=self.samples + self.scored,
            scored_tokens=self.scored,
            joins=self.joins * JOIN_WIDTH,
            biases=self.biases * BIAS_WIDTH,
            copies=self.copies * 2,
            blocks=self.blocks * 3,
            masked_rows=len(self.masked),  # last: a graph of the forward pass alone goes without
        )

    @cached_property
    def size(self) -> int:
        return self.sections["masked_rows"].stop

    @cached_property
    def mask_size(self) -> int:
        return len(self.masked) * self.mask_words

    @cached_property
    def results(self) -> dict[str, slice]:
        """Where each section of the outputs lies: tokens [S], then [S, logprobs] of int32 and of float32.

        The first column of the last two is the sampled token, the others are the most likely ones. The same
        follows for the prompts: [scored, scored_columns].
        """
        count, scored = self.samples * self.logprobs, self.scored * self.scored_columns
        return consecutive(
            tokens=self.samples,
            logprob_tokens=count,
            logprobs=count,
            prompt_logprob_tokens=scored,
            prompt_logprobs=scored,
        )

    @cached_property
    def output_size(self) -> int:
        return self.results["prompt_logprobs"].stop

    def unpack(self, outputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """The sections of ``results``, flat and without the padding rows."""
        rows = self.samples - self.padding
        at, count = self.results, rows * self.logprobs
        return (
            outputs[:rows],
            outputs[at["logprob_tokens"]][:count],
            outputs[at["logprobs"]][:count],
            outputs[at["prompt_logprob_tokens"]],
            outputs[at["prompt_logprobs"]],
        )


def consecutive(**sizes: int) -> dict[str, slice]:
    """Sections of these sizes, one after another."""
    sections: dict[str, slice] = {}
    start = 0
    for name, size in sizes.items():
        sections[name] = slice(start, start + size)
        start += size
    return sections


class RunningBatch:
    """Who holds which sequence slot, and how far each is."""

    def __init__(
        self,
        slots: int,
        max_batched_tokens: int,
        max_blocks: int,
        graph_sizes: tuple[int, ...] = (),
        mask_words: int = 0,
    ) -> None:
        self.null_slot = slots
        """Nobody's slot, one past the last: padding rows run in it."""
        self.graph_sizes = graph_sizes
        """Batch sizes, rising, for which a step that only decodes is captured; it is padded to one of them."""
        self.mask_words = mask_words
        self.mask_capacity = slots * mask_words
        """Elements of the masks of the largest step."""
        slots += 1
        self.capacity = (
            8 * slots
            + 1
            + 2 * SCORED_TOKENS
            + 3 * max_batched_tokens
            + slots * (JOIN_WIDTH + BIAS_WIDTH)
            + 3 * slots * max_blocks
        )
        """Elements that the inputs of the largest step can need."""
        self.output_capacity = slots * (1 + 2 * (1 + MAX_LOGPROBS)) + 2 * SCORED_TOKENS * (1 + MAX_LOGPROBS)
        """The same for its outputs."""
        self.prompts: dict[int, np.ndarray] = {}
        """Known tokens of each slot that still prefills."""
        self.position = np.zeros(slots, np.int64)
        self.num_blocks = np.zeros(slots, np.int64)
        self.decoding = np.zeros(slots, np.bool_)
        self.sampled = np.zeros(slots, np.bool_)
        self.truncated = np.zeros(slots, np.bool_)
        self.candidates = np.zeros(slots, np.int32)
        self.nucleus = np.zeros(slots, np.bool_)
        self.penalised = np.zeros(slots, np.bool_)
        self.biased = np.zeros(slots, np.bool_)
        self.logprobs = np.zeros(slots, np.int32)
        """As ``StepShape.logprobs``."""
        self.constrained = np.zeros(slots, np.bool_)
        self.scored_columns = np.zeros(slots, np.int32)
        """As ``StepShape.scored_columns``."""
        self.prompt_len = np.zeros(slots, np.int64)
        self.stops_from = np.zeros(slots, np.int64)
        """Position from which the slot may stop."""

    def clear(self) -> None:
        """Forget everything: a new scheduler plans from nothing."""
        self.prompts.clear()
        self.decoding[:] = False

    def stage(self, plan: Plan, staging: np.ndarray) -> StepShape:
        """Apply a plan and pack its step into ``staging``."""
        leaves = np.frombuffer(plan.leaves, np.int32)
        self.decoding[leaves] = False
        for slot in leaves.tolist():
            self.prompts.pop(slot, None)
        for join in plan.joins:
            self.join(join)

        real_rows = np.flatnonzero(self.decoding)
        decode_rows = real_rows if plan.chunks else self.padded(real_rows)
        decodes = len(decode_rows)
        chunk_list = np.frombuffer(plan.chunks, np.int32).reshape(-1, 2).tolist()
        chunks: list[tuple[int, int, int]] = []
        ended: list[tuple[int, int]] = []
        scored: list[np.ndarray] = []
        scored_tokens: list[np.ndarray] = []
        scored_columns = 0
        first = decodes
        for slot, count in chunk_list:
            end = int(self.position[slot]) + count
            chunks.append((first, count, end))
            told = min(end, int(self.prompt_len[slot]) - 1) - (end - count)
            if self.scored_columns[slot] and told > 0:
                scored.append(np.arange(first, first + told))
                scored_tokens.append(self.prompts[slot][end - count + 1 :][:told])
                scored_columns = max(scored_columns, int(self.scored_columns[slot]))
            first += count
            if end == len(self.prompts[slot]):
                ended.append((slot, first - 1))

        samples = decode_rows
        logits_index = np.arange(decodes)
        if ended:
            samples = np.concatenate([decode_rows, [slot for slot, _ in ended]])
            logits_index = np.concatenate([logits_index, [token for _, token in ended]])
            order = np.argsort(samples)
            samples, logits_index = samples[order], logits_index[order]

        padding = decodes - len(real_rows)
        masked = np.flatnonzero(self.constrained[samples])
        chunk_slots = [slot for slot, _ in chunk_list]
        blocks = np.frombuffer(plan.blocks, np.int32).reshape(-1, 2)
        shape = StepShape(
            decodes=decodes,
            chunks=tuple(chunks),
            samples=len(samples),
            padding=padding,
            joins=len(plan.joins),
            blocks=decodes if self.graph_sizes and not chunks else len(blocks),
            max_decode_kv_len=int(self.position[decode_rows].max()) + 1 if decodes else 0,
            greedy=not self.sampled[samples].any(),
            truncated=bool(self.truncated[samples].any()),
            candidates=int(self.candidates[samples].max(initial=0)),
            nucleus=bool(self.nucleus[samples].any()),
            min_tokens=bool((self.position[samples] < self.stops_from[samples]).any()),
            penalties=bool(self.penalised[decode_rows].any() or self.penalised[chunk_slots].any()),
            histories=tuple(
                (join.slot, join.start) for join in plan.joins if join.start and self.penalised[join.slot]
            ),
            biases=sum(1 for join in plan.joins if join.bias_tokens),
            biased=bool(self.biased[samples].any()),
            copies=len(plan.copies) // 8,
            logprobs=int(self.logprobs[samples].max(initial=0)),
            masked=tuple(zip(masked.tolist(), samples[masked].tolist(), strict=True)),
            mask_words=self.mask_words if len(masked) else 0,
            scored=sum(map(len, scored)),
            scored_columns=scored_columns,
        )
        at = shape.sections
        row_slots = staging[at["row_slots"]]
        row_slots[:decodes] = decode_rows
        row_slots[decodes:] = chunk_slots
        query_start = staging[at["query_start"]]
        query_start[: decodes + 1] = np.arange(decodes + 1)
        query_start[decodes:-1] = [token for token, _, _ in chunks]
        query_start[-1] = shape.tokens
        token_slots, offsets = staging[at["token_slots"]], staging[at["token_offsets"]]
        chunk_tokens = staging[at["chunk_tokens"]]
        token_slots[:decodes] = decode_rows
        offsets[:decodes] = 0
        for (slot, count), (start, _, end) in zip(chunk_list, chunks, strict=True):
            token_slots[start : start + count] = slot
            offsets[start : start + count] = np.arange(count)
            chunk_tokens[start - decodes : start - decodes + count] = self.prompts[slot][end - count : end]
        staging[at["sample_slots"]] = samples
        staging[at["logits_index"]] = np.concatenate([logits_index, *scored])
        if scored:
            staging[at["scored_tokens"]] = np.concatenate(scored_tokens)
        staging[at["masked_rows"]] = masked
        if plan.joins:
            self.pack_joins(plan.joins, staging[at["joins"]].reshape(-1, JOIN_WIDTH))
        if shape.biases:
            self.pack_biases(plan.joins, staging[at["biases"]].reshape(-1, BIAS_WIDTH))
        if plan.copies:
            staging[at["copies"]] = np.frombuffer(plan.copies, np.int32)
        if shape.blocks:
            self.pack_blocks(blocks, staging[at["blocks"]].reshape(-1, 3))

        self.position[real_rows] += 1
        for (slot, _), (_, _, end) in zip(chunk_list, chunks, strict=True):
            self.position[slot] = end
        for slot, _ in ended:
            del self.prompts[slot]
            self.decoding[slot] = True
        return shape

    def padded(self, rows: np.ndarray) -> np.ndarray:
        """The rows of a step that only decodes, filled up with the null slot to the next captured size."""
        size = next((size for size in self.graph_sizes if size >= len(rows)), len(rows))
        return np.concatenate([rows, np.full(size - len(rows), self.null_slot)])

    def join(self, join: Join) -> None:
        slot = join.slot
        if self.decoding[slot] or slot in self.prompts:
            raise RuntimeError(f"sequence slot {slot} is taken by a sequence that has not left")
        self.prompts[slot] = np.frombuffer(join.tokens, np.int32)
        self.position[slot] = join.start
        self.num_blocks[slot] = 0
        sampled = self.sampled[slot] = join.temperature > 0 and join.top_k != 1
        self.truncated[slot] = sampled and (join.top_k > 0 or join.top_p < 1 or join.min_p > 0)
        self.candidates[slot] = power_of_two(join.top_k, MIN_CANDIDATES) if sampled and join.top_k else 0
        self.nucleus[slot] = sampled and join.top_k == 0 and join.top_p < 1
        self.stops_from[slot] = join.prompt_len + join.min_tokens - 1
        self.penalised[slot] = (
            join.repetition_penalty != 1.0 or join.presence_penalty != 0.0 or join.frequency_penalty != 0.0
        )
        self.biased[slot] = bool(join.bias_tokens)
        self.constrained[slot] = join.grammar is not None
        self.scored_columns[slot] = columns(join.prompt_logprobs)
        self.prompt_len[slot] = join.prompt_len
        self.logprobs[slot] = columns(join.logprobs)

    def pack_joins(self, joins: list[Join], rows: np.ndarray) -> None:
        floats = rows.view(np.float32)
        for index, join in enumerate(joins):
            stop = np.frombuffer(join.stop_tokens, np.int32)
            rows[index, :5] = (join.slot, join.start, join.prompt_len, *seed_words(join.seed))
            floats[index, 5:7] = (join.temperature, join.top_p)
            rows[index, 7] = join.top_k
            floats[index, 8] = join.min_p
            rows[index, 9] = join.min_tokens
            floats[index, 10:13] = (join.repetition_penalty, join.presence_penalty, join.frequency_penalty)
            rows[index, 13] = join.end
            rows[index, JOIN_FIELDS:] = -2
            rows[index, JOIN_FIELDS : JOIN_FIELDS + len(stop)] = stop

    def pack_biases(self, joins: list[Join], rows: np.ndarray) -> None:
        """Unused places add nothing to the logit of token 0."""
        biased = [join for join in joins if join.bias_tokens]
        rows[:] = 0
        floats = rows.view(np.float32)
        for index, join in enumerate(biased):
            tokens, biases = np.frombuffer(join.bias_tokens, np.int32), np.frombuffer(join.biases, np.float32)
            rows[index, 0] = join.slot
            rows[index, 1 : 1 + len(tokens)] = tokens
            floats[index, 1 + MAX_LOGIT_BIAS : 1 + MAX_LOGIT_BIAS + len(biases)] = biases

    def pack_blocks(self, blocks: np.ndarray, rows: np.ndarray) -> None:
        """Give each appended block its place in the block table of its slot: (slot, index, block).

        Rows left over, of a padded step, give the null slot its null block once more.
        """
        rows[len(blocks) :] = (self.null_slot, 0, 0)
        rows = rows[: len(blocks)]
        rows[:, 0] = blocks[:, 0]
        rows[:, 2] = blocks[:, 1]
        for row, slot in enumerate(blocks[:, 0].tolist()):
            rows[row, 1] = self.num_blocks[slot]
            self.num_blocks[slot] += 1


def columns(logprobs: int) -> int:
    """Logprobs of a token, of which the request reads those that it asks for: three numbers, not one for each."""
    return 0 if logprobs < 0 else 1 if logprobs == 0 else 1 + MAX_LOGPROBS


def power_of_two(number: int, least: int) -> int:
    """The smallest power of two that is neither below ``number`` nor below ``least``."""
    return max(least, 1 << (number - 1).bit_length())


def seed_words(seed: int) -> tuple[int, int]:
    """A 64-bit seed as two int32, low word first."""
    words = np.array([seed & 0xFFFFFFFFFFFFFFFF], np.uint64).view(np.int32)
    return int(words[0]), int(words[1])
