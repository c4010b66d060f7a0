"""Calls of tools, read from the text that a model writes, however it is cut into parts.

Each family of models writes calls in its own way. Read are the common ones:

    <tool_call>{"name": …, "arguments": {…}}</tool_call>                       Hermes, Qwen, and many more
    <tool_call><function=NAME><parameter=KEY>VALUE</parameter></function></tool_call>       Qwen3-Coder
    <tool_call>NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value></tool_call>                                  GLM
    {"name": …, "parameters": {…}}                                                          Llama 3
    [{"name": …, "arguments": {…}}]                                                         Mistral

The last two only where they are the whole answer; of the second, which is often left out there, ``<tool_call>`` may be
missing. What looks like a call, but is none of a function that was offered, or one whose arguments are not what a
``strict`` function takes, stays text.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from .ids import CallIds
from .json_parts import ObjectEnd, head_of
from .marks import cut_at
from .reader import Reader
from .schemas import Schema, types_of
from .strict_json import DECODER, as_json
from .tools import Function, Offer, arguments_of

OPEN, CLOSE = "<tool_call>", "</tool_call>"

FUNCTION, FUNCTION_END = "<function=", "</function>"

PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"

KEY, KEY_END, VALUE, VALUE_END = "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"

VALUE_MARKS = (PARAMETER, PARAMETER_END, VALUE, VALUE_END)

MARKS = ("[TOOL_CALLS]", "<|python_tag|>")
"""What may stand before calls that are the whole answer; most vocabularies have it as a special token."""


class Call(msgspec.Struct, kw_only=True):
    """A call that is complete."""

    name: str
    arguments: str
    """JSON text."""


class CallReader(Reader):
    """Parts the text of one answer, as it comes, into calls and the rest. A call that the end of the answer cuts off is
    emitted as far as it came. Nothing is lost, but for calls after the first where one alone is asked for, and for
    a call in another form than JSON that is cut.

    The arguments of a call in JSON behind a mark are emitted as they come; other calls when they are complete.
    """

    def __init__(self, offered: Offer, ids: CallIds) -> None:
        super().__init__(offered, ids)
        self.buffer = ""
        """Text that may be, or may become, part of a call."""
        self.where = "start"
        """``start``: only space has come; ``whole``: all of it may be calls; ``text``; ``call``: inside of one;
        ``arguments`` of one that is emitted, the ``rest`` of that, and ``behind`` it."""
        self.opening = ""
        """The mark that began the call."""
        self.end_of_call = EndOfCall()
        self.arguments = ObjectEnd()
        self.object = ObjectEnd()
        """The call that these are the arguments of."""
        self.written: list[str] = []
        """What came of that call."""
        self.after_call = False
        """Nothing but space has come since a call: if another one follows, it is dropped."""

    def feed(self, text: str) -> None:
        self.buffer += text
        if self.where == "start":
            begun = self.buffer.lstrip()
            if not begun or any(mark.startswith(begun) for mark in MARKS):
                return
            self.where = "whole" if begun[0] in "{[" or begun.startswith(MARKS) else "text"
        while self.where != "whole" and self.step():
            pass

    def step(self) -> bool:
        """Read on; whether something else has begun."""
        if self.where == "text":
            return self.look_for_call()
        if self.where == "call":
            return self.look_for_arguments() or self.look_for_end()
        if self.where == "arguments":
            end = self.arguments.find(self.buffer)
            part = self.buffer if end < 0 else self.buffer[:end]
            self.buffer = self.buffer[len(part) :]
            self.written.append(part)
            self.add_arguments(part)
            self.where = "arguments" if end < 0 else "rest"
            return end >= 0
        if self.where == "rest":
            end = self.object.find(self.buffer)
            self.written.append(self.buffer if end < 0 else self.buffer[:end])
            self.buffer = "" if end < 0 else self.buffer[end:]
            self.where = "rest" if end < 0 else "behind"
            return end >= 0
        begun = self.buffer.lstrip(" \t\r\n}")
        if begun != CLOSE and CLOSE.startswith(begun):
            return False
        if begun.startswith(CLOSE):
            rest = begun.removeprefix(CLOSE)
            self.written.append(self.buffer.removesuffix(rest))
            self.buffer = rest
        self.where, self.after_call = "text", self.end_call("".join(self.written))
        return True

    def look_for_call(self) -> bool:
        """Whether a call begins; what stands before it, or is none for sure, is text."""
        before, found, rest = cut_at(self.buffer, (OPEN, FUNCTION))
        if self.after_call and not before.strip():
            if found is None:
                return False  # what follows decides
        else:
            self.emit_text(before)
            self.after_call = False
        self.buffer = rest
        if found is not None:
            self.opening, self.where = found, "call"
            self.end_of_call = EndOfCall(bare=found == FUNCTION)
        return found is not None

    def look_for_arguments(self) -> bool:
        """Whether the arguments of a call begin that can be emitted before it is complete."""
        found = head_of(self.buffer) if self.opening == OPEN else None
        if found is None or found[0] not in self.offered.functions:
            return False
        name, at = found
        self.begin_call(name)
        self.written = [self.opening + self.buffer[:at]]
        self.buffer, self.where = self.buffer[at:], "arguments"
        self.arguments, self.object = ObjectEnd(), ObjectEnd(depth=1)
        return True

    def look_for_end(self) -> bool:
        end = self.end_of_call.find(self.buffer)
        if end is not None:
            self.take_call(end)
        return end is not None

    def take_call(self, end: slice) -> None:
        """Emit the call that ends there, and go on behind it."""
        made = self.read(self.buffer[: end.start])
        if not made:
            self.emit_text(self.opening + self.buffer[: end.stop])
        self.emit_calls(made)
        self.after_call = bool(made)
        self.buffer, self.where = self.buffer[end.stop :], "text"

    def read(self, inside: str) -> list[Call]:
        """The calls of what stands behind the mark."""
        begun = FUNCTION if self.opening == FUNCTION else ""
        return read_call(begun + inside, self.offered)

    def end(self, *, at_limit: bool) -> None:
        if self.where == "call" and self.end_of_call.likely is not None:
            self.take_call(self.end_of_call.likely)
            self.feed("")
            self.end(at_limit=at_limit)
            return
        buffer, self.buffer = self.buffer, ""
        if self.where in ("start", "whole"):
            calls = read_whole(buffer, self.offered, at_limit=at_limit)
            self.emit_calls(calls)
            if at_limit and not calls and self.where == "whole" and self.begin_cut(buffer):
                return
            if not calls:
                self.emit_text(buffer)
        elif self.where == "call":
            calls = self.read(buffer.rstrip().removesuffix(CLOSE))
            self.emit_calls(calls)
            if not calls and not at_limit:
                self.emit_text(self.opening + buffer)
        elif self.where == "arguments" and at_limit:
            self.cut_call("".join(self.written))
        elif self.where in ("arguments", "rest", "behind"):
            self.end_call("".join(self.written) + buffer)
        elif self.where == "text" and not (self.after_call and not buffer.strip()):
            self.emit_text(buffer)

    def begin_cut(self, text: str) -> bool:
        """Whether an answer that is nothing else begins a call, and is cut in its arguments."""
        text = without_marks(text).removeprefix("[")
        found = head_of(text)
        if found is None or found[0] not in self.offered.functions:
            return False
        name, at = found
        self.begin_call(name)
        end = ObjectEnd().find(text[at:])
        self.add_arguments(text[at:] if end < 0 else text[at : at + end])
        self.cut_call(text)
        return True

    def emit_calls(self, calls: list[Call]) -> None:
        for call in calls:
            self.emit_call(call.name)
            self.kept = None
            self.add_arguments(call.arguments)


QUOTED = re.compile(r'\\.|"|</tool_call>|[^"\\<]+|<', re.DOTALL)
"""What the text of a call in JSON is made of."""

TAGGED = re.compile(
    r"<tool_call>|<parameter=|</parameter>|<arg_value>|</arg_value>|</function>\s*</tool_call>|</function>|</tool_call>|[^<]+|<"
)
"""As above, for a call that is written without quotes."""


class EndOfCall:
    """Finds where a call ends: not inside of a text in quotes, nor of the value of a parameter.

    What was looked at is not looked at again when more has come.
    """

    def __init__(self, *, bare: bool = False) -> None:
        """``bare``: it began with ``<function=``."""
        self.bare = bare
        self.tagged: bool | None = True if bare else None
        """It is written without quotes; None: that is not known yet."""
        self.inside = False
        """Whether it is inside quotes, or inside the value of a parameter."""
        self.at = 0
        self.likely: slice | None = None
        """Marks of an end inside of a value: they are it, unless the value goes on and ends by its own."""

    def find(self, buffer: str) -> slice | None:
        """The mark at the end of the call whose text ``buffer`` begins with; None: it has not come."""
        if self.tagged is None:
            begun = buffer.lstrip()
            if not begun:
                return None
            self.tagged = begun[0] not in '{["'
        tokens = TAGGED if self.tagged else QUOTED
        while (token := tokens.match(buffer, self.at)) is not None:
            text = token[0]
            if text[0] == "<" and may_become_a_mark(buffer[self.at : self.at + LONGEST_MARK]):
                break
            if self.tagged and (text.startswith(FUNCTION_END) or text == CLOSE):
                both = text.startswith(FUNCTION_END) and text.endswith(CLOSE)
                end = slice(self.at + len(FUNCTION_END) * text.startswith(FUNCTION_END), token.end())
                if not self.inside and (both or self.bare == (text == FUNCTION_END)):
                    return end
                if (both or not self.inside) and self.likely is None:
                    self.likely = end
            elif self.tagged and text == OPEN and self.likely is not None:
                return self.likely
            elif self.tagged and text in VALUE_MARKS:
                self.inside = text in (PARAMETER, VALUE)
                if not self.inside:
                    self.likely = None
            elif not self.tagged and text == '"':
                self.inside = not self.inside
            elif text == CLOSE and not self.inside:
                return slice(self.at, token.end())
            self.at = token.end()
        return None


LONGEST_MARK = 64
"""Characters within which a mark ends, with the space inside of it: twice the longest known one."""


def may_become_a_mark(rest: str) -> bool:
    """Whether more text could make a longer mark of the end of a text, which begins like one."""
    if any(mark != rest and mark.startswith(rest) for mark in (*VALUE_MARKS, FUNCTION_END, CLOSE, OPEN)):
        return True
    return rest.startswith(FUNCTION_END) and CLOSE.startswith(rest.removeprefix(FUNCTION_END).lstrip())


def read_call(inside: str, offered: Offer) -> list[Call]:
    """The call between the marks; none if it is not one."""
    text = inside.strip()
    if text.startswith(FUNCTION) and text.endswith(FUNCTION_END):
        name, found, rest = text.removeprefix(FUNCTION).removesuffix(FUNCTION_END).partition(">")
        if found and name in offered.functions:
            return as_calls(
                [{"name": name, "arguments": read_parameters(rest, offered.functions[name])}], offered
            )
    name, found, rest = text.partition(KEY)
    if name.strip() in offered.functions:
        function = offered.functions[name.strip()]
        return as_calls([{"name": name.strip(), "arguments": read_pairs(found + rest, function)}], offered)
    return read_whole(inside, offered)


def read_pairs(text: str, function: Function) -> dict[str, Any] | None:
    """The arguments of a call as GLM writes them; None where one is cut."""
    schema = Schema(arguments_of(function), "")
    values: dict[str, Any] = {}
    while True:
        _, found, rest = text.partition(KEY)
        if not found:
            return values
        name, named, rest = rest.partition(KEY_END)
        _, _, rest = rest.partition(VALUE)
        value, ended, text = rest.partition(VALUE_END)
        if not (named and ended):
            return None
        values[name.strip()] = read_value(value, schema.types_of(name.strip()))


def read_parameters(text: str, function: Function) -> dict[str, Any]:
    """The arguments of a call that is written without quotes."""
    schema = Schema(arguments_of(function), "")
    values: dict[str, Any] = {}
    while True:
        _, found, rest = text.partition(PARAMETER)
        name, named, rest = rest.partition(">")
        value, ended, text = rest.partition(PARAMETER_END)
        if not (found and named and ended):
            return values
        values[name] = read_value(value.removeprefix("\n").removesuffix("\n"), schema.types_of(name))


def read_value(text: str, types: frozenset[str]) -> Any:
    """A value that is written without quotes: JSON of one of these types, or else a text. ``types`` is empty where
    the function does not say."""
    try:
        value = DECODER.decode(text)
    except (ValueError, RecursionError):
        return text
    if "string" in types and not types & types_of(value):
        return text
    return value


SPACE, COMMA, SEMICOLON = re.compile(r"\s*"), re.compile(r"\s*,?\s*"), re.compile(r"\s*;?\s*")


def without_marks(text: str) -> str:
    """An answer that may be nothing but calls, without what stands before them."""
    text = text.strip()
    for mark in MARKS:
        text = text.removeprefix(mark).lstrip()
    return text


def read_whole(text: str, offered: Offer, *, at_limit: bool = False) -> list[Call]:
    """The calls of an answer that is nothing else, one or several, in a list or in a row; with ``at_limit`` the last
    one may be incomplete, and is then none."""
    text = without_marks(text)
    found: list[Any] = []
    inside = at_limit and text.startswith("[")
    between = COMMA if inside else SEMICOLON
    place = SPACE.match(text, 1).end() if inside else 0  # type: ignore[union-attr]
    try:
        while place < len(text):
            value, place = DECODER.raw_decode(text, place)
            found += value if isinstance(value, list) else [value]
            place = between.match(text, place).end()  # type: ignore[union-attr]
    except (ValueError, RecursionError):
        if not at_limit:
            return []
    return as_calls(found, offered)


def as_calls(values: list[Any], offered: Offer) -> list[Call]:
    """The values as calls; none if one of them is not."""
    calls = [made for value in values if (made := as_call(value, offered)) is not None]
    return calls if len(calls) == len(values) else []


def as_call(value: Any, offered: Offer) -> Call | None:
    if not isinstance(value, dict) or value.get("name") not in offered.functions:
        return None
    name, arguments = value["name"], value.get("arguments", value.get("parameters", {}))
    schema = offered.strict.get(name)
    if isinstance(arguments, str):
        try:
            plain = DECODER.decode(arguments) if schema is not None else {}
        except (ValueError, RecursionError):
            return None
        text = arguments
    else:
        plain, text = arguments, as_json(arguments)
    if not isinstance(plain, dict) or (schema is not None and not schema.fits(plain)):
        return None
    return Call(name=name, arguments=text)
