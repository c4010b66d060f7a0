"""The logits of a model as it is served, compared with those that transformers computes for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ..attention.transformers_hook import IMPLEMENTATION, scale_by_position
from ..cache.kv_cache import allocate
from ..cache.paged_batch import PagedBatch
from ..cache.state import StateCache
from ..triton_tools.compilation import compile_ahead
from .paged_model import PagedModel
from .support import refusal

COMPARED_TOKENS = 20
"""Tokens of each of the two sequences that are compared: five blocks, and three windows."""

COMPARED_BLOCK_SIZE = 4
"""Tokens of a block: few, so that a sequence has several and ends inside of one."""

COMPARED_WINDOW = 6
"""Tokens of a window: few, so that tokens lie beyond it, and no multiple of a block."""

NARROWED = ("sliding_window", "attention_chunk_size", "floor_scale")
"""Settings that are narrowed to `COMPARED_WINDOW` meanwhile, so that few tokens reach past it: windows, chunks, and the
positions by which queries are scaled."""

TOLERANCE = {torch.float32: (1.0, 1e-4), torch.float16: (0.5, 2e-2), torch.bfloat16: (0.5, 8e-2)}
"""Quantile over the tokens, and limit, of the difference relative to the size of the logits. Float32
differs by 1e-6, so that the worst token counts. In half precision rounding adds up over the layers and may
send a token to other experts altogether, so that the median token does."""

OWN_TOLERANCE = 1e-2
"""Most that transformers' decoding may itself differ from its text as a whole, to be taken into account."""


@contextmanager
def compared(model: PagedModel) -> Iterator[None]:
    """The logits over the paged cache, after what is done to the model inside, equal those before of plain attention.

    Two sequences are fed in chunks, then token by token, in the same steps, through blocks that lie out of
    order, on the loaded weights. ModelNotSupported states the measured difference.
    """
    if model.dtype not in TOLERANCE:
        raise refusal(
            model.config, f"its weights are {model.dtype}; load them with --dtype float32 or bfloat16"
        )
    tokens = compared_tokens(model)
    with torch.inference_mode(), _narrowed_windows(model.transformer, COMPARED_WINDOW):
        expected = _plain_logits(model.transformer, tokens)
    if not bool(expected.isfinite().all()):
        raise refusal(model.config, f"its logits are not finite in {model.dtype}: try another --dtype")
    yield
    with torch.inference_mode(), _narrowed_windows(model.transformer, COMPARED_WINDOW):
        compile_ahead(model.device, lambda: paged_logits(model, tokens))
        measured = paged_logits(model, tokens)
    _compare(model, tokens, expected, measured)


def compared_tokens(model: PagedModel) -> Tensor:
    tokens = torch.arange(2 * COMPARED_TOKENS, device=model.device) * 7919 % model.vocab_size
    return tokens.view(2, COMPARED_TOKENS)


def _compare(model: PagedModel, tokens: Tensor, expected: Tensor, measured: Tensor) -> None:
    quantile, limit = TOLERANCE[model.dtype]

    def error_of(found: Tensor) -> float:
        return float((found - expected).norm(dim=-1).quantile(quantile) / expected.norm(dim=-1).mean())

    error = error_of(measured)
    if not error <= limit and model.state_layout:
        # Some families compute a single token in another way than a text: what they differ by is not ours.
        own = error_of(_decoded_logits(model.transformer, tokens))
        limit += own if own <= OWN_TOLERANCE else 0.0
    if not error <= limit:
        raise refusal(
            model.config,
            f"its logits over the paged cache differ from plain attention by {error:.2g} of their size, and "
            f"{limit:g} is the limit in {model.dtype}: it would produce wrong text",
        )


