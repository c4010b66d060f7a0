"""Which models are served, and why others are not.

Several families of transformers run over a paged cache without any error and produce wrong text: their
layers carry a state that is not keys and values, or attend in a way that a backend is not told of. So a
model must pass three tests, each of which gives its reason:

1. `check_config`: the properties of its configuration and class, before any weight is read;
2. `check_attention`: every layer calls the attention once;
3. `probe`: its logits over the paged cache equal those of plain attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ....protocol.errors import ModelNotSupported
from ..attention.backend import IMPLEMENTATION
from ..cache.layout import KVLayout, allocate, record_attention
from ..cache.paged import PagedBatch

if TYPE_CHECKING:
    from .load import PagedModel

SERVED_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})

OTHER_LAYER_TYPES = {
    "chunked_attention": "attend within fixed chunks of the context, which the attention is not told of",
    "linear_attention": "keep a recurrent state",
    "conv": "keep the state of a convolution",
    "hybrid": "keep a recurrent state beside keys and values",
}


def check_config(config: PreTrainedConfig) -> None:
    """Accept or refuse a model by its configuration alone; ModelNotSupported has the reason."""
    if config.is_encoder_decoder:
        raise _refusal(config, "it is an encoder-decoder; decoder-only causal language models are served")
    model_class = causal_lm_class(config)
    text = config.get_text_config()

    for other in sorted(set(getattr(text, "layer_types", None) or ()) - SERVED_LAYER_TYPES):
        what = OTHER_LAYER_TYPES.get(other, "need more than keys and values in blocks")
        raise _refusal(config, f"its layers of type {other!r} {what}")
    if getattr(model_class, "_is_stateful", False):
        raise _refusal(config, "it keeps a recurrent state for each sequence beside keys and values")
    if not getattr(model_class, "_supports_attention_backend", False):
        raise _refusal(
            config, f"{model_class.__name__} computes attention by itself and lets no other implementation in"
        )
    if text is not config:
        raise _refusal(
            config,
            f"{model_class.__name__} has parts beside its language model ({', '.join(config.sub_configs)}); "
            f"to serve it, save the language model ({text.model_type!r}) as a checkpoint of its own",
        )
    if getattr(config, "alibi", False):
        raise _refusal(config, "it adds a bias by distance (ALiBi) to the attention scores")
    if getattr(config, "use_bidirectional_attention", None):
        raise _refusal(config, "its tokens attend to later tokens, so that it cannot be decoded step by step")


def causal_lm_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class of transformers that generates text with this configuration."""
    try:
        return AutoModelForCausalLM._model_mapping[type(config)]  # type: ignore[attr-defined]
    except KeyError:
        raise _refusal(config, "transformers has no causal language model of this type") from None


def check_attention(transformer: PreTrainedModel) -> KVLayout:
    """Every one of ``num_hidden_layers`` layers calls the attention once, in order; what they cache.

    A layer that does not call it mixes tokens in a way that the cache does not see.
    """
    config = transformer.config
    try:
        calls = record_attention(transformer)
    except ModelNotSupported as error:
        raise _refusal(config, str(error)) from None
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise _refusal(config, f"its forward pass fails with {type(error).__name__}: {error}") from error
    layers = [layer for layer, _ in calls]
    if layers != list(range(config.num_hidden_layers)):
        raise _refusal(
            config,
            f"of its {config.num_hidden_layers} layers the attention was called by {layers}, "
            "and it must be called by each of them once",
        )
    return KVLayout(tuple(layout for _, layout in calls))


PROBE_TOKENS = 20
PROBE_BLOCK_SIZE = 4
PROBE_WINDOW = 6
"""Sliding windows are narrowed to this during the probe, so that its few tokens reach past them."""

PROBE_TOLERANCE = {torch.float32: (1.0, 1e-4), torch.float16: (0.5, 2e-2), torch.bfloat16: (0.5, 8e-2)}
"""Quantile over the tokens, and limit, of the difference relative to the size of the logits. Float32
differs by 1e-6, so that the worst token counts. In half precision rounding adds up over the layers and may
send a token to other experts altogether, so that the median token does."""


def probe(model: PagedModel) -> None:
    """Compare paged logits with those of plain attention, on the loaded weights.

    Two sequences are fed in chunks, then token by token, in the same steps, through blocks that lie out of
    order. ModelNotSupported states the measured difference.
    """
    if model.dtype not in PROBE_TOLERANCE:
        raise _refusal(
            model.config, f"its weights are {model.dtype}; load them with --dtype float32 or bfloat16"
        )
    tokens = _probe_tokens(model)
    with torch.inference_mode(), _narrowed_windows(model.transformer, PROBE_WINDOW):
        expected = _plain_logits(model.transformer, tokens)
        measured = _paged_logits(model, tokens)
    if not bool(expected.isfinite().all()):
        raise _refusal(model.config, f"its logits are not finite in {model.dtype}: try another --dtype")
    _compare(model, expected, measured, "over the paged cache", "plain attention")


