"""Tokens as texts, for those who ask for logprobs."""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import tokenizers

from ...protocol.limits import UNLIKELIEST
from ...protocol.messages import Delta
from ..text.vocabulary.pieces import Pieces

KNOWN_TOKENS = 16_384
"""Most tokens whose texts and bytes are kept, 300 bytes each; then they are looked up anew."""


class TokenTexts:
    """The text and the bytes of each token of a vocabulary."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.pieces = Pieces(tokenizer)
        self.known: dict[int, tuple[str, list[int]]] = {}

    @cached_property
    def named(self) -> Pieces:
        """The text that each token adds where special tokens are written by name."""
        return Pieces(self.tokenizer, special=True)

    def __getitem__(self, token: int) -> tuple[str, list[int]]:
        found = self.known.get(token)
        if found is None:
            if len(self.known) >= KNOWN_TOKENS:
                self.known.clear()
            found = self.known[token] = self.look_up(token)
        return found

    def look_up(self, token: int) -> tuple[str, list[int]]:
        piece = self.pieces[token] or self.tokenizer.id_to_token(token) or ""  # a special token by its name
        if isinstance(piece, str):
            return piece, list(piece.encode(errors="replace"))
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece), list(piece)

    def unfinished(self, ids: Sequence[int]) -> bytes:
        """The bytes at the end of a text of tokens that are the beginning of a character."""
        last = b"".join(
            piece.encode() if isinstance(piece, str) else piece
            for piece in map(self.pieces.__getitem__, ids[-4:])
        )
        return last[utf_8_decode(last, "replace", False)[1] :]

    def most_likely(self, row: dict[str, float], count: int) -> list[tuple[int, float]]:
        """The ``count`` most likely tokens of a row; the sampled one is in it even if it is none of them."""
        ordered = sorted(row.items(), key=lambda item: -item[1])[:count]
        return [(int(token), max(logprob, UNLIKELIEST)) for token, logprob in ordered]

    def for_chat(self, delta: Delta, count: int) -> list[dict[str, Any]]:
        """One entry for each token, as chat completions have it."""

        def entry(token: int, logprob: float) -> dict[str, Any]:
            text, data = self[token]
            return {"token": text, "logprob": logprob, "bytes": data}

        return [
            entry(token, max(row[str(token)], UNLIKELIEST))
            | {"top_logprobs": [entry(*likely) for likely in self.most_likely(row, count)]}
            for token, row in zip(delta.token_ids, delta.logprobs, strict=True)
        ]


def prompt_logprobs(
    tokens: TokenTexts, rows: Sequence[dict[str, float] | None], count: int
) -> list[dict[str, Any] | None]:
    """The logprobs of a prompt as vLLM has them: by token id, with its rank among the ``count`` most likely. A token of
    the prompt that is none of these has no rank."""

    def entries(row: dict[str, float]) -> dict[str, Any]:
        ordered = enumerate(sorted(row.items(), key=lambda item: -item[1]), 1)
        return {
            token: {
                "logprob": max(logprob, UNLIKELIEST),
                "rank": rank if rank <= count else None,
                "decoded_token": tokens[int(token)][0],
            }
            for rank, (token, logprob) in ordered
        }

    return [None if row is None else entries(row) for row in rows]


Columns = dict[str, list[Any]]
"""The logprobs of a completion: four lists with an entry for each token."""


class Offsets:
    """The offsets of tokens in a text, by the characters that each adds to it: a special token adds none, and of
    several that share a character the last one does."""

    def __init__(
        self, pieces: Pieces, at: int, written: tuple[str, Pieces] | None = None, pending: bytes = b""
    ) -> None:
        """``written``: the text itself, with the names of the special tokens that may stand in it. ``pending`` are the
        bytes before the first token of a character that the text has the whole of."""
        self.pieces = pieces
        self.written = written
        self.at = at
        """Where the next token begins."""
        self.begun = at > 0
        """Some token has had text: the next is not the first, which may lose its space."""
        self.pending = pending
        """The bytes of an unfinished character."""

    def add(self, token: int) -> int:
        """The offset of ``token``, which comes next."""
        begins = self.at
        piece = self.pieces[token]
        if not piece:
            piece = self.written_name(token)
            self.begun = self.begun or bool(piece)
        elif not self.begun:
            self.begun = True
            piece = self.pieces.at_start(token)
        if self.pending or isinstance(piece, bytes):
            data = self.pending + (piece.encode() if isinstance(piece, str) else piece)
            piece, used = utf_8_decode(data, "replace", False)
            self.pending = data[used:]
        self.at += len(piece)
        return begins

    def written_name(self, token: int) -> str | bytes:
        """The name of a special token where the text has it; the tokenizer adds others, of which no text tells."""
        if self.written is None:
            return ""
        text, named = self.written
        name = named[token]
        return name if isinstance(name, str) and text.startswith(name, self.at) else ""


class TokenTable:
    """Makes the columns of what follows on each other in one text."""

    def __init__(
        self,
        tokens: TokenTexts,
        count: int,
        offset: int = 0,
        *,
        named: bool = False,
        written: str | None = None,
        pending: bytes = b"",
    ) -> None:
        """``offset`` is where in the text the first token begins; ``named``: it has the names of special tokens;
        ``written``: of those alone that stand in this text, as in a prompt; ``pending``: the bytes of a character in
        the middle of which a prompt ends, and which its answer has the whole of."""
        self.tokens = tokens
        self.count = count
        known = None if written is None else (written, tokens.named)
        self.offsets = Offsets(tokens.named if named else tokens.pieces, offset, known, pending)

    def take(self, ids: Sequence[int], rows: Sequence[dict[str, float] | None]) -> Columns:
        """A row is None for a token that nothing comes before."""
        found: Columns = {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}
        for token, row in zip(ids, rows, strict=True):
            text, _ = self.tokens[token]
            found["text_offset"].append(self.offsets.add(token))
            found["tokens"].append(text)
            if row is None:
                found["token_logprobs"].append(None)
                found["top_logprobs"].append(None)
                continue
            found["token_logprobs"].append(max(row[str(token)], UNLIKELIEST))
            likely = self.tokens.most_likely(row, self.count)
            found["top_logprobs"].append({self.tokens[each][0]: logprob for each, logprob in likely})
        return found
