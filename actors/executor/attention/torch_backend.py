"""Attention backend ``torch``: plain tensor operations, on any device."""

from __future__ import annotations

from itertools import groupby, pairwise
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cache.paged_batch import PagedBatch
from ..devices.float8 import FP8, FP8_MAX

GATHER_BYTES = 256 << 20
"""Most bytes of keys and values that the torch backend copies out of the cache at a time, unless one row alone has
more: without a bound the copy would grow with batch times context. A quarter of the default cache of a CPU."""

CPU_GATHER_BYTES = 2 << 20
"""The limit on a CPU, in whose own cache the copies should still lie when they are attended to."""

SCORE_BYTES = 64 << 20
"""Most bytes of attention scores where they are held as a whole; a quarter of `GATHER_BYTES`, as they come on top of
the copies."""


Position = TypeVar("Position", int, Tensor)


class TorchAttention:
    """Attention in plain tensor operations: gather whole blocks by the block table, then attend.

    The rows that have one token are one batched computation. Rows with more are computed one by one,
    neighbours of the same shape together.
    """

    name = "torch"
    capturable = False

    def __init__(self) -> None:
        self._step: _Step | None = None

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layer: int,
        batch: PagedBatch,
        *,
        scale: float,
        sliding_window: int | None,
        softcap: float | None,
        sinks: Tensor | None,
        attention_chunk: int | None = None,
    ) -> Tensor:
        keys, values = written(batch, layer, key, value)
        if layer == 0 or self._step is None or self._step.batch is not batch:
            # The tensors of a new step may be those of the step before, with other contents.
            self._step = _Step(batch)
        step = self._step

        attend = Attend(scale, softcap, sinks)
        window = window_of(sliding_window, attention_chunk)
        output = query.new_empty(query.shape[0], query.shape[1], value.shape[2])
        if step.tokens < len(output):
            output[step.tokens :] = 0

        if step.single_tokens is not None:
            table, bias = step.single_context(batch, window, query.dtype)
            tokens = step.single_tokens
            if isinstance(tokens, slice):
                attend_gathered(attend, query[tokens, None], keys, values, table, bias, output[tokens, None])
            else:
                found = torch.empty_like(output[tokens])
                attend_gathered(attend, query[tokens, None], keys, values, table, bias, found[:, None])
                output[tokens] = found

        for row, first, alike, tokens, kv_len in step.groups:
            shape = (alike, tokens)
            fresh = slice(first, first + alike * tokens)
            into = output[fresh].unflatten(0, shape)
            fresh_row = tokens == kv_len and (window is None or tokens <= window.positions)
            if fresh_row and keys.scale is None:
                # Nothing of these rows was in the cache before: attend to what is at hand.
                now = (states[fresh].unflatten(0, shape) for states in (query, key, value))
                into[:] = attend.causal(*now)
            else:
                slots = batch.rows[row : row + alike]
                table, bias = _chunk_context(batch, slots, tokens, kv_len, window, query.dtype)
                attend_gathered(attend, query[fresh].unflatten(0, shape), keys, values, table, bias, into)
        return output


class Window(NamedTuple):
    """The positions before it that a query attends to."""

    positions: int
    """The positions of its sliding window, itself included, or of a chunk of the context."""
    chunked: bool
    """It sees the beginning of the chunk that it lies in, up to itself."""

    def first(self, position: Position) -> Position:
        """The first that a query at ``position`` sees; below 0, all up to its own."""
        if self.chunked:
            return position // self.positions * self.positions
        return position - self.positions + 1

    def blocks(self, size: int) -> int:
        """Most blocks of ``size`` positions that hold what one query sees."""
        whole = self.chunked and self.positions % size == 0
        return self.positions // size if whole else _ceil_div(self.positions - 1, size) + 1


