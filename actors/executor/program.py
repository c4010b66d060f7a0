"""What one step computes on the device: gather, forward, sample, scatter.

The token table ``[sequence slot, position]`` lives here. A step gathers its input tokens from it and
scatters what it samples into it, in order on the compute stream; that is how step N+1 can be queued
before anyone knows the tokens of step N.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .batch import JOIN_FIELDS, JOIN_WIDTH, StepShape
from .kv_cache import allocate
from .model import PagedModel
from .paged import PagedBatch
from .sampler import sample, uniform


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
        self.seed = zeros(dtype=torch.int64)
        self.temperature = zeros(dtype=torch.float32)
        self.top_p = zeros(dtype=torch.float32)
        self.top_k = zeros(dtype=torch.int64)
        self.min_p = zeros(dtype=torch.float32)
        self.min_tokens = zeros(dtype=torch.int64)
        self.stop = zeros(JOIN_WIDTH - JOIN_FIELDS, dtype=torch.int32)


class ModelProgram:
    """A step of a transformers model over the paged cache."""

    def __init__(
        self, model: PagedModel, slots: int, max_model_len: int, num_blocks: int, block_size: int
    ) -> None:
        self.model = model
        self.block_size = block_size
        self.cache = allocate(model.layout, num_blocks, block_size, model.device, model.dtype)
        max_blocks = -(-max_model_len // block_size)
        self.state = SlotState(slots, max_model_len, max_blocks, model.device)

    def run(self, inputs: Tensor, outputs: Tensor, shape: StepShape) -> None:
        """One step; ``inputs`` int32 as ``StepShape.sections`` says, ``outputs`` int32 [samples]."""
        state, at = self.state, shape.sections
        if shape.joins:
            self.join(inputs[at["joins"]].view(-1, JOIN_WIDTH))
        if shape.blocks:
            slot, index, block = inputs[at["blocks"]].view(-1, 3).long().unbind(1)
            state.block_table[slot, index] = block.int()

        # gather
        slots = inputs[at["token_slots"]].long()
        positions = state.position[slots] + inputs[at["token_offsets"]]
        if shape.chunks:
            first = shape.decodes
            state.tokens[slots[first:], positions[first:]] = inputs[at["chunk_tokens"]]
        input_ids = state.tokens[slots, positions].long()
        rows = inputs[at["row_slots"]].long()
        query_start = inputs[at["query_start"]]
        counts = query_start[1:] - query_start[:-1]
        block = state.block_table[slots, positions // self.block_size]
        batch = PagedBatch(
            cache=self.cache,
            rows=rows,
            kv_lens=(state.position[rows] + counts).int(),
            query_start=query_start,
            write_index=block.long() * self.block_size + positions % self.block_size,
            block_table=state.block_table,
            num_decode=shape.decodes,
            chunks=list(shape.chunks),
            max_decode_kv_len=shape.max_decode_kv_len,
        )

        # forward
        logits = self.model.forward(input_ids, positions, batch, inputs[at["logits_index"]].long())
        state.position[rows] += torch.where(state.finished[rows], 0, counts)

        # sample
        slots = inputs[at["sample_slots"]].long()
        position = state.position[slots]
        tokens = self.choose(logits.float(), slots, position - state.prompt_len[slots], shape)

        # scatter, and the stop test: a row that is finished brings no token, and will bring none
        finished = state.finished[slots]
        stopping = (state.stop[slots] == tokens[:, None]).any(dim=1)
        state.tokens[slots, position] = tokens
        state.finished[slots] = finished | stopping
        outputs[: shape.samples] = torch.where(finished, -1, tokens)

    def join(self, joins: Tensor) -> None:
        """New holders of slots; the columns are those of ``RunningBatch.pack_joins``."""
        state = self.state
        floats = joins.view(torch.float32)
        slots = joins[:, 0].long()
        state.position[slots] = joins[:, 1].long()
        state.finished[slots] = False
        state.prompt_len[slots] = joins[:, 2].long()
        low, high = joins[:, 3].long(), joins[:, 4].long()
        state.seed[slots] = (high << 32) | (low & 0xFFFFFFFF)
        state.temperature[slots] = floats[:, 5]
        state.top_p[slots] = floats[:, 6]
        state.top_k[slots] = joins[:, 7].long()
        state.min_p[slots] = floats[:, 8]
        state.min_tokens[slots] = joins[:, 9].long()
        state.stop[slots] = joins[:, JOIN_FIELDS:]

    def choose(self, logits: Tensor, slots: Tensor, index: Tensor, shape: StepShape) -> Tensor:
        """The next tokens int32 [S], the ``index``-th (int64 [S]) of each answer."""
        state = self.state
        if shape.min_tokens:
            stop = state.stop[slots].long()
            early = (index < state.min_tokens[slots])[:, None] & (stop >= 0)
            barred = torch.where(early, float("-inf"), 0.0)
            logits = logits.scatter_add(1, stop.clamp(min=0), barred)
        if shape.greedy:
            return logits.argmax(dim=-1).int()
        return sample(
            logits,
            state.temperature[slots],
            state.top_k[slots],
            state.top_p[slots],
            state.min_p[slots],
            uniform(state.seed[slots], index),
            truncated=shape.truncated,
        ).int()
