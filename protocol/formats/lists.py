"""Calls in a list of JSON objects, ``[{"name": …, "arguments": {…}}, …]``."""

from __future__ import annotations

from typing import NamedTuple

from .calls import as_call
from .ids import CallIds
from .json_parts import LONGEST_HEAD, ObjectEnd, head_of
from .marks import cut_at
from .reader import CallPart, Reader
from .strict_json import DECODER
from .tools import Offer


class ListMarks(NamedTuple):
    """The marks around such a list. ``closing`` may be left out: the list then ends with its bracket."""

    opening: tuple[str, ...]
    closing: tuple[str, ...] = ()


class CallList:
    """Reads one list, in which each object is a call of its own, and has a reader hand the calls over."""

    def __init__(self, reader: Reader, closing: tuple[str, ...] = ()) -> None:
        self.reader = reader
        self.closing = closing or ("]",)
        self.between = ""
        """What stands since the last object."""
        self.ended = False
        """Its bracket has come, and nothing but the mark behind it can be part of it."""
        self.object: ObjectEnd | None = None
        self.arguments: ObjectEnd | None = None
        """The arguments of a call that was begun; None as well when they are complete."""
        self.begun = False
        self.written: list[str] = []
        """The object so far."""

    def feed(self, text: str) -> str | None:
        """The text behind the list; None if it has not ended."""
        while True:
            if self.ended:
                return self.behind(text)
            if self.object is None:
                _, found, text = cut_at(self.between + text, ("{", "]", *self.closing))
                self.between = text if found is None else ""
                if found is None:
                    return None
                if found in self.closing:
                    return text
                if found == "]":
                    self.ended = True
                    continue
                text = found + text
                self.object, self.arguments, self.begun, self.written = ObjectEnd(), None, False, []
            end = self.object.find(text)
            self.read(text if end < 0 else text[:end])
            if end < 0:
                return None
            self.complete()
            self.object, text = None, text[end:]

    def behind(self, text: str) -> str | None:
        """As ``feed``, once the bracket has come."""
        text, self.between = self.between + text, ""
        begun = text.lstrip()
        for mark in self.closing:
            if begun.startswith(mark):
                return begun.removeprefix(mark)
        if any(mark.startswith(begun) for mark in self.closing):
            self.between = text
            return None
        return text

    def read(self, part: str) -> None:
        self.written.append(part)
        if not self.begun:
            if len(self.written) > 1 and len(self.written[0]) > LONGEST_HEAD:
                return
            part = "".join(self.written)
            found = head_of(part)
            if found is None or found[0] not in self.reader.offered.functions:
                self.written = [part]
                return
            name, at = found
            self.reader.begin_call(name)
            self.begun, self.arguments, part = True, ObjectEnd(), part[at:]
        if self.arguments is not None:
            end = self.arguments.find(part)
            self.reader.add_arguments(part if end < 0 else part[:end])
            if end >= 0:
                self.arguments = None

    def complete(self) -> None:
        written = "".join(self.written)
        if not self.begun:
            try:
                call = as_call(DECODER.decode(written), self.reader.offered)
            except (ValueError, RecursionError):
                call = None
            if call is None:
                if not self.reader.offered.required:
                    self.reader.emit_text(written)
                return
            self.reader.begin_call(call.name)
            self.reader.add_arguments(call.arguments)
        self.reader.end_call(written)

    def end(self, *, at_limit: bool) -> None:
        """A call that is cut off has what came of its arguments; one without any is none."""
        if self.object is None:
            return
        written = "".join(self.written)
        if at_limit:
            self.reader.cut_call(written)
        elif self.reader.offered.required:
            return
        elif self.begun:
            self.reader.end_call(written)
        else:
            self.reader.emit_text(written)


class RequiredCalls(Reader):
    """An answer that was made to be a list of calls: it has no text."""

    def __init__(self, offered: Offer, ids: CallIds) -> None:
        super().__init__(offered, ids)
        self.list = CallList(self)

    def feed(self, text: str) -> None:
        self.list.feed(text)

    def end(self, *, at_limit: bool) -> None:
        self.list.end(at_limit=at_limit)


class NamedCall(Reader):
    """An answer that was made to be the arguments of one function."""

    def feed(self, text: str) -> None:
        if not self.calls:
            self.begin_call(self.offered.forced or "")
            self.parsed.calls.append(CallPart(index=0))  # the name is told by itself
        self.add_arguments(text)

    def end(self, *, at_limit: bool) -> None:
        self.feed("")


class MarkedLists(Reader):
    """Finds lists of calls in an answer by the marks around them."""

    def __init__(self, marks: ListMarks, offered: Offer, ids: CallIds) -> None:
        super().__init__(offered, ids)
        self.marks = marks
        self.list: CallList | None = None
        self.buffer = ""
        """What has come and is not decided yet: it may become a mark."""

    def feed(self, text: str) -> None:
        rest: str | None = self.buffer + text
        self.buffer = ""
        while rest:
            if self.list is not None:
                rest = self.list.feed(rest)
                if rest is not None:
                    self.list = None
                continue
            before, found, rest = cut_at(rest, self.marks.opening)
            self.emit_text(before)
            if found is None:
                self.buffer = rest
                return
            self.list = CallList(self, self.marks.closing)

    def end(self, *, at_limit: bool) -> None:
        if self.list is not None:
            self.list.end(at_limit=at_limit)
        else:
            self.emit_text(self.buffer)
        self.buffer = ""
