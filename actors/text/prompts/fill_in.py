"""Texts with a gap, for models that were trained to fill it."""

from __future__ import annotations

import tokenizers

from ....protocol.errors import InvalidRequest

MARKS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder, CodeGemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite
    ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"),  # DeepSeek
    ("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),  # CodeGeeX
)
"""What families write before a text, before what follows the gap, and behind it."""


def with_gap(tokenizer: tokenizers.Tokenizer, before: str, after: str) -> str:
    """The prompt for what stands between two texts; ``InvalidRequest`` if the model has no marks for it."""
    for marks in MARKS:
        if all(tokenizer.token_to_id(mark) is not None for mark in marks):
            return f"{marks[0]}{before}{marks[1]}{after}{marks[2]}"
    raise InvalidRequest(
        "suffix is given, but this model's tokenizer has no tokens to fill in the middle with; leave it out",
        param="suffix",
    )
