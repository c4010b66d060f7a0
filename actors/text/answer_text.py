"""The text that token ids add to what was before them, as they come.

A token stands for the same bytes wherever it stands (the first of a text may lose its leading space). They are asked
of the tokenizer once per token id. The rest is UTF-8: a character of which only some bytes have come, at most three,
waits for the others.
"""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Mapping

from ...protocol.formats.marks import Mark
from .vocabulary.pieces import Pieces


class AnswerText:
    """The text of one answer so far: what of it waits, and for what."""

    __slots__ = (
        "attempt",
        "begun",
        "first_characters",
        "include_stop",
        "matched",
        "pending",
        "pieces",
        "plain",
        "prefix",
        "shown",
        "stops",
        "unsent",
    )

    def __init__(
        self, pieces: Pieces, begun: bool, stops: list[str], attempt: int = 0, *, include_stop: bool = False
    ) -> None:
        self.pieces = pieces
        self.attempt = attempt
        self.begun = begun
        """Some token has had text: the next is not the first."""
        self.pending = b""
        """The bytes of an unfinished character."""
        self.stops = [Mark(text) for text in stops if text]
        self.include_stop = include_stop
        """What ends the answer is part of its text."""
        self.first_characters = frozenset(stop.text[0] for stop in self.stops)
        self.unsent = ""
        """Text that could be the beginning of a stop text."""
        self.matched: str | None = None
        """The stop text that ended the answer."""
        self.shown: Mapping[int, str] = {}
        """Special tokens that have text here."""
        self.prefix = ""
        """What the text begins with before any token."""
        self.plain = False
        """Nothing waits and nothing is looked for: a whole-character piece, special tokens without text, is the text
        that it adds."""

    def show(self, marks: Mapping[int, str], prefix: str) -> None:
        """Give these special tokens their text, and begin with ``prefix``, which stood in the prompt."""
        self.shown, self.prefix = marks, prefix

    def characters(self, token: int) -> str:
        """The whole characters that ``token`` completes."""
        piece = self.shown.get(token) or self.pieces[token]
        if piece and token not in self.shown and not self.begun:
            self.begun = True
            piece = self.pieces.at_start(token)
        if self.pending or isinstance(piece, bytes):
            data = self.pending + (piece.encode() if isinstance(piece, str) else piece)
            piece, used = utf_8_decode(data, "replace", False)
            self.pending = data[used:]
        waits = self.pending or self.stops or self.shown or self.prefix
        self.plain = self.begun and not (waits or self.pieces.special)
        return piece

    def text(self, token: int) -> str:
        """The text that can go out after ``token``. The stop text that is complete first ends the answer.

        Of two that become complete with the same character, the longer one does.
        """
        text = self.characters(token)
        if self.prefix:
            prefix, self.prefix = self.prefix, ""
            return prefix + self.sent(text)
        return self.sent(text)

    def sent(self, text: str) -> str:
        """The part of new characters that can be sent."""
        if not self.unsent and self.first_characters.isdisjoint(text):
            return text
        ends = [(end, -len(stop.text), stop.text) for stop in self.stops if (end := stop.find_end(text)) >= 0]
        window = self.unsent + text
        if ends:
            end, minus_length, self.matched = min(ends)
            self.unsent, self.pending = "", b""
            return window[: len(window) - len(text) + end + (0 if self.include_stop else minus_length)]
        cut = len(window) - max(stop.length for stop in self.stops)
        self.unsent = window[cut:]
        return window[:cut]

    def tail(self) -> str:
        """The text that still waits, at an end that is no stop text."""
        return self.unsent + self.pending.decode(errors="replace")
