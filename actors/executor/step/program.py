"""What one step computes on the device: gather, forward, sample, scatter.

The token table ``[sequence slot, position]`` lives here. A step gathers its input tokens from it and
scatters what it samples into it, in order on the compute stream; that is how step N+1 can be queued
before anyone knows the tokens of step N.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..cache.layout import allocate
from ..cache.paged import PagedBatch
from ..model.paged_model import PagedModel
from ..sampling.sampler import Sampler, logprobs
from .batch import BIAS_WIDTH, JOIN_FIELDS, JOIN_WIDTH, UNWRITTEN, StepShape


class SlotState:
    """What the device knows of each sequence slot; all tensors, first dimension ``slots + 1``.

    The last is the null slot of padding rows: finished from the start, so it never moves.
    """

    def __init__(self, slots: int, max_model_len: int, max_blocks: int, device: torch.device) -> None:
        slots += 1

        def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(slots, *shape, dtype=dtype, device=device)

        self.tokens = zeros(max_model_len + 1, dtype=torch.int32)
        """The token table."""
        self.block_table = zeros(max_blocks, dtype=torch.int32)
        self.position = zeros(dtype=torch.int64)
        """The next position to compute."""
        self.finished = zeros(dtype=torch.bool)
        self.finished[-1] = True
        self.prompt_len = zeros(dtype=torch.int64)
        self.end = zeros(dtype=torch.int64)
        """How many tokens the sequence has when it ends by length."""
        self.stop = zeros(JOIN_WIDTH - JOIN_FIELDS, dtype=torch.int32)


class ModelProgram:
    """A step of a transformers model over the paged cache."""

    def __init__(
        self,
        model: PagedModel,
        slots: int,
        max_model_len: int,
        num_blocks: int,
        block_size: int,
        *,
        check_carry_over: bool = False,
    ) -> None:
        """``check_carry_over`` asserts on the device that no step reads a token that no step has written."""
        self.model = model
        self.check_carry_over = check_carry_over
        self.block_size = block_size
        self.cache = allocate(model.layout, num_blocks, block_size, model.device, model.dtype)
        max_blocks = -(-max_model_len // block_size)
        self.state = SlotState(slots, max_model_len, max_blocks, model.device)
        self.sampler = Sampler(slots + 1, model.vocab_size, model.device)
        self.block_tokens = torch.zeros(num_blocks * block_size, dtype=torch.int32, device=model.device)
        """The token at each place of the cache: what a prefix that was found there says."""
        self.logits: Tensor | None = None
        """Of a ``forward`` whose ``sample`` has not come."""

    def run(self, inputs: Tensor, outputs: Tensor, shape: StepShape) -> None:
        """One step; ``inputs`` and ``outputs`` int32 as ``StepShape.sections`` and ``results`` say."""
        self.choose(self.compute(inputs, shape), inputs, None, outputs, shape)

    def forward(self, inputs: Tensor, shape: StepShape) -> None:
        """The first part of a step with masks."""
        self.logits = self.compute(inputs, shape)

    def sample(self, inputs: Tensor, masks: Tensor, outputs: Tensor, shape: StepShape) -> None:
        """The second part; ``masks`` int32 [``shape.masked``, ``shape.mask_words``], flat."""
        assert self.logits is not None
        masks = masks[: shape.mask_size].view(-1, shape.mask_words)
        self.choose(self.logits, inputs, masks, outputs, shape)
        self.logits = None

    def compute(self, inputs: Tensor, shape: StepShape) -> Tensor:
        """Gather and forward: the logits float32 [samples + scored, vocab]."""
        state, sampler, at = self.state, self.sampler, shape.sections
        if shape.joins:
            joins = inputs[at["joins"]].view(-1, JOIN_WIDTH)
            self.join(joins)
            sampler.join(joins, shape)
        if shape.biases:
            sampler.join_biases(inputs[at["biases"]].view(-1, BIAS_WIDTH))
        if shape.blocks:
            slot, index, block = inputs[at["blocks"]].view(-1, 3).long().unbind(1)
            state.block_table[slot, index] = block.int()
        if shape.copies:
            self.copy_blocks(*inputs[at["copies"]].view(-1, 2).long().unbind(1))

        # gather
        slots = inputs[at["token_slots"]].long()
        positions = state.position[slots] + inputs[at["token_offsets"]]
        block = state.block_table[slots, positions // self.block_size]
        write_index = block.long() * self.block_size + positions % self.block_size
        first, known = shape.decodes, inputs[at["chunk_tokens"]]
        if shape.chunks:
            state.tokens[slots[first:], positions[first:]] = known
        input_ids = state.tokens[slots, positions].long()
        if self.check_carry_over:
            written = (input_ids != UNWRITTEN).all()
            torch._assert_async(written, "a step reads a token that no step has written")  # type: ignore[attr-defined]
        self.block_tokens[write_index] = input_ids.int()
        if shape.chunks and shape.penalties:
            self.count_history(shape)  # what other rows write in this step is among it
            in_prompt = positions[first:] < state.prompt_len[slots[first:]]
            sampler.count_known(slots[first:], known, in_prompt)
        rows = inputs[at["row_slots"]].long()
        query_start = inputs[at["query_start"]]
        counts = query_start[1:] - query_start[:-1]
        batch = PagedBatch(
            cache=self.cache,
            rows=rows,
            kv_lens=(state.position[rows] + counts).int(),
            query_start=query_start,
            write_index=write_index,
            block_table=state.block_table,
            decode_only=not shape.chunks,
            max_kv_len=max(
                [shape.max_decode_kv_len, *(kv_len for _, count, kv_len in shape.chunks if count == 1)]
            ),
        )

        # forward
        logits = self.model.forward(input_ids, positions, batch, inputs[at["logits_index"]].long()).float()
        state.position[rows] += torch.where(state.finished[rows], 0, counts)
        return logits

    def choose(
        self, logits: Tensor, inputs: Tensor, masks: Tensor | None, outputs: Tensor, shape: StepShape
    ) -> None:
        """Sample and scatter."""
        state, sampler, at = self.state, self.sampler, shape.sections
        results = shape.results
        if shape.scored:
            prompt = logits[shape.samples :]
            ids, values = logprobs(prompt, inputs[at["scored_tokens"]], shape.scored_columns)
            outputs[results["prompt_logprob_tokens"]] = ids.flatten()
            outputs[results["prompt_logprobs"]] = values.view(torch.int32).flatten()
            logits = logits[: shape.samples]
        slots = inputs[at["sample_slots"]].long()
        position = state.position[slots]
        stop = state.stop[slots]
        allowed = None if masks is None else (inputs[at["masked_rows"]].long(), masks)
        tokens = sampler.choose(logits, slots, position - state.prompt_len[slots], stop, shape, allowed)

        # scatter, and the stop tests: a row that is finished brings no token, and will bring none
        finished = state.finished[slots]
        stopping = (stop == tokens[:, None]).any(dim=1) | (position + 1 >= state.end[slots])
        # A finished row goes on writing the cache at the place of its last token: that has to stay what it is.
        state.tokens[slots, position] = torch.where(finished, state.tokens[slots, position], tokens)
        state.finished[slots] = finished | stopping
        if shape.penalties:
            sampler.count_sampled(slots, tokens)
        outputs[results["tokens"]] = torch.where(finished, -1, tokens)
        if shape.logprobs:
            ids, values = logprobs(logits, tokens, shape.logprobs)
            outputs[results["logprob_tokens"]] = ids.flatten()
            outputs[results["logprobs"]] = values.view(torch.int32).flatten()

    def join(self, joins: Tensor) -> None:
        """New holders of slots; the columns are those of ``RunningBatch.pack_joins``."""
        state = self.state
        slots = joins[:, 0].long()
        state.position[slots] = joins[:, 1].long()
        state.finished[slots] = False
        state.prompt_len[slots] = joins[:, 2].long()
        state.end[slots] = joins[:, 13].long()
        state.stop[slots] = joins[:, JOIN_FIELDS:]
        if self.check_carry_over:
            state.tokens[slots] = UNWRITTEN

    def copy_blocks(self, source: Tensor, target: Tensor) -> None:
        """Keys, values and tokens of whole blocks."""
        for pool in (*self.cache.keys, *self.cache.values, self.block_tokens.view(-1, self.block_size)):
            pool[target] = pool[source]

    def count_history(self, shape: StepShape) -> None:
        """Count the tokens of each joining sequence that are not in its chunks: they are in cached blocks."""
        state, size = self.state, self.block_size
        for slot, length in shape.histories:
            positions = torch.arange(length, device=self.block_tokens.device)
            place = state.block_table[slot, positions // size].long() * size + positions % size
            in_prompt = positions < state.prompt_len[slot]
            self.sampler.count_known(torch.full_like(place, slot), self.block_tokens[place], in_prompt)