@contextmanager
def same_logits(model: PagedModel) -> Iterator[None]:
    """What is done to the model inside leaves its logits as they were, or it is refused."""
    tokens = _probe_tokens(model)
    with torch.inference_mode():
        expected = _paged_logits(model, tokens)
    yield
    with torch.inference_mode():
        measured = _paged_logits(model, tokens)
    _compare(model, expected, measured, "as compiled", "those of the model as it is")


def _probe_tokens(model: PagedModel) -> Tensor:
    tokens = torch.arange(2 * PROBE_TOKENS, device=model.device) * 7919 % model.vocab_size
    return tokens.view(2, PROBE_TOKENS)


def _compare(model: PagedModel, expected: Tensor, measured: Tensor, what: str, other: str) -> None:
    quantile, limit = PROBE_TOLERANCE[model.dtype]
    size = expected.norm(dim=-1)
    error = float((measured - expected).norm(dim=-1).quantile(quantile) / size.mean())
    if not error <= limit:
        raise _refusal(
            model.config,
            f"its logits {what} differ from {other} by {error:.2g} of their size, and "
            f"{limit:g} is the limit in {model.dtype}: it would produce wrong text",
        )


def _plain_logits(transformer: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Float32 logits [2, PROBE_TOKENS, vocab] by the attention that the model's authors wrote."""
    transformer.set_attn_implementation("eager")
    try:
        return transformer(input_ids=tokens, use_cache=False).logits.float()
    finally:
        transformer.set_attn_implementation(IMPLEMENTATION)


def _paged_logits(model: PagedModel, tokens: Tensor) -> Tensor:
    """The same logits step by step. A step is the tokens it feeds to each of the two sequences."""
    blocks = -(-PROBE_TOKENS // PROBE_BLOCK_SIZE)
    device = tokens.device
    cache = allocate(model.layout, 2 * blocks + 1, PROBE_BLOCK_SIZE, device, model.dtype)
    # 10 blocks from block 1 on, interleaved and backwards: none lies beside the one before it.
    table = torch.arange(2 * blocks, 0, -1, dtype=torch.int32, device=device).view(blocks, 2).T.contiguous()
    logits = torch.empty(2, PROBE_TOKENS, model.vocab_size, device=device)
    done = [0, 0]
    steps = [(7, 0), (5, 9), (1, 7), *[(1, 1)] * 4, (3, 0)]
    for step in steps:
        # Rows that decode come first; one that feeds a single token decodes.
        rows = sorted((row for row in (0, 1) if step[row]), key=lambda row: step[row])
        spans = [(row, done[row], done[row] + step[row]) for row in rows]
        positions = torch.cat([torch.arange(start, end, device=device) for _, start, end in spans])
        of_row = torch.cat([torch.full((end - start,), row, device=device) for row, start, end in spans])
        starts = [sum(e - s for _, s, e in spans[:i]) for i in range(len(spans) + 1)]
        decoding = [end for row, _, end in spans if step[row] == 1]
        batch = PagedBatch(
            cache=cache,
            rows=torch.tensor(rows, dtype=torch.int64, device=device),
            kv_lens=torch.tensor([end for _, _, end in spans], dtype=torch.int32, device=device),
            query_start=torch.tensor(starts, dtype=torch.int32, device=device),
            write_index=table[of_row, positions // PROBE_BLOCK_SIZE].long() * PROBE_BLOCK_SIZE
            + positions % PROBE_BLOCK_SIZE,
            block_table=table,
            num_decode=len(decoding),
            chunks=[(starts[i], e - s, e) for i, (_, s, e) in enumerate(spans) if e - s > 1],
            max_decode_kv_len=max(decoding, default=0),
        )
        everywhere = torch.arange(len(positions), device=device)
        step_logits = model.forward(tokens[of_row, positions], positions, batch, everywhere)
        logits[of_row, positions] = step_logits.float()
        done = [done[0] + step[0], done[1] + step[1]]
    return logits


@contextmanager
def _narrowed_windows(transformer: PreTrainedModel, window: int) -> Iterator[None]:
    """Set every sliding window in the configuration and the layers to ``window`` tokens for a while."""
    holders: list[Any] = [transformer.config, *transformer.modules()]
    holders += [module.config for module in transformer.modules() if hasattr(module, "config")]
    # Keyed by identity: modules share their configuration.
    windows = {
        id(holder): (holder, width)
        for holder in holders
        if type(width := getattr(holder, "sliding_window", None)) is int
    }
    try:
        for holder, _ in windows.values():
            holder.sliding_window = window
        yield
    finally:
        for holder, width in windows.values():
            holder.sliding_window = width


def _refusal(config: PreTrainedConfig, reason: str) -> ModelNotSupported:
    return ModelNotSupported(f"model type {config.model_type!r} is not supported: {reason}")
