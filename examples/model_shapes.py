"""The shapes of the models that the benchmarks run, with weights of any values: speed does not depend on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import CONFIG_MAPPING, LlamaConfig, PreTrainedConfig, Qwen2Config

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

DELTA_NET: dict[str, Any] = QWEN | {
    "hidden_size": 2048,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
}
RECURRENT: dict[str, dict[str, Any]] = {
    "qwen3_5_text": DELTA_NET | {"num_hidden_layers": 24, "intermediate_size": 6144},
    "qwen3_next": DELTA_NET
    | {
        "num_hidden_layers": 12,
        "num_experts": 16,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
    },
    "falcon_h1": {
        "hidden_size": 2048,
        "num_hidden_layers": 24,
        "intermediate_size": 4096,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "mamba_d_ssm": 3072,
        "mamba_n_heads": 48,
        "mamba_d_head": 64,
        "mamba_d_state": 128,
        "mamba_n_groups": 1,
        "vocab_size": 65537,
        "max_position_embeddings": 16384,
    },
    "mamba2": {
        "hidden_size": 2048,
        "num_hidden_layers": 48,
        "state_size": 128,
        "num_heads": 64,
        "head_dim": 64,
        "n_groups": 1,
        "vocab_size": 50288,
    },
}
"""Of one to two billion parameters, by model type, with layers that keep a state."""
MODELS |= {
    kind: lambda kind=kind, shape=shape: CONFIG_MAPPING[kind](**shape) for kind, shape in RECURRENT.items()
}
