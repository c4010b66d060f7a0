"""Calls as Python writes them, ``[get_weather(city="Rome"), now()]``: Llama 4, LFM2, and models trained like them."""

from __future__ import annotations

import ast
import re
from typing import Any, ClassVar

from .ids import CallIds
from .json_parts import as_json
from .reader import Reader
from .tools import Offer

OPENING = ("<|python_start|>", "<|python_tag|>", "<|tool_call_start|>")
"""What may stand before them."""

CLOSING = ("<|python_end|>", "<|tool_call_end|>")
"""What may stand behind them."""

MARKS = (*OPENING, *CLOSING)

BEGINNING = re.compile(r"\[\s*(?:[A-Za-z_][\w.]*\s*(?:\(.*)?)?", re.DOTALL)
"""What a list of calls begins with, however much of it has come."""

FIRST_CALL = re.compile(r"\[\s*[A-Za-z_][\w.]*\s*\(")

MAX_CHARACTERS = 100_000
"""Longest list that is parsed, which takes Python's parser 0.08 s; a longer one stays text."""


class PythonCalls(Reader):
    """Reads an answer that is a list of calls and nothing else; any other is text."""

    def __init__(self, offered: Offer, ids: CallIds) -> None:
        super().__init__(offered, ids)
        self.buffer: str | None = ""
        """None: the answer is text."""

    def feed(self, text: str) -> None:
        if self.buffer is None:
            self.say(text)
            return
        self.buffer += text
        if len(self.buffer) - len(text) > MAX_CHARACTERS or self.may_be_calls(self.buffer[:256]):
            return
        self.say(self.buffer)
        self.buffer = None

    def may_be_calls(self, begun: str) -> bool:
        begun = begun.lstrip()
        for mark in MARKS:
            if begun.startswith(mark):
                begun = begun[len(mark) :].lstrip()
            elif mark.startswith(begun):
                return True
        return not begun or BEGINNING.fullmatch(begun) is not None

    def end(self, *, at_limit: bool) -> None:
        buffer, self.buffer = self.buffer or "", None
        text = buffer.strip()
        for mark in MARKS:
            text = text.removeprefix(mark).removesuffix(mark).strip()
        calls = read_calls(text, self.offered)
        if calls is None:
            if not (at_limit and FIRST_CALL.match(text)):
                self.say(buffer)
            return
        for name, arguments in calls:
            self.begin_call(name)
            self.add_arguments(as_json(arguments))
            self.end_call(buffer)


def read_calls(text: str, offered: Offer) -> list[tuple[str, dict[str, Any]]] | None:
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


def read_call(node: ast.expr, offered: Offer) -> tuple[str, dict[str, Any]]:
    """``ValueError`` if it is no call that is offered, with arguments by name that are plain values."""
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("no call with named arguments")
    name = ast.unparse(node.func)
    if name not in offered.functions:
        raise ValueError(f"no function {name}")
    arguments = {keyword.arg: ast.literal_eval(JsonNames().visit(keyword.value)) for keyword in node.keywords}
    if None in arguments:
        raise ValueError("arguments without names")
    as_json(arguments)
    return name, {str(key): value for key, value in arguments.items()}


class JsonNames(ast.NodeTransformer):
    """Takes JSON's names of three values for Python's: models mix them up."""

    values: ClassVar[dict[str, Any]] = {"true": True, "false": False, "null": None}

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(self.values[node.id]) if node.id in self.values else node