def _plain_logits(transformer: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Float32 logits [2, COMPARED_TOKENS, vocab] by the attention that the model's authors wrote."""
    with _attention_of_authors(transformer):
        return transformer(input_ids=tokens, use_cache=False).logits.float()


def _decoded_logits(transformer: PreTrainedModel, tokens: Tensor) -> Tensor:
    """The logits by transformers' own decoding: some tokens at once, then one by one, with a cache of its own."""
    some = COMPARED_TOKENS // 4
    cache = DynamicCache(config=transformer.config)
    parts: list[Tensor] = []
    with torch.inference_mode(), _attention_of_authors(transformer):
        for start, end in [(0, some), *((at, at + 1) for at in range(some, COMPARED_TOKENS))]:
            positions = torch.arange(start, end, device=tokens.device).expand(2, -1)
            output = transformer(
                input_ids=tokens[:, start:end], position_ids=positions, use_cache=True, cache=cache
            )
            parts.append(output.logits.float())
    return torch.cat(parts, 1)


@contextmanager
def _attention_of_authors(transformer: PreTrainedModel) -> Iterator[None]:
    """Let transformers attend as it does by itself for a while, to a text as a whole or with a cache of its own."""
    transformer.set_attn_implementation("eager")
    scale_by_position(transformer, here=False)
    try:
        yield
    finally:
        scale_by_position(transformer, here=True)
        transformer.set_attn_implementation(IMPLEMENTATION)


STEPS = [(7, 0), (5, 9), (1, 7), *[(1, 1)] * 4, (3, 0)]
"""A step is how many tokens it feeds to each of the two sequences."""


def paged_logits(model: PagedModel, tokens: Tensor, steps: Sequence[tuple[int, int]] = STEPS) -> Tensor:
    """The logits that this model computes for ``tokens`` [2, T] step by step: float32 [2, T, vocab]."""
    count = tokens.shape[1]
    blocks = -(-count // COMPARED_BLOCK_SIZE)
    device = tokens.device
    cache = allocate(model.kv_layout, 2 * blocks + 1, COMPARED_BLOCK_SIZE, device, model.dtype)
    states = StateCache(model.state_layout, 2, device) if model.state_layout else None
    # Blocks from block 1 on, interleaved and backwards: none lies beside the one before it.
    table = torch.arange(2 * blocks, 0, -1, dtype=torch.int32, device=device).view(blocks, 2).T.contiguous()
    logits = torch.empty(2, count, model.vocab_size, device=device)
    done = [0, 0]
    for step in steps:
        rows = [row for row in (0, 1) if step[row]]
        spans = [(row, done[row], done[row] + step[row]) for row in rows]
        positions = torch.cat([torch.arange(start, end, device=device) for _, start, end in spans])
        of_row = torch.cat([torch.full((end - start,), row, device=device) for row, start, end in spans])
        starts = [sum(e - s for _, s, e in spans[:i]) for i in range(len(spans) + 1)]
        single = [end for row, _, end in spans if step[row] == 1]
        batch = PagedBatch(
            cache=cache,
            rows=torch.tensor(rows, dtype=torch.int64, device=device),
            kv_lens=torch.tensor([end for _, _, end in spans], dtype=torch.int32, device=device),
            query_start=torch.tensor(starts, dtype=torch.int32, device=device),
            write_index=table[of_row, positions // COMPARED_BLOCK_SIZE].long() * COMPARED_BLOCK_SIZE
            + positions % COMPARED_BLOCK_SIZE,
            block_table=table,
            decode_only=len(single) == len(rows),
            max_kv_len=max(single, default=0),
            states=states,
            row_tokens=tuple(step[row] for row in rows),
        )
        # All of them, in another order than the tokens', so that it shows where they are not picked.
        asked = torch.arange(len(positions) - 1, -1, -1, device=device)
        step_logits = model.forward(tokens[of_row, positions], positions, batch, asked)
        logits[of_row[asked], positions[asked]] = step_logits.float()
        done = [done[0] + step[0], done[1] + step[1]]
    return logits


@contextmanager
def _narrowed_windows(transformer: PreTrainedModel, window: int) -> Iterator[None]:
    """Set what is `NARROWED` to ``window`` tokens, in the configuration and the layers, for a while."""
    holders: list[Any] = [transformer.config, *transformer.modules()]
    holders += [module.config for module in transformer.modules() if hasattr(module, "config")]
    # Keyed by identity: modules share their configuration.
    widths = {
        (id(holder), name): (holder, width)
        for holder in holders
        for name in NARROWED
        if type(width := getattr(holder, name, None)) is int
    }
    try:
        for (_, name), (holder, _) in widths.items():
            setattr(holder, name, window)
        yield
    finally:
        for (_, name), (holder, width) in widths.items():
            setattr(holder, name, width)
