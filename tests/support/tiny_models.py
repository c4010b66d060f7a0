"""Tiny checkpoints with random weights, one for each model family, and a byte-level tokenizer for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from slipstream.actors.executor.model.support import STATES_SINCE
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Cache,
    Gemma3nVisionConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

END_OF_TEXT = "<|endoftext|>"
BEGIN_OF_TEXT = "<|begin|>"
MERGES = ["t h", "th e", "i n", "a n", "an d", "e r", "o n", "Ġ a", "Ġ the", "Ġ and", "e d", "i s"]
VOCAB_SIZE = 256 + len(MERGES) + 2
EOS_TOKEN_ID = VOCAB_SIZE - 1
WINDOW = 8
"""Sliding window of the families that have one: shorter than the prompts of the tests."""

SIZES: dict[str, Any] = dict(
    vocab_size=VOCAB_SIZE,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    bos_token_id=VOCAB_SIZE - 2,
    eos_token_id=EOS_TOKEN_ID,
    pad_token_id=0,
    # Wide, so that attention matters: with the usual 0.02 a wrong one hardly shows in the logits.
    initializer_range=0.3,
)
SLIDING: dict[str, Any] = dict(
    sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"], head_dim=8
)
EXPERTS: dict[str, Any] = dict(num_experts_per_tok=2, moe_intermediate_size=24)

LLAMA4: dict[str, Any] = dict(
    head_dim=8,
    intermediate_size_mlp=48,
    num_local_experts=2,
    no_rope_layers=[1, 0],
    attention_chunk_size=WINDOW,
    floor_scale=WINDOW,
    attn_scale=1.0,
)
"""A layer that attends within chunks, and one that attends to all and scales its queries by position."""

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": dict(head_dim=16),
    "qwen3_moe": dict(num_experts=4, head_dim=8, **EXPERTS),
    "mistral": dict(sliding_window=WINDOW, head_dim=8),
    "mixtral": dict(num_local_experts=4, num_experts_per_tok=2),
    "gemma2": dict(query_pre_attn_scalar=8, attn_logit_softcapping=2.0, **SLIDING),
    "gemma3_text": dict(query_pre_attn_scalar=8, **SLIDING),
    "gpt_oss": dict(num_local_experts=4, num_experts_per_tok=2, **SLIDING),
    "phi3": dict(sliding_window=WINDOW),
    "olmo2": {},
    "gpt2": {},
    "gpt_neox": {},
    "opt": dict(ffn_dim=48, word_embed_proj_dim=32),
    "cohere2": SLIDING,
    "granite": dict(attention_multiplier=0.3, residual_multiplier=0.5, logits_scaling=2.0),
    "llama4_text": LLAMA4,
    "smollm3": dict(no_rope_layers=[1, 0]),
    "starcoder2": dict(sliding_window=WINDOW),
}

DELTA_NET: dict[str, Any] = dict(
    layer_types=["linear_attention", "full_attention"],
    head_dim=8,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=8,
    linear_value_head_dim=8,
)
MAMBA2: dict[str, Any] = dict(
    mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=2, mamba_chunk_size=4
)
SHARED_EXPERTS: dict[str, Any] = dict(num_experts=4, shared_expert_intermediate_size=24, **EXPERTS)

STATEFUL: dict[str, dict[str, Any]] = {
    "qwen3_5_text": DELTA_NET,
    "qwen3_5_moe_text": DELTA_NET | SHARED_EXPERTS,
    "qwen3_next": DELTA_NET | SHARED_EXPERTS,
    "olmo_hybrid": DELTA_NET,
    "lara_mini": DELTA_NET,
    "kimi_linear": dict(
        layer_types=["linear_attention", "full_attention"],
        mlp_layer_types=["dense", "sparse"],
        num_key_value_heads=4,
        linear_num_heads=2,
        linear_head_dim=8,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=8,
        num_local_experts=4,
        **EXPERTS,
    ),
    "lfm2": dict(layer_types=["conv", "full_attention"], block_multiple_of=8),
    "lfm2_moe": dict(layer_types=["conv", "full_attention"], num_experts=4, num_dense_layers=1, **EXPERTS),
    "lfm3": dict(layer_types=["conv", "full_attention"]),
    "mamba": dict(state_size=8),
    "falcon_mamba": dict(state_size=8),
    "mamba2": dict(state_size=8, num_heads=8, head_dim=8, n_groups=2, chunk_size=4),
    "bamba": MAMBA2 | dict(attn_layer_indices=[1]),
    "falcon_h1": MAMBA2 | dict(mamba_n_heads=4, mamba_d_ssm=32, head_dim=8),
    "granitemoehybrid": MAMBA2
    | dict(
        layer_types=["mamba", "attention"],
        num_local_experts=4,
        num_experts_per_tok=2,
        shared_intermediate_size=24,
    ),
    "nemotron_h": dict(
        num_hidden_layers=3,
        layers_block_type=["mamba", "attention", "mlp"],
        mamba_num_heads=8,
        mamba_head_dim=8,
        ssm_state_size=8,
        n_groups=2,
        chunk_size=4,
        head_dim=8,
    ),
    "jamba": dict(
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        num_experts=4,
        mamba_d_state=8,
        mamba_dt_rank=4,
    ),
    "zaya": {},
    "zamba2": dict(
        num_hidden_layers=4,
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
        num_key_value_heads=4,
        num_mem_blocks=1,
        n_mamba_heads=8,
        mamba_headdim=8,
        mamba_d_state=8,
        mamba_ngroups=2,
        chunk_size=4,
        use_shared_attention_adapter=True,
        adapter_rank=4,
        use_mem_rope=True,
        time_step_min=1e-9,  # a bound that transformers keeps to in a text, and not when it decodes
    ),
}
"""Families whose layers keep a recurrent state or that of a convolution."""

EYES: dict[str, Any] = dict(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    image_size=28,
    patch_size=14,
)
QWEN_EYES: dict[str, Any] = dict(depth=1, hidden_size=16, intermediate_size=24, num_heads=2)
QWEN2_ROPE = dict(rope_type="default", rope_theta=10000.0, mrope_section=[1, 1, 2])
QWEN3_ROPE = QWEN2_ROPE | dict(mrope_interleaved=True)

GEMMA3N: dict[str, Any] = SLIDING | dict(
    num_hidden_layers=4,
    layer_types=["sliding_attention", "full_attention"] * 2,
    num_kv_shared_layers=2,
    hidden_size_per_layer_input=8,
    vocab_size_per_layer_input=VOCAB_SIZE,
    laurel_rank=4,
    altup_num_inputs=2,
    activation_sparsity_pattern=[0.5, 0.0, 0.0, 0.0],
)
"""The last two layers attend to the keys and values of the first two."""

MULTIMODAL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gemma3": (FAMILIES["gemma3_text"], EYES),
    "gemma3n": (GEMMA3N, dict(hidden_size=16, vocab_offset=VOCAB_SIZE, vocab_size=4)),
    "gemma4": (SLIDING | dict(hidden_size_per_layer_input=8), EYES),
    "llama4": (
        LLAMA4,
        EYES | dict(vision_output_dim=16, projector_input_dim=16, projector_output_dim=16),
    ),
    "mistral3": (dict(model_type="mistral", head_dim=8), EYES | dict(model_type="pixtral", head_dim=8)),
    "qwen2_vl": (dict(rope_parameters=QWEN2_ROPE), QWEN_EYES | dict(embed_dim=16, mlp_ratio=2)),
    "qwen2_5_vl": (dict(rope_parameters=QWEN2_ROPE), QWEN_EYES | dict(out_hidden_size=32)),
    "qwen3_vl": (dict(head_dim=8, rope_parameters=QWEN3_ROPE), QWEN_EYES | dict(out_hidden_size=32)),
    "qwen3_vl_moe": (
        dict(head_dim=8, rope_parameters=QWEN3_ROPE, num_experts=4, **EXPERTS),
        QWEN_EYES | dict(out_hidden_size=32),
    ),
    "llava": (dict(model_type="llama"), EYES | dict(model_type="clip_vision_model")),
    "llava_next": (dict(model_type="mistral", head_dim=8), EYES | dict(model_type="clip_vision_model")),
    "llava_onevision": (dict(model_type="qwen2"), EYES | dict(model_type="siglip_vision_model")),
    "internvl": (dict(model_type="qwen2"), EYES | dict(image_size=[28, 28], patch_size=[14, 14])),
    "smolvlm": (dict(model_type="llama"), EYES),
    "qwen3_5": (DELTA_NET, QWEN_EYES | dict(out_hidden_size=32)),
    "qwen3_5_moe": (DELTA_NET | SHARED_EXPERTS, QWEN_EYES | dict(out_hidden_size=32)),
    "lfm2_vl": (STATEFUL["lfm2"] | dict(model_type="lfm2"), EYES | dict(model_type="siglip2_vision_model")),
    "mllama": (
        dict(num_hidden_layers=3, cross_attention_layers=[1]),
        dict(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_global_layers=1,
            attention_heads=2,
            image_size=28,
            patch_size=14,
            intermediate_layers_indices=[0],
            vision_output_dim=32,
        ),
    ),
    "aya_vision": (dict(model_type="cohere2") | SLIDING, EYES | dict(model_type="siglip_vision_model")),
}
"""Of a text and a vision configuration each, by its type."""

EARS: dict[str, dict[str, Any]] = {
    "gemma3n": dict(
        hidden_size=16,
        conf_num_attention_heads=2,
        conf_num_hidden_layers=1,
        input_feat_size=16,
        sscp_conv_channel_size=[4, 4],
        vocab_offset=VOCAB_SIZE,
        vocab_size=4,
    )
}
"""The audio configuration of those that have one."""


class NoEyes(PreTrainedModel):
    """In the place of gemma3n's part for pictures, which asks for a package that text does not need."""

    config_class = Gemma3nVisionConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.eye = torch.nn.Linear(2, 2)
        self.post_init()


