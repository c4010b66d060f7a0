"""Tiny checkpoints with random weights, one for each model family, and a byte-level tokenizer for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
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
    "smollm3": dict(no_rope_layers=[1, 0]),
    "starcoder2": dict(sliding_window=WINDOW),
}

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

MULTIMODAL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gemma3": (FAMILIES["gemma3_text"], EYES),
    "gemma4": (SLIDING | dict(hidden_size_per_layer_input=8), EYES),
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
    "aya_vision": (dict(model_type="cohere2") | SLIDING, EYES | dict(model_type="siglip_vision_model")),
}
"""Of a text and a vision configuration each, by its type."""


def make_config(family: str, **changes: Any) -> PreTrainedConfig:
    """A configuration of the family, `FAMILIES`, `MULTIMODAL` or any other of transformers, of the size above."""
    config: Any = CONFIG_MAPPING[family]
    if family in MULTIMODAL:
        text, vision = MULTIMODAL[family]
        return config(text_config=SIZES | text | changes, vision_config=vision)
    return config(**(SIZES | FAMILIES.get(family, {}) | changes))


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
