"""Thoughts before an answer, where text meets tokens: how a prompt has them begin, and what a grammar lets pass.

The reading of them is ``protocol/formats``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import tokenizers

from ...protocol.formats import harmony
from ...protocol.formats.formats import HARMONY, REASONING, marks_of
from ...protocol.messages import Formats

TAIL_TOKENS = 8
"""Tokens at the end of a prompt in which the mark is looked for that a template may end it with: a mark has one to four
tokens, and white space may follow."""

ANY = r"/(.|\n)*/"

GAP = r"/[ ]?\n{0,2}/"
"""Space between thoughts and answer: with more of it a weak model would go on for ever."""


class ThoughtTokens:
    """The marks of one model's formats as tokens of its vocabulary."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, formats: Formats) -> None:
        self.tokenizer = tokenizer
        self.formats = formats
        self.marks = REASONING.get(formats.reasoning or "")
        found = {tokenizer.token_to_id(mark): mark for mark in marks_of(formats)}
        added = tokenizer.get_added_tokens_decoder()
        self.shown = {token: mark for token, mark in found.items() if token in added and added[token].special}
        """Special tokens that are marks, and so have text for those who read them."""

    def opening(self, prompt: Sequence[int]) -> str:
        """The mark that the prompt ends with, as templates write it that have the model think at once; or nothing."""
        if self.marks is None or not prompt:
            return ""
        tail = self.tokenizer.decode(list(prompt[-TAIL_TOKENS:]), skip_special_tokens=False).rstrip()
        return next((mark for mark in self.marks.opening if tail.endswith(mark)), "")

    def rule(self, prompt: Sequence[int]) -> str:
        """The rule ``before``, in llguidance's notation, for text that may precede the answer of a grammar; empty:
        nothing may."""
        if self.formats.reasoning == HARMONY:
            return self.harmony_rule()
        if self.marks is None:
            return ""
        if self.opening(prompt):
            return f"before: {self.until(self.marks.closing)} {GAP}{self.ends()}"
        tail = self.tokenizer.decode(list(prompt[-TAIL_TOKENS:]), skip_special_tokens=False).rstrip()
        if tail.endswith(self.marks.closing):
            return ""
        opening = " | ".join(self.token(mark) for mark in self.marks.opening)
        return f"before: (({opening}) {self.until(self.marks.closing)} {GAP})?{self.ends()}"

    def token(self, mark: str) -> str:
        """A mark: its token if it has one of its own, or else its text."""
        token = self.tokenizer.token_to_id(mark)
        return json.dumps(mark, ensure_ascii=False) if token is None else f"<[{token}]>"

    def until(self, closing: tuple[str, ...]) -> str:
        """Thoughts, with the mark behind them."""
        if all(self.tokenizer.token_to_id(mark) is not None for mark in closing):
            return f"{ANY} ({' | '.join(map(self.token, closing))})"
        return "thoughts"

    def ends(self) -> str:
        """The definitions that ``until`` refers to, if any."""
        if self.marks is None or self.until(self.marks.closing) != "thoughts":
            return ""
        closing = self.marks.closing
        alternatives = "|".join(re.escape(mark) for mark in closing)
        suffix = json.dumps(closing[0], ensure_ascii=False) if len(closing) == 1 else f"/{alternatives}/"
        return f"\nthoughts[suffix={suffix}]: {ANY}"

    def harmony_rule(self) -> str:
        start, channel, message, constrain = map(
            self.token, (harmony.START, harmony.CHANNEL, harmony.MESSAGE, harmony.CONSTRAIN)
        )
        other = f'{channel} /analysis|commentary/ {message} {ANY} {self.token("<|end|>")} {start} "assistant"'
        return f'before: ({other})* {channel} "final" (/[ ]?/ {constrain} "json")? {message}'