def window_of(sliding_window: int | None, attention_chunk: int | None) -> Window | None:
    """The window of a layer's queries; None if they attend to everything before them."""
    positions = attention_chunk or sliding_window
    return None if positions is None else Window(positions, chunked=attention_chunk is not None)


class _Step:
    """The rows of one step as all layers attend for them: those with one token at once, and others by groups.

    A step that is ``decode_only`` is not looked at: its bound is known to the host, so that it can be captured.
    """

    __slots__ = ("batch", "contexts", "groups", "max_kv_len", "single", "single_tokens", "tokens")

    def __init__(self, batch: PagedBatch) -> None:
        self.batch = batch
        self.contexts: dict[Window | None, tuple[Tensor, Tensor]] = {}
        """The contexts of the rows with one token, by window."""
        self.single: slice | Tensor | None
        """The rows with one token; None if there are none."""
        self.single_tokens: slice | Tensor | None
        """Their tokens."""
        self.groups: list[tuple[int, int, int, int, int]] = []
        """(first row, first token, number of rows, tokens of each, kv_len of each) of neighbouring rows with as many
        tokens, more than one, and as long a context."""
        self.tokens = len(batch.write_index)
        """Tokens that belong to a row; the others come after them."""
        self.max_kv_len = batch.max_kv_len
        if batch.decode_only:
            self.single = self.single_tokens = slice(0, self.tokens)
            return

        starts, kv_lens = batch.query_start.tolist(), batch.kv_lens.tolist()
        self.tokens = starts[-1]
        counts = [end - first for first, end in pairwise(starts)]
        rows = [row for row, count in enumerate(counts) if count == 1]
        self.single = _index(rows, batch.rows.device)
        self.single_tokens = _index([starts[row] for row in rows], batch.rows.device)
        self.max_kv_len = max((kv_lens[row] for row in rows), default=0)

        longer = enumerate(row for row, count in enumerate(counts) if count > 1)
        # The difference of a row and its ordinal is the same for neighbours.
        for (tokens, kv_len, _), run in groupby(
            longer, lambda at: (counts[at[1]], kv_lens[at[1]], at[1] - at[0])
        ):
            alike = [row for _, row in run]
            self.groups.append((alike[0], starts[alike[0]], len(alike), tokens, kv_len))

    def single_context(
        self, batch: PagedBatch, window: Window | None, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """For the n rows with one token: the blocks that each attends to, [n, blocks], and what is added to the scores
        of their positions, [n, 1, 1, blocks * block_size]: zero, or minus infinity for a position that is not seen.
        """
        if window not in self.contexts:
            assert self.single is not None
            slots, kv_len = batch.rows[self.single], batch.kv_lens[self.single, None]
            table = batch.block_table.index_select(0, slots)
            self.contexts[window] = _single_context(
                table, kv_len, self.max_kv_len, batch.cache.block_size, window, dtype
            )
        return self.contexts[window]


def _index(ordinals: list[int], device: torch.device) -> slice | Tensor | None:
    """Index of ``ordinals``, which rise: without a copy if they follow each other; None if there are none."""
    if not ordinals:
        return None
    if ordinals[-1] - ordinals[0] == len(ordinals) - 1:
        return slice(ordinals[0], ordinals[-1] + 1)
    return torch.tensor(ordinals, device=device)


def _single_context(
    table: Tensor, kv_len: Tensor, max_kv_len: int, size: int, window: Window | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """As `_Step.single_context`, from ``table`` [n, max_blocks] and ``kv_len`` [n, 1] of these rows."""
    device = table.device
    blocks = min(_ceil_div(max_kv_len, size), table.shape[1])
    if window is not None and (in_window := window.blocks(size)) < blocks:
        oldest = torch.div(window.first(kv_len - 1), size, rounding_mode="floor").clamp_(min=0)
        # A short row's blocks may go past its table; those positions are masked.
        ordinal = (oldest + torch.arange(in_window, device=device)).clamp_(max=table.shape[1] - 1)
        table = table.gather(1, ordinal)
        position = oldest * size + torch.arange(in_window * size, device=device)
    else:
        table = table[:, :blocks]
        position = torch.arange(blocks * size, device=device)
    visible = position < kv_len
    if window is not None:
        visible &= position >= window.first(kv_len - 1)
    return table, bias_of(visible, dtype)[:, None, None]


def _chunk_context(
    batch: PagedBatch, slots: Tensor, tokens: int, kv_len: int, window: Window | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The same for the last ``tokens`` of ``kv_len`` positions of the sequences in ``slots`` [n]: the blocks
    [n, blocks], and the bias [1, 1, tokens, positions] of all of them.
    """
    size, device = batch.cache.block_size, slots.device
    start = kv_len - tokens
    oldest = 0 if window is None else max(0, window.first(start)) // size
    table = batch.block_table.index_select(0, slots)[:, oldest : _ceil_div(kv_len, size)]
    position = torch.arange(oldest * size, kv_len, device=device)
    own = torch.arange(start, kv_len, device=device)[:, None]
    visible = position <= own
    if window is not None:
        visible &= position >= window.first(own)
    return table, bias_of(visible, dtype)[None, None]


def attend_gathered(
    attend: Attend,
    query: Tensor,
    keys: CachePool,
    values: CachePool,
    table: Tensor,
    bias: Tensor,
    output: Tensor,
) -> None:
    """Attend from ``query`` [n, Q, Hq, D] to the blocks ``table`` [n, blocks], a few rows at a time."""
    row_bytes = table.shape[1] * (keys.block_bytes(query.dtype) + values.block_bytes(query.dtype))
    at_a_time = CPU_GATHER_BYTES if query.device.type == "cpu" else GATHER_BYTES
    at_once = max(1, at_a_time // row_bytes)
    for start in range(0, len(table), at_once):
        rows = slice(start, start + at_once)
        key, value = (pool.gather(table[rows], query.dtype)[:, : bias.shape[3]] for pool in (keys, values))
        output[rows] = attend.biased(query[rows], key, value, bias[rows] if len(bias) > 1 else bias)


class Attend:
    """The arithmetic of attention, without a cache: n rows of Q queries each over L keys and values.

    ``query`` [n, Q, Hq, D], ``key`` [n, L, Hkv, D], ``value`` [n, L, Hkv, Dv] give [n, Q, Hq, Dv]. ``bias``
    [n or 1, 1, Q, L] is added to the scores.
    """

    __slots__ = ("scale", "sinks", "softcap")

    def __init__(self, scale: float, softcap: float | None, sinks: Tensor | None) -> None:
        self.scale, self.softcap, self.sinks = scale, softcap, sinks

    def biased(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        if self.softcap is not None or self.sinks is not None:
            return self._in_full(query, key, value, bias)
        if query.shape[1] > 1:
            return F.scaled_dot_product_attention(
                query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2),
                attn_mask=bias, scale=self.scale, enable_gqa=True,
            ).transpose(1, 2)  # fmt: skip
        # The query heads that share a key head become its queries: keys and values are read once, and
        # nothing is repeated. On a CPU this is faster than products of matrices, in any layout.
        grouped = query.view(query.shape[0], key.shape[2], -1, query.shape[3])
        output = F.scaled_dot_product_attention(
            grouped, key.transpose(1, 2), value.transpose(1, 2), attn_mask=bias, scale=self.scale
        )
        return output.reshape(query.shape[0], 1, query.shape[2], value.shape[3])

    def causal(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Rows from their first position on: Q = L, and every query sees up to its own position."""
        if self.softcap is not None or self.sinks is not None:
            position = torch.arange(query.shape[1], device=query.device)
            bias = bias_of(position <= position[:, None], query.dtype)
            return self._in_full(query, key, value, bias[None, None])
        return F.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2),
            is_causal=True, scale=self.scale, enable_gqa=True,
        ).transpose(1, 2)  # fmt: skip

    def _in_full(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        """With the scores held in float32, a few queries at a time if there are many."""
        n, queries, heads, _ = query.shape
        if queries > (at_once := max(1, SCORE_BYTES // (4 * n * heads * key.shape[1]))):
            parts = zip(query.split(at_once, 1), bias.split(at_once, 2), strict=True)
            return torch.cat([self._in_full(some, key, value, theirs) for some, theirs in parts], 1)

        grouped = query.unflatten(2, (key.shape[2], -1)).permute(0, 2, 3, 1, 4)
        shape = grouped.shape[:4]  # n, Hkv, G, Q
        scores = (grouped.flatten(2, 3) @ key.permute(0, 2, 3, 1)).unflatten(2, shape[2:])
        scores = scores.float() * self.scale
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        scores = scores + bias[:, None]
        if self.sinks is not None:
            sinks = self.sinks.float().view(1, shape[1], shape[2], 1, 1).expand(*shape, 1)
            scores = torch.cat((scores, sinks), -1)
        weights = scores.softmax(-1)[..., : key.shape[1]].to(value.dtype)
        output = weights.flatten(2, 3) @ value.transpose(1, 2)
        return output.unflatten(2, shape[2:]).permute(0, 3, 1, 2, 4).flatten(2, 3)


def bias_of(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """The bias that masks scores: zero where a position is ``visible``, otherwise minus infinity."""
    zeros = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return zeros.masked_fill_(~visible, float("-inf"))


class CachePool:
    """The keys or the values of one layer in the cache, ``states`` [num_blocks, block_size, H, D].

    ``scale`` float32 [H] of an FP8 cache, otherwise None.
    """

    __slots__ = ("scale", "states")

    def __init__(self, states: Tensor, scale: Tensor | None) -> None:
        self.states, self.scale = states, scale

    def write(self, index: Tensor, states: Tensor) -> None:
        """Store ``states`` [T, H, D] at ``index`` [T].

        The cache holds finite numbers only. A masked position still enters the sums with weight zero, and zero
        times infinity is not a number: what one sick request left in a block would reach the next one's text.
        """
        states = states.nan_to_num(0.0, 0.0, 0.0)
        pool = self.states.flatten(0, 1)
        if self.scale is not None:
            scaled = (states / self.scale[:, None]).clamp_(-FP8_MAX, FP8_MAX)  # in float32, as the scale is
            states, pool = scaled.to(FP8).view(torch.uint8), pool.view(torch.uint8)
        pool.index_copy_(0, index, states)

    def gather(self, table: Tensor, dtype: torch.dtype) -> Tensor:
        """Blocks of n rows by ``table`` [n, blocks], one after another: [n, blocks * block_size, H, D] of ``dtype``."""
        blocks = table.flatten()
        if self.scale is None:
            found = self.states.index_select(0, blocks)
        else:
            found = self.states.view(torch.uint8).index_select(0, blocks).view(FP8).to(dtype)
            found *= self.scale.to(dtype)[:, None]  # powers of two: exact in any dtype
        return found.view(table.shape[0], -1, *self.states.shape[2:])

    def block_bytes(self, dtype: torch.dtype) -> int:
        """The bytes of one block that is gathered in ``dtype``."""
        return self.states[0].numel() * dtype.itemsize


def written(batch: PagedBatch, layer: int, key: Tensor, value: Tensor) -> tuple[CachePool, CachePool]:
    """The keys and the values of a layer, with those of the step in their places."""
    scales = batch.cache.scales_of(layer)
    keys = CachePool(batch.cache.keys[layer], None if scales is None else scales.keys)
    values = CachePool(batch.cache.values[layer], None if scales is None else scales.values)
    keys.write(batch.write_index, key)
    values.write(batch.write_index, value)
    return keys, values


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)
