"""The text that each token of a vocabulary adds: characters, or bytes where they are not whole ones."""

from __future__ import annotations

import re

import tokenizers

from ....protocol.errors import ModelNotSupported

UNREADABLE = "\ufffd"
"""What stands for bytes that are no UTF-8."""

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""A token for one byte, in vocabularies that fall back to bytes."""

SHOWN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTE_OF = {chr(byte): byte for byte in SHOWN}
BYTE_OF |= {chr(0x100 + n): byte for n, byte in enumerate(sorted(set(range(0x100)) - set(SHOWN)))}
"""The characters that byte-level vocabularies write for bytes: the visible ones for themselves."""


class Pieces:
    """A table from tokens to the text that they add: ``str``, or ``bytes`` where they are not whole characters."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, *, special: bool = False) -> None:
        """``special``: special tokens add their names; otherwise they add nothing."""
        self.tokenizer = tokenizer
        self.special = special
        self.size = tokenizer.get_vocab_size()
        self.known: list[str | bytes | None] = [None] * self.size
        """By token, as far as tokens have been met: a list takes a quarter of the memory of a dict."""
        self.before = self.find_before()
        """A token in front, since many tokenizers drop the leading space of the first."""
        self.skip = len(tokenizer.decode(self.before))

    def find_before(self) -> list[int]:
        for token in range(self.size):
            text = self.tokenizer.decode([token])
            if text.isascii() and text.isalnum() and self.tokenizer.id_to_token(token) == text:
                return [token]
        return []

    def __getitem__(self, token: int) -> str | bytes:
        piece = self.known[token] if 0 <= token < len(self.known) else None
        return self.look_up(token) if piece is None else piece

    def look_up(self, token: int) -> str | bytes:
        name = self.tokenizer.id_to_token(token) if token >= 0 else None
        if name is None:
            return ""  # the model's vocabulary is often padded beyond the tokenizer's
        if token >= len(self.known):  # some vocabularies leave ids out
            self.known += [None] * (token + 1 - len(self.known))
        text = self.decode([*self.before, token])[self.skip :]
        self.known[token] = piece = raw_bytes(name, text) if UNREADABLE in text else text
        return piece

    def at_start(self, token: int) -> str | bytes:
        """The text that the first token of a text adds."""
        piece = self[token]
        return self.decode([token]) if isinstance(piece, str) else piece

    def decode(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=not self.special)

    def check(self) -> None:
        """Compare a sample of the vocabulary, token by token, with the tokenizer's own decoding."""
        sample = range(0, self.size, max(1, self.size // 512))
        tokens = [token for token in sample if isinstance(self[token], str)]
        whole = self.decode([*self.before, *tokens])[self.skip :]
        if whole != "".join(str(self[token]) for token in tokens):
            raise ModelNotSupported(
                f"the decoder of this tokenizer ({type(self.tokenizer.decoder).__name__}) gives a token"
                " other text in other company, so its text cannot be streamed; use a model with a byte-level"
                " or a SentencePiece-like tokenizer"
            )


def raw_bytes(name: str, text: str) -> str | bytes:
    """The bytes of a token that are no whole characters; ``text`` itself if it is what the token says."""
    found = BYTE_TOKEN.fullmatch(name)
    if found:
        raw = bytes.fromhex(found[1])
    elif all(char in BYTE_OF for char in name):
        raw = bytes(BYTE_OF[char] for char in name)
    else:
        return text
    return raw if raw.decode(errors="replace") == text else text
