"""The language model of a checkpoint: all of it, or the part of a multimodal checkpoint that is for text.

A multimodal checkpoint is served as the text model that it holds. Nothing of its other parts is built, so nothing of
their weights is read: transformers skips what a model has no place for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

LANGUAGE_MODEL_KEYS = {
    r"^(?:model\.)?language_model\.lm_head\.": "lm_head.",
    r"^(?:model\.language_model|model\.text_model|language_model\.model|language_model)\.": "model.",
}
"""What multimodal checkpoints call the weights of their language model, and what it calls them itself."""

PLAIN_HEAD = frozenset({"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"})
"""Multimodal types for whose language model transformers has no class: logits are a linear function of its states."""

SERVED_AS_TEXT = PLAIN_HEAD | {
    "aya_vision",
    "gemma3",
    "gemma3n",
    "gemma4",
    "internvl",
    "lfm2_vl",
    "llama4",
    "llava",
    "llava_next",
    "llava_onevision",
    "mistral3",
    "mllama",
    "qwen3_5",
    "qwen3_5_moe",
    "smolvlm",
}
"""Multimodal types whose text is computed by their language model alone; ``tests/peers`` compares each of them."""


class PlainCausalLM(PreTrainedModel):
    """A decoder of transformers with a linear head: the language model of the types in `PLAIN_HEAD`."""

    base_model_prefix = "model"
    _supports_attention_backend = True
    _supports_sdpa = True
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = AutoModel._model_mapping[type(config)](config)  # type: ignore[attr-defined]
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids: Tensor, logits_to_keep: int | Tensor = 0, **options: Any) -> CausalLMOutput:
        """Logits [1, S, vocab] of ``logits_to_keep``, as the classes of transformers understand it."""
        states = self.model(input_ids=input_ids, **options).last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return CausalLMOutput(logits=self.lm_head(states[:, kept]))


def language_model_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of the language model: ``config`` itself, or that part of a multimodal one."""
    text = config.get_text_config(decoder=True)
    if text is config:
        return config
    # As transformers has it, the whole states these.
    text.tie_word_embeddings = getattr(config, "tie_word_embeddings", False)
    if text.dtype is None:
        text.dtype = config.dtype
    return text


def dtype_of(config: PreTrainedConfig, dtype: str, default: torch.dtype = torch.float32) -> torch.dtype:
    """The dtype that an option names; of ``auto`` the one that ``config`` states, or else ``default``."""
    if dtype != "auto":
        return getattr(torch, dtype)
    return getattr(language_model_config(config), "dtype", None) or default


def language_model_class(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """The class of the language model of ``config``, multimodal or not; None if there is none."""
    if config.model_type in PLAIN_HEAD:
        return PlainCausalLM
    if config.model_type == "mllama":
        from .mllama import MllamaText  # no other model needs what it imports

        return MllamaText
    return AutoModelForCausalLM._model_mapping.get(type(language_model_config(config)), None)  # type: ignore[attr-defined]
