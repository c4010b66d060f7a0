"""Calls as Python writes them, ``[get_weather(city="Rome"), now()]``: Llama 4, LFM2, and models trained like them."""

from __future__ import annotations

import ast
import re
from typing import Any, ClassVar, NamedTuple

from .ids import CallIds
from .marks import cut_at
from .reader import Reader
from .strict_json import as_json
from .tools import Offer

OPENING = ("<|python_start|>", "<|python_tag|>", "<|tool_call_start|>")
"""What may stand before them."""

CLOSING = ("<|python_end|>", "<|tool_call_end|>")
"""What may stand behind them."""

MARKS = (*OPENING, *CLOSING)

BEGINNING = re.compile(r"\[\s*(?:[A-Za-z_][\w.]*\s*(?:\(.*)?)?", re.DOTALL)
"""What a list of calls begins with, however much of it has come."""

FIRST_CALL = re.compile(r"\[\s*([A-Za-z_][\w.]*)\s*\(")

BRACKET = re.compile(r"""'(?:\\.|[^'\\])*(?:'|\\?\Z)|"(?:\\.|[^"\\])*(?:"|\\?\Z)|[\[\](){}]""", re.DOTALL)
"""A bracket that is not inside of quotes; and what is, so that it is passed over."""

MAX_CHARACTERS = 100_000
"""Longest list that is parsed, which takes Python's parser 0.08 s; a longer one stays text."""


class PythonCalls(Reader):
    """Reads lists of calls: those between marks, wherever they stand, and one without that is the whole answer.

    Space around the marks is the format's.
    """

    def __init__(self, offered: Offer, ids: CallIds) -> None:
        super().__init__(offered, ids)
        self.where = "start"
        """``start``: only space has come; ``list``: what may be one; ``text``."""
        self.buffer = ""
        """What has come and is not decided yet."""
        self.opening = ""
        """The mark that the list began with, with the space before it; nothing: it began without one."""
        self.list_end = ListEnd()
        self.after_call = False
        """Nothing but space has come since a list of calls."""

    def feed(self, text: str) -> None:
        self.buffer += text
        if self.where == "start":
            begun = self.buffer.lstrip()
            if not begun:
                return
            self.where = "list" if begun[0] == "[" else "text"
            self.after_call = True  # space before a list is the format's too
        while self.look_for_end() if self.where == "list" else self.look_for_list():
            pass

    def look_for_list(self) -> bool:
        """Whether a list begins; what stands before it is text."""
        before, found, rest = cut_at(self.buffer, MARKS)
        if found is None and self.after_call and not before.strip():
            return False  # what follows decides whether this space is part of the text
        space = before if self.after_call and not before.strip() else ""
        if not space:
            self.emit_text(before)
            self.after_call = self.after_call and not before
        self.buffer = rest
        if found in OPENING:
            self.where, self.opening, self.list_end = "list", space + found, ListEnd()
        return found is not None

    def look_for_end(self) -> bool:
        """Whether the list ends, or turns out to be none."""
        begun = without_opening(self.buffer[:256])
        may_be = any(mark.startswith(begun) for mark in OPENING) or BEGINNING.fullmatch(begun) is not None
        if not may_be or len(self.buffer) > MAX_CHARACTERS:
            first = 0 if self.opening else 1
            self.emit_list(self.buffer[:first])
            self.buffer = self.buffer[first:]
            return True
        end = self.list_end.find(self.buffer)
        if end is not None:
            self.take_list(self.buffer[: end.start], self.buffer[: end.stop])
            self.buffer = self.buffer[end.stop :]
        return end is not None

    def take_list(self, inside: str, as_written: str) -> None:
        text = without_opening(inside).rstrip()
        calls = read_calls(text, self.offered)
        if calls is None:
            self.emit_list(as_written)
            return
        fitting = [self.fits(call) for call in calls]
        if not any(fitting):
            self.emit_list(as_written)
            return
        sources = [""] * len(calls) if all(fitting) else sources_of(text, [call.node for call in calls])
        for call, fits, source in zip(calls, fitting, sources, strict=True):
            if fits:
                self.emit_call(call.name)
                self.add_arguments(call.arguments)
            else:
                self.emit_text(source)
        self.where, self.opening, self.after_call = "text", "", True

    def fits(self, call: Call) -> bool:
        return not self.offered.checks(call.name) or self.offered.fits(call.name, call.arguments)

    def emit_list(self, as_written: str) -> None:
        """What looked like a list of calls is none."""
        self.emit_text(self.opening + as_written)
        self.where, self.opening, self.after_call = "text", "", False

    def end(self, *, at_limit: bool) -> None:
        buffer, self.buffer = self.buffer, ""
        if self.where == "list":
            text = without_opening(buffer).rstrip()
            if at_limit and read_calls(text, self.offered) is None and self.begins_call(text):
                complete = complete_calls(text)
                if complete:
                    self.take_list(complete, buffer)
            else:
                self.take_list(buffer, buffer)
        elif not (self.calls and self.after_call and not buffer.strip()):
            self.emit_text(buffer)

    def begins_call(self, text: str) -> bool:
        """Whether a list begins with a call of a function that is offered, however much of it has come."""
        first = FIRST_CALL.match(text)
        return first is not None and first[1] in self.offered.functions


