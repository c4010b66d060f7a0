"""Control tokens in what users write: kept from being more than text, where the operator asks for it.

As transformers' ``sanitize_control_tokens``: in every string that a request gives to a chat template, names of
control tokens are put between two marks; after the template has written the prompt, what stands between marks is
encoded without the tokenizer's added tokens. What the template itself writes stays what it is.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from typing import Any

import tokenizers

from ....protocol.errors import InvalidRequest

BEGIN, END = "\ufdd0", "\ufdd1"
"""The marks. Unicode has these two characters for use inside of programs: no text has them."""


class Sanitizer:
    """Marks the control tokens of one model."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, literals: str) -> None:
        """``literals`` are all texts that the model's chat templates write themselves."""
        self.tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder().values()
        control = [
            token.content
            for token in added
            if token.special or (token.content in literals and not token.content.isspace())
        ]
        self.control = pattern_of(control)
        self.marked = re.compile(
            f"{BEGIN}({pattern_of([t.content for t in added]).pattern}){END}|[{BEGIN}{END}]"
        )
        self.line = encode_plain(tokenizer, "\n")

    def mark(self, value: Any) -> Any:
        """``value`` with the control tokens in all its strings marked, the keys of maps among them: templates write
        those of arguments and of schemas."""
        if isinstance(value, str):
            return self.control.sub(f"{BEGIN}\\g<0>{END}", value.replace(BEGIN, "").replace(END, ""))
        if isinstance(value, dict):
            return {self.mark(key): self.mark(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.mark(item) for item in value]
        return value

    def pieces(self, text: str) -> Iterator[tuple[str, bool]]:
        """The text in pieces, each with whether it is a marked name of a control token."""
        for number, piece in enumerate(self.marked.split(text)):
            if piece:
                yield piece, number % 2 == 1

    def encode_name(self, name: str) -> array[int]:
        """The tokens of the name of a control token, as text that follows on other text."""
        ids = encode_plain(self.tokenizer, "\n" + name)
        ids = (
            ids[len(self.line) :]
            if ids[: len(self.line)] == self.line
            else encode_plain(self.tokenizer, name)
        )
        if self.tokenizer.token_to_id(name) in ids:
            raise InvalidRequest(
                f"the conversation has {name!r}, which this tokenizer makes its control token of even as plain text;"
                " leave it out",
                param="messages",
            )
        return ids


def pattern_of(names: list[str]) -> re.Pattern[str]:
    """Any of the names; of two that begin alike, the longer one."""
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)")


def encode_plain(tokenizer: tokenizers.Tokenizer, text: str) -> array[int]:
    """The tokens of a text for which the tokenizer's added tokens do not exist."""
    if tokenizer.normalizer is not None:
        text = tokenizer.normalizer.normalize_str(text)
    words = [text]
    if tokenizer.pre_tokenizer is not None:
        words = [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    return array("i", [token.id for word in words for token in tokenizer.model.tokenize(word)])
