"""The shapes of the models that the benchmarks run, with weights of any values: speed does not depend on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import LlamaConfig, PreTrainedConfig, Qwen2Config

QWEN: dict[str, Any] = {"vocab_size": 151936, "max_position_embeddings": 16384, "tie_word_embeddings": True}
MODELS: dict[str, Callable[[], PreTrainedConfig]] = {
    "8b": lambda: LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        max_position_embeddings=16384,
    ),
    "1.5b": lambda: Qwen2Config(
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        **QWEN,
    ),
    "0.5b": lambda: Qwen2Config(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        **QWEN,
    ),
}
