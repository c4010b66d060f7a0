"""The running batch: the host's record of which sequence slots are held, and of the position of each.

A plan is only the difference from the step before, so the executor keeps this record. ``stage`` applies a plan, lays
its step out, packs it into one array of int32, and advances the record. Positions are not packed: the device keeps the
position of every slot and advances it. So steps that only decode have the same inputs until the batch changes, and are
laid out once.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ....protocol.internal import Join, Plan
from ....protocol.limits import MAX_JOINED_TOKENS, MAX_LOGPROBS, PROMPT_LOGPROBS_PER_STEP
from .buckets import Buckets, padded
from .description import History, Step
from .layout import StepLayout, layout_of
from .packing import pack_biases, pack_blocks, pack_counts, pack_joins, pack_mixed
from .rows import Chunk, Rows
from .sampling_kind import SamplingKind

MIN_CANDIDATES = 64
"""Least number of candidates that sampling is prepared for; larger numbers are powers of two. Most requests ask for a
top-k of up to 50, transformers' default, and so share one kind of graph."""

NO_TOKENS = np.zeros(0, np.int32)


class RunningBatch:
    """The sequences that hold a slot, and the position of each."""

    def __init__(
        self,
        seq_slots: int,
        max_batched_tokens: int,
        max_blocks: int,
        buckets: Buckets | None = None,
        mask_words: int = 0,
        *,
        stateful: bool = False,
    ) -> None:
        """``max_blocks`` is the number of blocks of the longest sequence. Without ``buckets`` steps are not padded.

        ``stateful``: the model keeps states, so that it has to know the tokens of each row (``Step.row_tokens``).
        """
        self.seq_slots = seq_slots
        self.null_slot = seq_slots
        """The slot after the last one, which nobody holds: padding rows run in it."""
        self.buckets = buckets
        self.mask_words = mask_words
        self.stateful = stateful
        self.steady: Rows | None = None
        """The rows of the last step if it only decoded: the next steps have the same until the batch changes."""

        self.input_capacity = largest_inputs(seq_slots, max_batched_tokens, max_blocks)
        """The number of int32 that the inputs of the largest step need."""
        logprobs = 2 * (1 + MAX_LOGPROBS)  # of one token: ids and values
        self.output_capacity = seq_slots * (1 + logprobs) + PROMPT_LOGPROBS_PER_STEP * logprobs
        """The number of int32 of its outputs."""
        self.mask_capacity = seq_slots * mask_words
        """The number of int32 of its masks."""

        slots = seq_slots + 1
        self.prompts: dict[int, np.ndarray] = {}
        """For each slot that still prefills, the known tokens of its sequence."""
        self.position = np.zeros(slots, np.int64)
        self.num_blocks = np.zeros(slots, np.int64)
        self.decoding = np.zeros(slots, np.bool_)
        self.random = np.zeros(slots, np.bool_)
        """Whether the tokens of a slot are drawn; otherwise the most likely one is taken."""
        self.truncated = np.zeros(slots, np.bool_)
        self.candidates = np.zeros(slots, np.int32)
        self.nucleus = np.zeros(slots, np.bool_)
        self.penalised = np.zeros(slots, np.bool_)
        self.biased = np.zeros(slots, np.bool_)
        self.logprobs = np.zeros(slots, np.int32)
        """As ``SamplingKind.logprobs``."""
        self.constrained = np.zeros(slots, np.bool_)
        self.prompt_columns = np.zeros(slots, np.int32)
        """As ``Step.prompt_columns``."""
        self.prompt_len = np.zeros(slots, np.int64)
        self.stops_from = np.zeros(slots, np.int64)
        """The position from which on the sequence may stop; 0: any."""

    def clear(self) -> None:
        """Forget everything: a new scheduler plans from nothing."""
        self.prompts.clear()
        self.decoding[:] = False
        self.steady = None

    def stage(self, plan: Plan, staging: np.ndarray) -> Step:
        """Apply a plan and pack its step into ``staging``, int32 of ``input_capacity``."""
        self.apply(plan)
        rows = self.select_rows(plan)
        step = self.describe(plan, rows)
        self.pack(plan, rows, step.layout, staging)
        self.advance(rows)
        return step

    # --- apply ------------------------------------------------------------------------------------

    def apply(self, plan: Plan) -> None:
        """Free the slots that sequences leave, and record those that joining sequences take."""
        if plan.leaves:
            leaves = np.frombuffer(plan.leaves, np.int32)
            self.decoding[leaves] = False
            for slot in leaves.tolist():
                self.prompts.pop(slot, None)
            self.steady = None
        for join in plan.joins:
            self.join(join)

    def join(self, join: Join) -> None:
        slot = join.slot
        if self.decoding[slot] or slot in self.prompts:
            raise RuntimeError(f"sequence slot {slot} is taken by a sequence that has not left")
        self.prompts[slot] = np.frombuffer(join.tokens, np.int32)
        self.position[slot] = join.start
        self.num_blocks[slot] = 0
        random = self.random[slot] = join.temperature > 0 and join.top_k != 1
        self.truncated[slot] = random and (join.top_k > 0 or join.top_p < 1 or join.min_p > 0)
        self.candidates[slot] = power_of_two(join.top_k, MIN_CANDIDATES) if random and join.top_k else 0
        self.nucleus[slot] = random and join.top_k == 0 and join.top_p < 1
        # Without min_tokens a sequence may stop at any position, also in the first chunk of its prompt.
        self.stops_from[slot] = join.prompt_len + join.min_tokens - 1 if join.min_tokens else 0
        self.penalised[slot] = (
            join.repetition_penalty != 1.0 or join.presence_penalty != 0.0 or join.frequency_penalty != 0.0
        )
        self.biased[slot] = bool(join.bias_tokens)
        self.constrained[slot] = join.grammar is not None
        self.prompt_columns[slot] = columns(join.prompt_logprobs)
        self.prompt_len[slot] = join.prompt_len
        self.logprobs[slot] = columns(join.logprobs)

    # --- select rows ------------------------------------------------------------------------------

    def select_rows(self, plan: Plan) -> Rows:
        """The rows of the step: one for every sequence that has no prompt left, and one for each chunk of the plan."""
        if plan.chunks:
            self.steady = None
            return self.select_mixed_rows(np.frombuffer(plan.chunks, np.int32).reshape(-1, 2).tolist())
        if self.steady is None:
            decode = np.flatnonzero(self.decoding)
            self.steady = self.rows(decode, [], decode, np.arange(len(decode)))
        elif self.steady.kind.min_tokens:
            self.steady.kind = self.kind(self.steady.sampling)
        return self.steady

    def select_mixed_rows(self, chunk_list: list[list[int]]) -> Rows:
        decode = np.flatnonzero(self.decoding)
        chunks: list[Chunk] = []
        first = len(decode)
        for slot, count in chunk_list:
            chunks.append(self.chunk(slot, count, first))
            first += count
        samples, tokens = decode, np.arange(len(decode))
        if ended := [chunk for chunk in chunks if chunk.is_last]:
            samples = np.concatenate([samples, [chunk.slot for chunk in ended]])
            tokens = np.concatenate([tokens, [chunk.first + len(chunk.tokens) - 1 for chunk in ended]])
            order = np.argsort(samples)
            samples, tokens = samples[order], tokens[order]
        return self.rows(decode, chunks, samples, tokens)

    def chunk(self, slot: int, count: int, first: int) -> Chunk:
        known, start = self.prompts[slot], int(self.position[slot])
        end = start + count
        reported = NO_TOKENS
        if self.prompt_columns[slot]:
            reported = known[start + 1 : min(end + 1, int(self.prompt_len[slot]))]
        return Chunk(slot, known[start:end], first, end, end == len(known), reported)

    def rows(self, decode: np.ndarray, chunks: list[Chunk], samples: np.ndarray, tokens: np.ndarray) -> Rows:
        sample_slots = np.full(self.seq_slots, self.null_slot, np.int32)
        sample_slots[: len(samples)] = samples
        masked = np.flatnonzero(self.constrained[samples])
        return Rows(decode, chunks, samples, tokens, sample_slots, masked, self.kind(samples))

    def kind(self, samples: np.ndarray) -> SamplingKind:
        return SamplingKind(
            greedy=not self.random[samples].any(),
            truncated=bool(self.truncated[samples].any()),
            candidates=int(self.candidates[samples].max(initial=0)),
            nucleus=bool(self.nucleus[samples].any()),
            min_tokens=bool((self.position[samples] < self.stops_from[samples]).any()),
            penalties=bool(self.penalised[samples].any()),
            biased=bool(self.biased[samples].any()),
            logprobs=int(self.logprobs[samples].max(initial=0)),
        )

    # --- describe ---------------------------------------------------------------------------------

    def describe(self, plan: Plan, rows: Rows) -> Step:
        """The step as the host describes it to the device."""
        step = Step(
            layout=layout_of(
                seq_slots=self.seq_slots,
                **self.sizes(rows),
                joins=len(plan.joins),
                biases=sum(1 for join in plan.joins if join.bias_tokens),
                blocks=len(plan.blocks) // 8,
                copies=len(plan.copies) // 8,
                counts=sum(len(chunk.tokens) for chunk in rows.chunks if self.penalised[chunk.slot]),
                masked=len(rows.masked),
            ),
            kind=rows.kind,
            num_samples=len(rows.sampling),
            max_kv_len=self.max_kv_len(rows),
            row_tokens=rows.tokens if self.stateful and rows.chunks else (),
        )
        penalised = [join for join in plan.joins if self.penalised[join.slot]]
        if not (penalised or len(rows.masked) or step.layout.prompt_logprobs):
            return step
        reporting = [chunk.slot for chunk in rows.chunks if len(chunk.reported)]
        return replace(
            step,
            penalised_joins=tuple(join.slot for join in penalised),
            histories=tuple(History(join.slot, join.start) for join in penalised if join.start),
            masked=tuple(zip(rows.masked.tolist(), rows.sampling[rows.masked].tolist(), strict=True)),
            mask_words=self.mask_words if len(rows.masked) else 0,
            prompt_columns=int(self.prompt_columns[reporting].max(initial=0)),
        )

    def sizes(self, rows: Rows) -> dict[str, int]:
        """The sizes of a step on the device, with buckets padded to the next one."""
        decodes, samples = len(rows.decode), len(rows.sampling)
        if not rows.chunks:
            size = padded(decodes, self.buckets.decode) if self.buckets else max(1, decodes)
            return {"decode_only": True, "rows": size, "tokens": size, "logits": size, "samples": size}
        count = decodes + len(rows.chunks)
        tokens = decodes + sum(len(chunk.tokens) for chunk in rows.chunks)
        reported = most_reported = sum(len(chunk.reported) for chunk in rows.chunks)
        sample_logits = samples
        if self.buckets:
            samples = padded(samples, self.buckets.decode) if samples else 0
            tokens = padded(tokens, self.buckets.mixed)
            count = sample_logits = self.buckets.rows_for(tokens)
            most_reported = PROMPT_LOGPROBS_PER_STEP if reported else 0
        return {
            "decode_only": False,
            "rows": count,
            "tokens": tokens,
            "logits": sample_logits + most_reported,
            "samples": samples,
            "prompt_logprobs": reported,
            "prompt_logits_start": sample_logits,
        }

    def max_kv_len(self, rows: Rows) -> int:
        longest = int(self.position[rows.decode].max(initial=0)) + 1
        return max([longest, *(chunk.end for chunk in rows.chunks)]) if rows.chunks else longest

    # --- pack -------------------------------------------------------------------------------------

    def pack(self, plan: Plan, rows: Rows, layout: StepLayout, staging: np.ndarray) -> None:
        """Write the step into ``staging``, each field into the slice that ``layout`` gives it."""
        layout.view(staging, "sample_slots")[:] = rows.sample_slots
        if not layout.decode_only:
            pack_mixed(rows, self.null_slot, layout, staging)
        if layout.joins:
            pack_joins(plan.joins, layout.view(staging, "joins"))
        if layout.biases:
            pack_biases(plan.joins, layout.view(staging, "biases"))
        if layout.blocks:
            pack_blocks(np.frombuffer(plan.blocks, np.int32), self.num_blocks, layout.view(staging, "blocks"))
        if layout.copies:
            layout.view(staging, "copies").view(np.int32)[:] = np.frombuffer(plan.copies, np.int32)
        if layout.counts:
            pack_counts(rows.chunks, self.penalised, self.prompt_len, layout.view(staging, "counts"))
        if layout.masked:
            layout.view(staging, "masked_rows")[:] = rows.masked

    # --- advance ----------------------------------------------------------------------------------

    def advance(self, rows: Rows) -> None:
        """Update the host's record of the batch to the state after the step."""
        self.position[rows.decode] += 1
        for chunk in rows.chunks:
            self.position[chunk.slot] = chunk.end
            if chunk.is_last:
                del self.prompts[chunk.slot]
                self.decoding[chunk.slot] = True


