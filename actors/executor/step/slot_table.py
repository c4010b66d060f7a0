"""The table of sequence slots on the device: steps take their tokens from there and write new ones back.

The token table ``[sequence slot, position]`` lives here. A step gathers its input tokens from it and scatters what it
samples into it, in order on the compute stream; that is how step N+1 can be queued before anyone knows the tokens of
step N.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .fields import INT, JOIN, NO_TOKEN, column


class DecodeInputs(NamedTuple):
    """The rows of a step that only decodes, one token each."""

    rows: Tensor
    """int64 [R]: their slots."""
    positions: Tensor
    """int64 [R]"""
    input_ids: Tensor
    """int64 [R]"""
    write_index: Tensor
    """int64 [R]: the cache index that each token is written to."""
    kv_lens: Tensor
    """int32 [R]: the number of tokens in the cache after this step."""


class DeviceSlotTable:
    """What the device knows of the holder of each slot. All tensors have the first dimension ``seq_slots + 1``.

    The last is the null slot of padding rows: finished from the start, so it never moves.
    """

    def __init__(self, seq_slots: int, max_model_len: int, max_blocks: int, device: torch.device) -> None:
        def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(seq_slots + 1, *shape, dtype=dtype, device=device)

        self.tokens = zeros(max_model_len + 1, dtype=torch.int32)
        """The token table."""
        self.block_table = zeros(max_blocks, dtype=torch.int32)
        self.position = zeros(dtype=torch.int64)
        """The next position to compute."""
        self.finished = zeros(dtype=torch.bool)
        self.finished[-1] = True
        self.requests = zeros(JOIN.itemsize // INT.itemsize, dtype=torch.int32)
        """The record of ``fields.JOIN`` with which the holder joined."""
        column(self.requests, JOIN, "repetition_penalty").fill_(1.0)  # the null slot divides by it too
        rows, positions, input_ids, write_index = (zeros(dtype=torch.int64) for _ in range(4))
        self.decode_inputs = DecodeInputs(rows, positions, input_ids, write_index, zeros(dtype=torch.int32))
        """What the kernel of ``gather`` writes. It holds indices from the start: kernels are also compiled in passes
        that run none of them."""

    def gather(self, slots: Tensor, block_tokens: Tensor, block_size: int) -> DecodeInputs:
        """The next token of each of ``slots`` int32 [R], which moves on unless it has finished.

        ``block_tokens`` int32 gets the token at each place of the cache that the step writes.
        """
        if slots.is_cuda:
            from .kernels import gather  # triton comes with torch where there is a GPU

            out = DecodeInputs(*(tensor[: len(slots)] for tensor in self.decode_inputs))
            fields = (self.position, self.finished, self.tokens, self.block_table)
            gather(slots, *fields, block_tokens, block_size, out)
            return out
        rows = slots.long()
        positions = self.position[rows]
        after = positions + 1
        input_ids = self.tokens[rows, positions]
        block = self.block_table[rows, positions // block_size]
        write_index = torch.add(positions % block_size, block, alpha=block_size)
        block_tokens[write_index] = input_ids
        self.position[rows] = torch.where(self.finished[rows], positions, after)
        return DecodeInputs(rows, positions, input_ids.long(), write_index, after.int())

    def scatter(self, slots: Tensor, sampled: Tensor, out: Tensor) -> None:
        """Write ``sampled`` int32 [S] as the next tokens of ``slots`` int32 [S], and find out who has finished.

        ``out`` int32 [S] gets them too. A row that was finished brings none, and goes on writing the cache at the place
        of its last token: that has to stay what it is.
        """
        if slots.is_cuda:
            from .kernels import scatter

            scatter(slots, sampled, self.position, self.finished, self.tokens, self.requests, out)
            return
        rows = slots.long()
        position, requests, finished = self.position[rows], self.requests[rows], self.finished[rows]
        stopping = (column(requests, JOIN, "stop_tokens") == sampled[:, None]).any(dim=1)
        stopping |= position + 1 >= column(requests, JOIN, "max_length")
        self.tokens[rows, position] = torch.where(finished, self.tokens[rows, position], sampled)
        self.finished[rows] = finished | stopping
        out.copy_(torch.where(finished, NO_TOKEN, sampled))
