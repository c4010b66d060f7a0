"""Parses the text of an answer into thoughts, plain text and calls of tools, each as far as it has come."""

from __future__ import annotations

import msgspec

from ..messages import Delta
from .ids import CallIds
from .json_words import JsonWords
from .strict_json import DECODER
from .tools import Offer


class CallPart(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """Part of a call: its name first, then its arguments bit by bit."""

    index: int
    """Which call of the answer."""
    id: str = ""
    """With the first part; so is ``name``."""
    name: str = ""
    arguments: str = ""
    """JSON text, to be put behind what came before."""


def is_complete(arguments: str) -> bool:
    """Whether the arguments of a call are more than the beginning of some."""
    try:
        DECODER.decode(arguments)
    except (ValueError, RecursionError):
        return False
    return True


class ChatDelta(Delta, kw_only=True, omit_defaults=True, gc=False):
    """What is new in an answer of a conversation, parsed: ``text`` is the answer without thoughts and calls."""

    reasoning: str = ""
    """Thoughts before the answer."""
    reasoning_tokens: int = 0
    """How many of ``token_ids`` are of thoughts, or of the mark that ends them."""
    tool_calls: list[CallPart] = []  # noqa: RUF012 - a struct copies it
    """Calls, each as far as it has come."""


class Parsed(msgspec.Struct, kw_only=True):
    """The content of a piece of an answer's text, in this order."""

    reasoning: str = ""
    text: str = ""
    calls: list[CallPart] = []
    thinks: bool = False
    """It began within thoughts, or had some."""


class Reader:
    """Base class of the parsers of one answer's text. What was parsed is collected in ``parsed`` until it is taken."""

    def __init__(self, offered: Offer, ids: CallIds) -> None:
        self.offered = offered
        self.ids = ids
        self.parsed = Parsed()
        self.calls = 0
        """How many were begun so far."""
        self.name = ""
        self.kept: list[str] | None = None
        """The arguments so far of a call that is checked before it is emitted."""
        self.words = JsonWords()
        """Of the arguments of the call that was emitted last."""
        self.dropped = False
        """The call that is being read is not emitted: one alone is asked for, and this is another."""

    def take(self) -> Parsed:
        """Return what was parsed since the last call."""
        parsed, self.parsed = self.parsed, Parsed()
        return parsed

    @property
    def in_thoughts(self) -> bool:
        """What comes next is of thoughts, as far as is known."""
        return False

    def feed(self, text: str) -> None:
        """More of the answer has come."""
        raise NotImplementedError

    def end(self, *, at_limit: bool) -> None:
        """No more comes; ``at_limit``: there would have been more."""
        raise NotImplementedError

    def emit_text(self, text: str) -> None:
        self.parsed.text += text

    def emit_reasoning(self, text: str) -> None:
        self.parsed.reasoning += text

    # --- calls --------------------------------------------------------------------------------

    def begin_call(self, name: str) -> None:
        """Arguments follow as they come; those of a ``strict`` function are emitted when they are complete."""
        self.kept = [] if self.offered.checks(name) else None
        self.name = name
        if self.kept is None:
            self.emit_call(name)

    def add_arguments(self, text: str) -> None:
        """To the call that was begun last."""
        if self.kept is not None:
            self.kept.append(text)
        elif not self.dropped and (text := self.words.feed(text)):
            parts, index = self.parsed.calls, self.calls - 1
            if parts and parts[-1].index == index:
                parts[-1].arguments += text
            else:
                parts.append(CallPart(index=index, arguments=text))

    def end_call(self, as_written: str) -> bool:
        """The call that was begun last is complete: whether it may be one. ``as_written`` is the text that it stays
        otherwise."""
        if self.kept is None:
            return True
        arguments, self.kept = "".join(self.kept), None
        fits = self.offered.fits(self.name, arguments)
        if fits:
            self.emit_call(self.name)
            self.add_arguments(arguments)
        else:
            self.emit_text(as_written)
        return fits

    def cut_call(self, as_written: str) -> None:
        """The answer was cut inside of the call that was begun last: what came of its arguments is emitted. All of
        them are looked at as ever."""
        arguments = "".join(self.kept or ())
        if is_complete(arguments):
            self.end_call(as_written)
        elif arguments:
            self.kept = None
            self.emit_call(self.name)
            self.add_arguments(arguments)

    def emit_call(self, name: str) -> None:
        self.words = JsonWords()
        self.dropped = self.offered.single and self.calls > 0
        if not self.dropped:
            self.parsed.calls.append(CallPart(index=self.calls, id=self.ids.new(name), name=name))
            self.calls += 1
