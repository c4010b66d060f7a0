"""Parts an answer into thoughts, text and calls, by the parsers that its formats ask for."""

from __future__ import annotations

import msgspec

from ..messages import Formats
from .calls import CallReader
from .formats import HARMONY, HELD, LISTS, MARKED, OPENAI, PYTHONIC, REASONING, own_marks
from .harmony import Harmony
from .ids import CallIds
from .lists import MarkedLists, NamedCall, RequiredCalls
from .marked import MarkedCalls
from .pythonic import PythonCalls
from .reader import Parsed, Reader
from .thoughts import Thoughts, Unwrapped
from .tools import Offer


class Text(Reader):
    """An answer that can have no calls; should the model write their marks all the same, they are left out."""

    def __init__(self, marks: tuple[str, ...], offered: Offer, ids: CallIds) -> None:
        super().__init__(offered, ids)
        self.unwrapped = Unwrapped(marks) if marks else None

    def feed(self, text: str) -> None:
        self.emit_text(text if self.unwrapped is None else self.unwrapped.feed(text))

    def end(self, *, at_limit: bool) -> None:
        if self.unwrapped is not None:
            self.emit_text(self.unwrapped.end())


def calls_reader(formats: Formats, offered: Offer, ids: CallIds, *, special: bool = False) -> Reader:
    """The parser of the calls in an answer whose thoughts are separated."""
    name = formats.tool_calls or ""
    if offered.forced is not None:
        return NamedCall(offered, ids)
    if offered.required:
        return RequiredCalls(offered, ids)
    if not offered.functions:
        return Text(() if special else own_marks(name), offered, ids)
    if name in MARKED:
        return MarkedCalls(MARKED[name], offered, ids)
    if name in LISTS:
        return MarkedLists(LISTS[name], offered, ids)
    if name not in HELD:  # calls in these are read when they are complete, and then looked at
        offered = msgspec.structs.replace(offered, enforced=False)
    if name in PYTHONIC:
        return PythonCalls(offered, ids)
    return CallReader(offered, ids)


class AnswerReader:
    """Parts the text of one answer into thoughts, text and calls, in whatever parts it comes."""

    def __init__(self, formats: Formats, offered: Offer, ids: CallIds, *, special: bool = False) -> None:
        """``special``: the names of special tokens are wanted, marks of calls that nobody offered among them."""
        calls = calls_reader(formats, offered, ids, special=special)
        thoughts = REASONING.get(formats.reasoning or "")
        self.reader: Reader = calls
        if formats.reasoning == HARMONY or (formats.tool_calls == OPENAI and offered.functions):
            self.reader = Harmony(offered, ids, calls if offered.schema is not None else None)
        elif thoughts is not None:
            self.reader = Thoughts(thoughts, offered, ids, calls)

    @property
    def plain(self) -> bool:
        """Every answer is told as it is: there is nothing to parse."""
        return isinstance(self.reader, Text) and self.reader.unwrapped is None

    def read(
        self, text: str, finish_reason: str | None = None, stop_reason: str | int | None = None
    ) -> Parsed:
        """Parse more of the answer, and return what is new; with ``finish_reason`` that was all. A stop text is a limit
        too: the model would have written more."""
        thinks = self.reader.in_thoughts
        if text:
            self.reader.feed(text)
        if finish_reason is not None:
            self.reader.end(at_limit=finish_reason == "length" or isinstance(stop_reason, str))
        parsed = self.reader.take()
        parsed.thinks = thinks or bool(parsed.reasoning)
        return parsed