def complete_calls(text: str) -> str:
    """The list of those calls of a list that is cut whose end has come; empty if there are none."""
    depth = end = 0
    for found in BRACKET.finditer(text):
        if found[0] in ("[", "(", "{"):
            depth += 1
        elif found[0] in ("]", ")", "}"):
            depth -= 1
            end = found.end() if depth == 1 and found[0] == ")" else end
    return text[:end] and text[:end] + "]"


def without_opening(text: str) -> str:
    """One mark may stand behind another."""
    text = text.lstrip()
    for mark in OPENING:
        text = text.removeprefix(mark).lstrip()
    return text


TOKEN = re.compile(r"""\\.|["']|<[^<"'\\]{0,32}|[^\\"'<]+|\\""", re.DOTALL)
"""What a list of calls is made of. No mark is longer than 32 characters."""


class ListEnd:
    """Finds the mark behind a list of calls, which is not inside of quotes.

    What was looked at is not looked at again when more has come.
    """

    def __init__(self) -> None:
        self.quote = ""
        self.at = 0

    def find(self, buffer: str) -> slice | None:
        """The mark, in the text that begins with the list; None: it has not come."""
        while (found := TOKEN.match(buffer, self.at)) is not None:
            token = found[0]
            if token == "\\" and found.end() == len(buffer):
                return None
            if token in ("'", '"'):
                self.quote = token if not self.quote else "" if self.quote == token else self.quote
            elif token[0] == "<" and not self.quote:
                closing = next((mark for mark in CLOSING if token.startswith(mark)), None)
                if closing is not None:
                    return slice(self.at, self.at + len(closing))
                if any(mark.startswith(token) for mark in CLOSING):
                    return None
            self.at = found.end()
        return None


class Call(NamedTuple):
    name: str
    arguments: str
    """As JSON."""
    node: ast.expr


def sources_of(text: str, nodes: list[ast.expr]) -> list[str]:
    """The text of each node; `ast.get_source_segment` would divide all of ``text`` into lines for each."""
    source = text.encode()  # columns count bytes
    lines = [0, *(end.end() for end in re.finditer(rb"\r\n?|\n", source))]

    def place(line: int | None, column: int | None) -> int:
        return lines[(line or 1) - 1] + (column or 0)

    spans = [
        (place(node.lineno, node.col_offset), place(node.end_lineno, node.end_col_offset)) for node in nodes
    ]
    return [source[start:end].decode() for start, end in spans]


def read_calls(text: str, offered: Offer) -> list[Call] | None:
    """The calls of a list; None if it is none of functions that are offered."""
    if len(text) > MAX_CHARACTERS:
        return None
    try:
        tree = ast.parse(text, mode="eval").body
        if not isinstance(tree, ast.List) or not tree.elts:
            return None
        return [read_call(node, offered) for node in tree.elts]
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None


def read_call(node: ast.expr, offered: Offer) -> Call:
    """``ValueError`` if it is no call that is offered, with arguments by name that are plain values."""
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("no call with named arguments")
    name = ast.unparse(node.func)
    if name not in offered.functions:
        raise ValueError(f"no function {name}")
    arguments = {keyword.arg: ast.literal_eval(JsonNames().visit(keyword.value)) for keyword in node.keywords}
    if None in arguments:
        raise ValueError("arguments without names")
    return Call(name, as_json({str(key): value for key, value in arguments.items()}), node)


class JsonNames(ast.NodeTransformer):
    """Takes JSON's names of three values for Python's: models mix them up."""

    values: ClassVar[dict[str, Any]] = {"true": True, "false": False, "null": None}

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(self.values[node.id]) if node.id in self.values else node
