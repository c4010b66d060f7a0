"""Tokens as texts, for those who ask for logprobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tokenizers

from ...protocol.messages import Delta
from ..text.pieces import Pieces

NONE = -9999.0
"""OpenAI's number for a token that cannot be: minus infinity is no JSON."""


class Tokens:
    """The text and the bytes of each token of a vocabulary."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.pieces = Pieces(tokenizer)
        self.known: dict[int, tuple[str, list[int]]] = {}

    def __getitem__(self, token: int) -> tuple[str, list[int]]:
        found = self.known.get(token)
        if found is None:
            found = self.known[token] = self.look_up(token)
        return found

    def look_up(self, token: int) -> tuple[str, list[int]]:
        piece = self.pieces[token] or self.tokenizer.id_to_token(token) or ""  # a special token by its name
        if isinstance(piece, str):
            return piece, list(piece.encode(errors="replace"))
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece), list(piece)

    def most_likely(self, row: dict[str, float], count: int) -> list[tuple[int, float]]:
        """The ``count`` most likely tokens of a row; the sampled one is in it even if it is none of them."""
        ordered = sorted(row.items(), key=lambda item: -item[1])[:count]
        return [(int(token), max(logprob, NONE)) for token, logprob in ordered]

    def for_chat(self, delta: Delta, count: int) -> list[dict[str, Any]]:
        """One entry for each token, as chat completions have it."""

        def entry(token: int, logprob: float) -> dict[str, Any]:
            text, data = self[token]
            return {"token": text, "logprob": logprob, "bytes": data}

        return [
            entry(token, max(row[str(token)], NONE))
            | {"top_logprobs": [entry(*likely) for likely in self.most_likely(row, count)]}
            for token, row in zip(delta.token_ids, delta.logprobs, strict=True)
        ]


Columns = dict[str, list[Any]]
"""The logprobs of a completion: four lists with an entry for each token."""


class TokenTable:
    """Makes the columns of what follows on each other in one text."""

    def __init__(self, tokens: Tokens, count: int, offset: int = 0) -> None:
        self.tokens = tokens
        self.count = count
        self.offset = offset
        """Where in the text the next token begins."""

    def take(self, ids: Sequence[int], rows: Sequence[dict[str, float] | None]) -> Columns:
        """A row is None for a token that nothing comes before."""
        found: Columns = {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}
        for token, row in zip(ids, rows, strict=True):
            text, _ = self.tokens[token]
            found["text_offset"].append(self.offset)
            found["tokens"].append(text)
            self.offset += len(text)
            if row is None:
                found["token_logprobs"].append(None)
                found["top_logprobs"].append(None)
                continue
            found["token_logprobs"].append(max(row[str(token)], NONE))
            likely = self.tokens.most_likely(row, self.count)
            found["top_logprobs"].append({self.tokens[each][0]: logprob for each, logprob in likely})
        return found
