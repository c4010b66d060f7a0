"""Triton kernels for a step that only decodes: one before the model and one after it.

Plain torch takes some thirty kernels of a few numbers for it, which count where a step takes a millisecond.
``DeviceSlotTable`` says what is computed.

With ``TRITON_INTERPRET=1`` in the environment before the first import of ``triton`` they run on a CPU, for tests.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ..triton_tools.kernel import FOLLOWING, follow, jit
from .fields import INT, JOIN, NO_STOP_TOKEN, NO_TOKEN

ROWS = 32
"""Rows of one program."""

SLICES = ["slots", "out"]
"""Parts of larger tensors, at any offset. By default Triton compiles a kernel anew for another alignment of a pointer,
which would be in the middle of serving."""

RECORD = JOIN.itemsize // INT.itemsize
MAX_LENGTH = JOIN.fields["max_length"][1] // INT.itemsize  # type: ignore[index]
STOP_TOKENS = JOIN.fields["stop_tokens"][1] // INT.itemsize  # type: ignore[index]
MAX_STOP_TOKENS = JOIN["stop_tokens"].shape[0]


@jit(do_not_specialize=["count"], do_not_specialize_on_alignment=SLICES)
def _gather_kernel(
    slots,  # int32 [R]
    position,  # int64 [seq_slots + 1]
    finished,  # bool [seq_slots + 1]
    tokens,  # int32 [seq_slots + 1, length]
    block_table,  # int32 [seq_slots + 1, blocks]
    block_tokens,  # int32 [num_blocks * BLOCK_SIZE]
    rows,  # int64 [R], as what follows
    positions,
    input_ids,
    write_index,
    kv_lens,  # int32 [R]
    count,
    tokens_stride,
    table_stride,
    BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
):
    follow()
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    valid = row < count
    slot = tl.load(slots + row, mask=valid, other=0).to(tl.int64)
    at = tl.load(position + slot, mask=valid, other=0)
    ended = tl.load(finished + slot, mask=valid, other=0)
    token = tl.load(tokens + slot * tokens_stride + at, mask=valid, other=0)
    block = tl.load(block_table + slot * table_stride + at // BLOCK_SIZE, mask=valid, other=0)
    place = block.to(tl.int64) * BLOCK_SIZE + at % BLOCK_SIZE
    tl.store(rows + row, slot, mask=valid)
    tl.store(positions + row, at, mask=valid)
    tl.store(input_ids + row, token.to(tl.int64), mask=valid)
    tl.store(write_index + row, place, mask=valid)
    tl.store(kv_lens + row, (at + 1).to(tl.int32), mask=valid)
    tl.store(block_tokens + place, token, mask=valid)
    tl.store(position + slot, tl.where(ended != 0, at, at + 1), mask=valid)


@jit(do_not_specialize=["count"], do_not_specialize_on_alignment=SLICES)
def _scatter_kernel(
    slots,  # int32 [S]
    sampled,  # int32 [S]
    position,  # int64 [seq_slots + 1]
    finished,  # bool [seq_slots + 1]
    tokens,  # int32 [seq_slots + 1, length]
    requests,  # int32 [seq_slots + 1, RECORD]
    out,  # int32 [S]
    count,
    tokens_stride,
    RECORD: tl.constexpr,
    MAX_LENGTH: tl.constexpr,
    STOP_TOKENS: tl.constexpr,
    MOST: tl.constexpr,
    MAX_PAD: tl.constexpr,
    NO_STOP_TOKEN: tl.constexpr,
    NO_TOKEN: tl.constexpr,
    ROWS: tl.constexpr,
):
    follow()
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    valid = row < count
    slot = tl.load(slots + row, mask=valid, other=0).to(tl.int64)
    token = tl.load(sampled + row, mask=valid, other=0)
    at = tl.load(position + slot, mask=valid, other=0)
    ended = tl.load(finished + slot, mask=valid, other=0)
    record = requests + slot * RECORD
    stop = tl.arange(0, MAX_PAD)[None, :]
    stops = tl.load(
        record[:, None] + STOP_TOKENS + stop, mask=valid[:, None] & (stop < MOST), other=NO_STOP_TOKEN
    )
    stopping = tl.max((stops == token[:, None]).to(tl.int32), 1) != 0
    stopping = stopping | (at + 1 >= tl.load(record + MAX_LENGTH, mask=valid, other=0))
    tl.store(tokens + slot * tokens_stride + at, token, mask=valid & (ended == 0))
    tl.store(finished + slot, (ended != 0) | stopping, mask=valid)
    tl.store(out + row, tl.where(ended != 0, NO_TOKEN, token), mask=valid)


def gather(
    slots: Tensor,
    position: Tensor,
    finished: Tensor,
    tokens: Tensor,
    block_table: Tensor,
    block_tokens: Tensor,
    block_size: int,
    out: Sequence[Tensor],
) -> None:
    """``DeviceSlotTable.gather``; ``out`` are the fields of ``DecodeInputs``, which it writes."""
    count = len(slots)
    _gather_kernel[(triton.cdiv(count, ROWS),)](
        slots,
        position,
        finished,
        tokens,
        block_table,
        block_tokens,
        *out,
        count,
        tokens.stride(0),
        block_table.stride(0),
        BLOCK_SIZE=block_size,
        ROWS=ROWS,
        **FOLLOWING,
    )


def scatter(
    slots: Tensor,
    sampled: Tensor,
    position: Tensor,
    finished: Tensor,
    tokens: Tensor,
    requests: Tensor,
    out: Tensor,
) -> None:
    """``DeviceSlotTable.scatter``."""
    count = len(slots)
    _scatter_kernel[(triton.cdiv(count, ROWS),)](
        slots,
        sampled,
        position,
        finished,
        tokens,
        requests,
        out,
        count,
        tokens.stride(0),
        RECORD=RECORD,
        MAX_LENGTH=MAX_LENGTH,
        STOP_TOKENS=STOP_TOKENS,
        MOST=MAX_STOP_TOKENS,
        MAX_PAD=triton.next_power_of_2(MAX_STOP_TOKENS),
        NO_STOP_TOKEN=NO_STOP_TOKEN,
        NO_TOKEN=NO_TOKEN,
        ROWS=ROWS,
        **FOLLOWING,
    )