def largest_inputs(seq_slots: int, max_batched_tokens: int, max_blocks: int) -> int:
    """The number of int32 of a step's inputs if it has the most of everything."""
    rows = min(max_batched_tokens, seq_slots)
    # Joining sequences need at most a block for each token, and the last to join may be the longest possible. Every
    # other sequence gets at most one more block.
    blocks = min(seq_slots * max_blocks, MAX_JOINED_TOKENS + max_blocks + seq_slots)
    return StepLayout(
        seq_slots,
        decode_only=False,
        rows=rows,
        tokens=max_batched_tokens,
        logits=rows + PROMPT_LOGPROBS_PER_STEP,
        samples=seq_slots,
        joins=seq_slots,
        biases=seq_slots,
        blocks=blocks,
        copies=seq_slots,
        counts=max_batched_tokens,
        masked=seq_slots,
        prompt_logprobs=PROMPT_LOGPROBS_PER_STEP,
    ).input_size


def columns(logprobs: int) -> int:
    """The number of logprobs that are computed for a token: none, one, or the most that are allowed, so that there are
    few kinds of graphs. A request reads as many as it asks for."""
    return 0 if logprobs < 0 else 1 if logprobs == 0 else 1 + MAX_LOGPROBS


def power_of_two(number: int, least: int) -> int:
    """The smallest power of two that is neither below ``number`` nor below ``least``."""
    return max(least, 1 << (number - 1).bit_length())