AutoModel.register(Gemma3nVisionConfig, NoEyes, exist_ok=True)


def make_config(family: str, **changes: Any) -> PreTrainedConfig:
    """A configuration of the family, one of those above or any other of transformers, of the size above.

    A test of a family with recurrent states is skipped where transformers is too old for them to be served.
    """
    if family in STATEFUL and not hasattr(Cache, "get_conv_state"):
        pytest.skip(f"the states of {family} are reached from transformers {STATES_SINCE} on")
    config: Any = CONFIG_MAPPING[family]
    if family in MULTIMODAL:
        text, vision = MULTIMODAL[family]
        ears = {"audio_config": EARS[family]} if family in EARS else {}
        return config(text_config=SIZES | text | changes, vision_config=vision, **ears)
    return config(**(SIZES | (FAMILIES | STATEFUL).get(family, {}) | changes))


def auto_class(family: str) -> Any:
    """The class of transformers that makes and reads a model of the family, all parts of it."""
    return AutoModelForImageTextToText if family in MULTIMODAL else AutoModelForCausalLM


def make_checkpoint(family: str, folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Write config.json, model.safetensors and the tokenizer's files to ``folder``, which is returned."""
    torch.manual_seed(seed)
    model = auto_class(family).from_config(make_config(family, **changes), dtype=torch.float32)
    if family == "gpt_oss":
        for layer in model.model.layers:
            torch.nn.init.normal_(layer.self_attn.sinks)
    model.save_pretrained(folder)
    make_tokenizer(folder)
    return folder


def make_tokenizer(folder: Path) -> None:
    """A byte-level BPE: every text has tokens, and every token but the last two is text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(merge.replace(" ", "") for merge in MERGES)]
    pairs = [(left, right) for left, right in (merge.split() for merge in MERGES)]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (BEGIN_OF_TEXT, END_OF_TEXT)])
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "chat_template": "{% for message in messages %}"
        "{{ message['role'] + ': ' + message['content'] + '\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
