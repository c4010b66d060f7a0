"""Harmony, as gpt-oss writes: an answer is messages, each in a channel and some to a function.

    <|channel|>analysis<|message|>…<|end|>                                              thoughts
    <|start|>assistant<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{…}<|call|>     a call
    <|start|>assistant<|channel|>final<|message|>…<|return|>                            the answer

The recipient may also stand before the channel. The last mark ends the answer, and so is seldom part of its text.
"""

from __future__ import annotations

import re

from .ids import CallIds
from .json_parts import ObjectEnd
from .marks import cut_at
from .reader import Reader
from .tools import Offer

START, CHANNEL, MESSAGE, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"

ENDS = ("<|end|>", "<|call|>", "<|return|>")

MARKS = (START, CHANNEL, MESSAGE, CONSTRAIN, *ENDS)

RECIPIENT = re.compile(r"to=(?:functions\.)?([^\s<]+)")

CHANNEL_NAME = re.compile(r"<\|channel\|>\s*(\w*)")

BEGINNINGS = (START, CHANNEL, MESSAGE, "assistant", "to=")
"""How a header can begin; an answer that begins otherwise has none."""


class Harmony(Reader):
    """Parts an answer by its channels."""

    def __init__(self, offered: Offer, ids: CallIds, answer: Reader | None = None) -> None:
        """``answer`` reads what is said in the channel ``final``; left out, that is text."""
        super().__init__(offered, ids)
        self.answer = answer
        self.where = "start"
        """``start``: only space has come; ``header``; ``message``; ``between`` two messages."""
        self.kind = "text"
        """The kind of the message: ``text``, ``thoughts`` or ``call``; ``behind``: the arguments of a call have ended,
        and the mark behind them has not come."""
        self.thought = False
        """There were thoughts: others begin a line."""
        self.buffer = ""
        """What has come and is not decided yet: it may become a mark."""
        self.function = ""
        """Whose call it is."""
        self.written: list[str] = []
        """The arguments of a call."""
        self.arguments: ObjectEnd | None = None
        """Finds where they end; None: they are no object, and end with the message."""
        self.space = ""
        """The space behind them, which is the format's unless more follows."""

    @property
    def in_thoughts(self) -> bool:
        return self.where == "message" and self.kind == "thoughts"

    def feed(self, text: str) -> None:
        self.buffer += text
        while self.buffer and self.step():
            pass

    def step(self) -> bool:
        """Read on in ``buffer``; whether something else has begun."""
        if self.where == "start":
            begun = self.buffer.lstrip()
            if not begun.startswith(BEGINNINGS):
                if any(mark.startswith(begun) for mark in BEGINNINGS):
                    return False
                self.where = "message"
                return True
            self.where, self.buffer = "header", begun
        if self.where == "header":
            before, found, rest = cut_at(self.buffer, (MESSAGE,))
            if found is None:
                return False
            self.begin_message(before)
            self.buffer, self.where = rest, "message"
            return True
        before, found, rest = cut_at(self.buffer, (*ENDS, START, CHANNEL))
        self.buffer = rest
        if self.where == "message":
            self.pass_on(before)
        if found is None:
            return False
        if self.where == "message":
            self.end_message()
        self.where = "between" if found in ENDS else "header"
        if found == CHANNEL:
            self.buffer = found + rest
        return True

    def begin_message(self, header: str) -> None:
        channel, recipient = CHANNEL_NAME.search(header), RECIPIENT.search(header)
        name = "" if recipient is None else recipient[1]
        self.written = []
        if name in self.offered.functions:
            self.kind, self.function = "call", name
        else:
            self.kind = "thoughts" if channel is not None and channel[1] == "analysis" else "text"
            if self.kind == "thoughts":
                self.emit_reasoning("\n" if self.thought else "")
                self.thought = True

    def pass_on(self, text: str) -> None:
        if self.kind == "call":
            text = self.take_arguments(text)
        if self.kind == "behind":
            text = self.take_behind(text)
        if not text:
            return
        if self.kind == "thoughts":
            self.emit_reasoning(text)
        elif self.answer is None:
            self.emit_text(text)
        else:
            self.answer.parsed = self.parsed
            self.answer.feed(text)

    def take_arguments(self, text: str) -> str:
        """More of a call's message; returns what stands behind its arguments."""
        if not self.written:
            text = text.lstrip()
            if not text:
                return ""
            self.begin_call(self.function)
            self.arguments = ObjectEnd() if text[0] == "{" else None
        end = -1 if self.arguments is None else self.arguments.find(text)
        arguments, behind = (text, "") if end < 0 else (text[:end], text[end:])
        self.written.append(arguments)
        self.add_arguments(arguments)
        if end >= 0:
            self.end_call("".join(self.written))
            self.kind, self.space = "behind", ""
        return behind

    def take_behind(self, text: str) -> str:
        """What stands behind the arguments of a call, as far as it is known to be text of the answer."""
        text, self.space = self.space + text, ""
        if text.strip():
            self.kind = "text"
            return text
        self.space = text
        return ""

    def end_message(self) -> None:
        if self.kind == "call" and not self.written:
            self.pass_on("{}")
        if self.kind == "call":
            self.end_call("".join(self.written))
        self.kind = "text"

    def end(self, *, at_limit: bool) -> None:
        buffer, self.buffer = self.buffer, ""
        if self.where == "message":
            self.pass_on(buffer)
            if self.kind == "call" and at_limit:
                self.cut_call("".join(self.written))
            else:
                self.end_message()
        elif self.where == "start":
            self.pass_on(buffer)
        if self.answer is not None:
            self.answer.parsed = self.parsed
            self.answer.end(at_limit=at_limit)
