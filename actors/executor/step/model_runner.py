"""The computation of one step on the device: apply, forward, sample."""

from __future__ import annotations

import torch
from torch import Tensor

from ..cache.kv_cache import LayerScales, allocate
from ..cache.paged_batch import PagedBatch
from ..cache.state import StateCache
from ..devices.float8 import FP8
from ..model.paged_model import PagedModel
from ..ranks.sampler import sampler_of
from ..sampling.invariant import invariant_sampler
from ..sampling.logprobs import logprobs
from .description import Step
from .fields import BLOCK, COPY, COUNT, JOIN, PLACEHOLDER, UNWRITTEN, column
from .layout import ResultLayout, StepLayout
from .sampling_kind import SamplingKind
from .slot_table import DeviceSlotTable


class ModelRunner:
    """A step of a transformers model over the paged cache."""

    def __init__(
        self,
        model: PagedModel,
        seq_slots: int,
        max_model_len: int,
        block_size: int,
        num_blocks: int = 0,
        *,
        scales: list[LayerScales] | None = None,
        check_carry_over: bool = False,
    ) -> None:
        """Without ``num_blocks``, ``allocate_cache`` has to be called later.

        ``scales`` make it an FP8 cache; without them it is in the model's dtype.

        ``check_carry_over`` asserts on the device that no step reads a token that no step has written.
        """
        self.model = model
        self.check_carry_over = check_carry_over
        self.scales = scales
        self.block_size = block_size
        max_blocks = -(-max_model_len // block_size)
        self.table = DeviceSlotTable(seq_slots, max_model_len, max_blocks, model.device)
        self.states = (
            StateCache(model.state_layout, seq_slots + 1, model.device) if model.state_layout else None
        )
        """The states of recurrent layers for each sequence slot; None if the model has none."""
        self.null_slots = torch.tensor([seq_slots], device=model.device)
        sizes = (seq_slots + 1, model.vocab_size, model.device)
        self.sampler = invariant_sampler(*sizes) if model.batch_invariant else sampler_of(model.group, *sizes)
        self.ordinals = torch.arange(seq_slots + 1, dtype=torch.int32, device=model.device)
        """0, 1, 2, …: the first token of each row of a step that only decodes."""
        self.logits: Tensor | None = None
        """The logits of a step that has begun and is not finished."""
        if num_blocks:
            self.allocate_cache(num_blocks)

    def allocate_cache(self, num_blocks: int) -> None:
        """Take the memory of the paged cache."""
        model = self.model
        dtype = model.dtype if self.scales is None else FP8
        self.cache = allocate(model.kv_layout, num_blocks, self.block_size, model.device, dtype, self.scales)
        self.block_tokens = torch.zeros(num_blocks * self.block_size, dtype=torch.int32, device=model.device)
        """The token at each cache index, for sequences that share blocks with others and need to know their tokens."""

    def run(self, inputs: Tensor, outputs: Tensor, step: Step) -> None:
        """Compute one step; ``inputs`` and ``outputs`` are int32, laid out as ``step.layout`` and ``step.results``
        say."""
        self.begin(inputs, step)
        self.finish(inputs, None, outputs, step)

    def begin(self, inputs: Tensor, step: Step) -> None:
        """Compute all that needs no mask, which is everything before the sampling."""
        self.apply(inputs, step)
        self.logits = self.forward(inputs, step.layout, step.max_kv_len, step.row_tokens)
        self.count(inputs, step)

    def finish(self, inputs: Tensor, masks: Tensor | None, outputs: Tensor, step: Step) -> None:
        """Sample the tokens and write the results; ``masks`` is int32 [len(step.masked), step.mask_words], flat."""
        assert self.logits is not None
        layout = step.layout
        if layout.samples:
            slots = layout.view(inputs, "sample_slots")[: layout.samples]
            self.sample(self.logits, slots, allowed_of(inputs, masks, step), outputs, step.kind, step.results)
        if layout.prompt_logprobs:
            self.report_prompts(self.logits, inputs, outputs, step)
        self.logits = None

    # --- what changed since the step before ---------------------------------------------------------

    def apply(self, inputs: Tensor, step: Step) -> None:
        """Write what joining sequences bring, extend the block table, and copy blocks."""
        layout, table = step.layout, self.table
        if layout.joins:
            joins = layout.view(inputs, "joins")
            slots = column(joins, JOIN, "slot").long()
            self.join(slots, joins)
            self.sampler.join(slots, step.penalised_joins)
        if layout.biases:
            self.sampler.join_biases(layout.view(inputs, "biases"))
        if layout.blocks:
            blocks = layout.view(inputs, "blocks")
            slot, index = (column(blocks, BLOCK, name).long() for name in ("slot", "index"))
            table.block_table[slot, index] = column(blocks, BLOCK, "block")
        if layout.copies:
            copies = layout.view(inputs, "copies")
            source, target = (column(copies, COPY, name).long() for name in ("source", "target"))
            self.cache.copy_blocks(source, target)
            tokens = self.block_tokens.view(-1, self.block_size)
            tokens[target] = tokens[source]

    def join(self, slots: Tensor, joins: Tensor) -> None:
        """Write the records of sequences that take ``slots`` int64 [N]; ``joins`` are records of ``fields.JOIN``."""
        table = self.table
        table.requests[slots] = joins
        table.position[slots] = column(joins, JOIN, "start").long()
        table.finished[slots] = False
        if self.states is not None:
            self.states.clear(slots)
            self.states.clear(
                self.null_slots
            )  # padding rows compute there, and their values could grow out of bounds
        if self.check_carry_over:
            table.tokens[slots] = UNWRITTEN

    def count(self, inputs: Tensor, step: Step) -> None:
        """Count the known tokens of sequences that have a penalty: those in shared blocks when a sequence joins, and
        those of its chunks.

        This follows the forward pass, since other rows may write into a shared block in the same step.
        """
        for history in step.histories:
            self.count_history(history.slot, history.length)
        if step.layout.counts:
            counts = step.layout.view(inputs, "counts")
            self.sampler.count_known(
                column(counts, COUNT, "slot").long(),
                column(counts, COUNT, "token"),
                column(counts, COUNT, "in_prompt").bool(),
            )

    def count_history(self, slot: int, length: int) -> None:
        table, size = self.table, self.block_size
        positions = torch.arange(length, device=self.block_tokens.device)
        place = table.block_table[slot, positions // size].long() * size + positions % size
        in_prompt = positions < column(table.requests, JOIN, "prompt_len")[slot]
        self.sampler.count_known(torch.full_like(place, slot), self.block_tokens[place], in_prompt)

    # --- forward: depends on nothing but the layout, so that it can be captured as a graph ------------

    def forward(
        self, inputs: Tensor, layout: StepLayout, max_kv_len: int, row_tokens: tuple[int, ...] = ()
    ) -> Tensor:
        """Gather the inputs and run the model; returns logits [layout.logits, vocab] in the model's dtype.

        ``row_tokens`` as in `Step`; a step that has them is never captured as a graph.
        """
        if layout.decode_only:
            slots = layout.view(inputs, "sample_slots")[: layout.rows]
            rows, positions, input_ids, write_index, kv_lens = self.table.gather(
                slots, self.block_tokens, self.block_size
            )
            self.check_written(input_ids)
            query_start = self.ordinals[: layout.rows + 1]
            batch = self.batch_of(rows, rows, kv_lens, query_start, write_index, True, max_kv_len, row_tokens)
            return self.model.forward(input_ids, positions, batch, None)
        return self.forward_mixed(inputs, layout, max_kv_len, row_tokens)

    def forward_mixed(
        self, inputs: Tensor, layout: StepLayout, max_kv_len: int, row_tokens: tuple[int, ...]
    ) -> Tensor:
        """The forward pass of a step whose rows have any number of tokens. Tokens of prompts are written into the token
        table, the others are read from it."""
        table, size = self.table, self.block_size
        rows = layout.view(inputs, "row_slots").long()
        token_slots = layout.view(inputs, "token_slots").long()
        query_start = layout.view(inputs, "query_start")
        logits_index = layout.view(inputs, "logits_index").long()
        after = table.position[rows] + (query_start[1:] - query_start[:-1])
        positions = table.position[token_slots] + layout.view(inputs, "token_offsets")
        known = layout.view(inputs, "known_tokens")
        input_ids = torch.where(known == PLACEHOLDER, table.tokens[token_slots, positions], known)
        table.tokens[token_slots, positions] = input_ids
        self.check_written(input_ids)
        block = table.block_table[token_slots, positions // size]
        write_index = torch.add(positions % size, block, alpha=size)
        self.block_tokens[write_index] = input_ids
        batch = self.batch_of(
            rows, token_slots, after.int(), query_start, write_index, False, max_kv_len, row_tokens
        )
        logits = self.model.forward(input_ids.long(), positions, batch, logits_index)
        table.position[rows] = torch.where(table.finished[rows], table.position[rows], after)
        return logits

    def batch_of(
        self,
        rows: Tensor,
        token_slots: Tensor,
        kv_lens: Tensor,
        query_start: Tensor,
        write_index: Tensor,
        decode_only: bool,
        max_kv_len: int,
        row_tokens: tuple[int, ...],
    ) -> PagedBatch:
        return PagedBatch(
            cache=self.cache,
            rows=rows,
            kv_lens=kv_lens,
            query_start=query_start,
            write_index=write_index,
            block_table=self.table.block_table,
            decode_only=decode_only,
            max_kv_len=max_kv_len,
            states=self.states,
            row_tokens=row_tokens,
            adapter_ids=self.adapter_ids_of(token_slots),
        )

    def adapter_ids_of(self, token_slots: Tensor) -> Tensor | None:
        """The id of the adapter of each token; ``token_slots`` int64 [T] are the tokens' slots."""
        if self.model.adapters is None:
            return None
        return column(self.table.requests, JOIN, "adapter")[token_slots]

    def check_written(self, input_ids: Tensor) -> None:
        if self.check_carry_over:
            written = (input_ids != UNWRITTEN).all()
            torch._assert_async(written, "a step reads a token that no step has written")  # type: ignore[attr-defined]

    # --- sample: depends on nothing but the rows and the kind of sampling, so that it can be captured --

    def sample(
        self,
        logits: Tensor,
        sample_slots: Tensor,
        allowed: tuple[Tensor, Tensor] | None,
        outputs: Tensor,
        kind: SamplingKind,
        results: ResultLayout,
    ) -> None:
        """Sample from ``logits`` [>= S, vocab] a token for each of ``sample_slots`` int32 [S]; write them into the
        token table, and into ``outputs``. ``allowed`` as in `Sampler.sample`.
        """
        table, sampler = self.table, self.sampler
        slots = sample_slots.long()
        logits = logits[: len(slots)]
        position = table.position[slots]
        requests = table.requests[slots]
        tokens = sampler.sample(logits, slots, requests, position, kind, allowed)

        table.scatter(sample_slots, tokens, results.view(outputs, "tokens"))
        if kind.penalties:
            sampler.count_sampled(slots, tokens)
        if kind.logprobs:
            exact = logits.float()
            ids, values = logprobs(exact, sampler.totals(exact), tokens, kind.logprobs)
            results.view(outputs, "logprob_tokens").copy_(ids.flatten())
            results.view(outputs, "logprobs").copy_(values.view(torch.int32).flatten())

    def report_prompts(self, logits: Tensor, inputs: Tensor, outputs: Tensor, step: Step) -> None:
        """Write the logprobs of the tokens of prompts into ``outputs``."""
        layout, results = step.layout, step.results
        first = layout.prompt_logits_start
        prompt = logits[first : first + layout.prompt_logprobs].float()
        totals, tokens = self.sampler.totals(prompt), layout.view(inputs, "prompt_tokens")
        ids, values = logprobs(prompt, totals, tokens, step.prompt_columns)
        results.view(outputs, "prompt_logprob_tokens").copy_(ids.flatten())
        results.view(outputs, "prompt_logprobs").copy_(values.view(torch.int32).flatten())


def allowed_of(inputs: Tensor, masks: Tensor | None, step: Step) -> tuple[Tensor, Tensor] | None:
    """The rows int64 [M] that have a mask, and their masks int32 [M, words]; None if there are no masks."""
    if masks is None:
        return None
    rows = step.layout.view(inputs, "masked_rows").long()
    return rows, masks[: step.mask_size].view(-1, step.mask_words)
