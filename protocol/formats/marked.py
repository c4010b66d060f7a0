"""Calls as a name and a JSON object between marks: DeepSeek, Kimi K2, and Mistral's newer models."""

from __future__ import annotations

import re
from typing import NamedTuple

from .ids import CallIds
from .json_parts import ObjectEnd
from .lists import CallList
from .marks import cut_at
from .reader import Reader
from .tools import Offer


class CallMarks(NamedTuple):
    """``opening`` NAME ``named`` {ARGUMENTS} ``closing``."""

    opening: str
    named: str
    closing: str = ""
    """Empty: the arguments end with their bracket."""
    around: tuple[str, ...] = ()
    """What stands around all calls, and says nothing."""
    lists: bool = False
    """Behind ``opening`` there may be a list of calls instead."""


NAME = re.compile(r"(?:functions\.)?([^\s:\[]+)(?::\d+)?\s*(?:\[CALL_ID\].*)?", re.DOTALL)
"""A name with what may stand around it: a namespace, the number or the id of the call."""


SPACE = re.compile(r"[\s}]*(?:```)?\s*")
"""What may stand between the arguments of a call and the mark that closes it."""


class MarkedCalls(Reader):
    """Reads an answer in which calls stand between marks. Space between two of them is the format's."""

    def __init__(self, marks: CallMarks, offered: Offer, ids: CallIds) -> None:
        super().__init__(offered, ids)
        self.marks = marks
        self.where = "text"
        """``text``; ``name``; ``list``; ``before``, ``arguments`` and ``behind`` of those of a call; ``none``: in
        something that is no call."""
        self.after_call = False
        """Nothing but space has come since a call."""
        self.buffer = ""
        """What has come and is not decided yet: it may become a mark."""
        self.written: list[str] = []
        """What came since the mark that began the call."""
        self.function: str | None = None
        """Whose call it is."""
        self.arguments = ObjectEnd()
        self.list: CallList | None = None

    def feed(self, text: str) -> None:
        self.buffer += text
        steps = {
            "text": self.read_text,
            "name": self.read_name,
            "list": self.read_list,
            "before": self.read_before,
            "arguments": self.read_arguments,
            "behind": self.read_behind,
            "none": self.read_none,
        }
        while steps[self.where]():
            pass

    # Each reads what it can of ``buffer``, and returns whether something else has begun.

    def read_text(self) -> bool:
        before, found, rest = cut_at(self.buffer, (self.marks.opening, *self.marks.around))
        if self.after_call and not before.strip():
            if found is None:
                return False  # what follows decides whether this space is part of the text
            before = ""
        self.emit_text(before)
        self.after_call = self.after_call and not before
        self.buffer = rest
        if found == self.marks.opening:
            self.where, self.written = "name", [self.marks.opening]
        elif found is not None:
            self.after_call = True
        return found is not None

    def read_name(self) -> bool:
        begun = self.buffer.lstrip()
        if self.marks.lists and begun[:1] in ("[", "{") and not self.marks.named.startswith(begun[:2]):
            if len(begun) < 2 and self.marks.named.startswith(begun):
                return False
            self.where, self.list = "list", CallList(self)
            return True
        ends = (self.marks.named, self.marks.closing) if self.marks.closing else (self.marks.named,)
        before, found, rest = cut_at(self.buffer, ends)
        if found is None:
            return False
        self.written.append(before + found)
        self.buffer = rest
        self.function = self.name_of(before)
        if found == self.marks.closing:
            self.end_without_arguments("".join(self.written))
        else:
            self.where = "none" if self.function is None else "before"
        return True

    def name_of(self, text: str) -> str | None:
        """The function that is called; None if there is none of that name."""
        found = NAME.fullmatch(text.strip())
        names = (text.strip(), found[1] if found else "")
        return next((name for name in names if name in self.offered.functions), None)

    def read_list(self) -> bool:
        assert self.list is not None
        buffer, self.buffer = self.buffer, ""
        rest = self.list.feed(buffer) if buffer else None
        if rest is None:
            return False
        self.buffer, self.where, self.after_call, self.written = rest, "text", True, []
        return True

    def read_before(self) -> bool:
        """Drop the text before the arguments."""
        ends = ("{", self.marks.closing) if self.marks.closing else ("{",)
        before, found, rest = cut_at(self.buffer, ends)
        self.written.append(before)
        self.buffer = rest
        if found is None:
            return False
        if found == "{":
            self.begin_call(self.function or "")
            self.buffer, self.where, self.arguments = found + rest, "arguments", ObjectEnd()
        else:
            self.written.append(found)
            self.end_without_arguments("".join(self.written))
        return True

    def read_arguments(self) -> bool:
        end = self.arguments.find(self.buffer)
        part = self.buffer if end < 0 else self.buffer[:end]
        self.buffer = self.buffer[len(part) :]
        self.written.append(part)
        self.add_arguments(part)
        if end < 0:
            return False
        self.where = "behind"
        if not self.marks.closing:
            self.complete()
        return True

    def read_behind(self) -> bool:
        """Look for the mark that closes the call; if anything else follows, that is text."""
        closing = self.marks.closing
        space = SPACE.match(self.buffer)
        assert space is not None
        begun = self.buffer[space.end() :]
        if begun.startswith(closing):
            self.written.append(self.buffer[: space.end()] + closing)
            self.buffer = begun.removeprefix(closing)
        elif any(mark.startswith(begun) for mark in ("```", closing)):
            return False
        self.complete()
        return True

    def end_without_arguments(self, as_written: str) -> None:
        if self.function is None:
            self.emit_text(as_written)
            self.where, self.written = "text", []
            return
        self.begin_call(self.function)
        self.add_arguments("{}")
        self.complete()

    def complete(self) -> None:
        self.end_call("".join(self.written))
        self.where, self.after_call, self.written = "text", True, []

    def read_none(self) -> bool:
        """Treat as text what has the marks of a call and is none."""
        before, found, rest = cut_at(self.buffer, (self.marks.closing or self.marks.opening,))
        self.emit_text("".join(self.written) + before)
        self.written, self.buffer = [], rest
        if found is None:
            return False
        if found == self.marks.opening:
            self.buffer = found + rest
        else:
            self.emit_text(found)
        self.where = "text"
        return True

    def end(self, *, at_limit: bool) -> None:
        """Arguments that are cut off are sent as far as they came; a call of which only the name came is none."""
        buffer, self.buffer = self.buffer, ""
        if self.list is not None and self.where == "list":
            self.list.end(at_limit=at_limit)
        elif self.where == "before" and not at_limit:
            self.end_without_arguments("".join(self.written) + buffer)
        elif self.where == "arguments" and at_limit:
            self.cut_call("".join(self.written) + buffer)
        elif self.where in ("behind", "arguments"):
            self.end_call("".join(self.written) + buffer)
        elif self.where in ("name", "before"):
            if self.where == "name" and not at_limit:
                self.emit_text("".join(self.written) + buffer)
        elif not (self.after_call and not buffer.strip()):
            self.emit_text("".join(self.written) + buffer)
