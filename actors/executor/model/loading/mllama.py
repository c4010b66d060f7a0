"""The language model of ``mllama``, which transformers has a class for and does not find by its configuration."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import MllamaForCausalLM


class MllamaText(MllamaForCausalLM):
    """Without the layers that attend to pictures: those are left out where there is none."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for layer in config.cross_attention_layers:
            self.model.layers[layer] = nn.Identity()
