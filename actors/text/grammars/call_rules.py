"""Rules of grammars for calls, in llguidance's notation, and where in an answer the calls may stand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import tokenizers

from .notation import ANY_TEXT, LENIENT_STYLE, NO_FORCING, json_rule, literal

GAP = r"/\n?/"
"""Space between a mark and JSON: with more of it a weak model would go on for ever."""

WIDE_GAP = r"/\n?[ ]{0,12}/"
"""The gap where models write a new line and as much space as the depth asks for."""

SPACE = r"[ \t\r\n]*"
"""Space as a regular expression."""

ANSWER = "answer_itself"
"""The name of the grammar that holds where nothing is called."""

Schemas = Mapping[str, dict[str, Any]]
"""Schemas of the arguments of each function that may be called, by its name."""

Begun = Mapping[str, Mapping[str, str]]
"""What calls begin with, up to the name: for each such regular expression, by the regular expression of a name and what
closes it, the rest of the call."""


class Ways(NamedTuple):
    """The forms that an answer may have, each as the body of a rule."""

    beside: str
    """Any text, and calls where the format has them."""
    alone: str
    """Nothing but calls."""
    answer: str = f"@{ANSWER}"
    """What another grammar holds."""


class Rules:
    """The rules of one grammar for one vocabulary."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.names: dict[str, str] = {}
        """By what they say."""
        self.lines: dict[str, str] = {}
        """By name."""

    def grammar(self, start: str) -> str:
        """All of it, in which ``start`` is what an answer is."""
        return "\n".join([NO_FORCING, f"start: {start}", *self.lines.values()])

    def rule(self, body: str) -> str:
        """The name of a rule."""
        return self.named(body, lambda: body)

    def named(self, key: str, body: Callable[[], str]) -> str:
        """The name of a rule that may refer to itself, by its ``key``."""
        if key not in self.names:
            name = self.names[key] = f"rule_{len(self.names)}"
            self.lines[name] = f"{name}: {body()}"
        return self.names[key]

    def lazy(self, body: str) -> str:
        """The name of a rule that ends as soon as it can."""
        return self.written(f"[lazy]: {body}", "rule_")

    def terminal(self, body: str) -> str:
        """The name of a regular expression, or of several that hold together."""
        return self.written(f": {body}", "TEXT_")

    def written(self, text: str, kind: str) -> str:
        if text not in self.names:
            name = self.names[text] = f"{kind}{len(self.names)}"
            self.lines[name] = name + text
        return self.names[text]

    def has(self, mark: str) -> bool:
        """Whether the vocabulary has a mark as one token."""
        return self.tokenizer.token_to_id(mark) is not None

    def mark(self, mark: str) -> str:
        """A mark: its token if it has one of its own, or else its text."""
        token = self.tokenizer.token_to_id(mark)
        return json.dumps(mark, ensure_ascii=False) if token is None else f"<[{token}]>"

    def up_to(self, text: str, mark: str) -> str:
        """A text with the mark behind it, which it does not have in it. ``text`` is the body of a terminal."""
        if self.has(mark):
            return f"{self.terminal(f'{text} & {without(mark)}')} {self.mark(mark)}"
        name = self.terminal(f"{text} & {without(mark.strip())}" if mark.strip() != mark else text)
        return self.lazy(f"{name} {self.mark(mark)}")


def without(*marks: str) -> str:
    """The body of a terminal that matches texts without these."""
    return f"~/(?s:.*)({'|'.join(map(literal, marks))})(?s:.*)/"


def other_than(text: str, known: Iterable[str]) -> str:
    """The body of a terminal that matches what ``text`` does, a regular expression, but for these."""
    return f"/{text}/" + "".join(f" & ~/{literal(one)}/" for one in known)


def one_of(ways: Iterable[str]) -> str:
    return f"({' | '.join(ways)})"


def arguments(schema: dict[str, Any]) -> str:
    """JSON that is valid under a schema."""
    return json_rule(schema, LENIENT_STYLE)


def behind_marks(rules: Rules, calls: Mapping[str, str], around: Iterable[str] = ()) -> Ways:
    """Calls anywhere in a text, each behind a mark: ``calls`` is what follows by the mark. Tokens ``around`` an answer
    may stand anywhere too."""
    tokens = [mark for mark in calls if rules.has(mark)]  # no text writes these otherwise: who could tell?
    text = rules.terminal(" & ".join([ANY_TEXT, *map(without, tokens)]))
    begun = {mark: f"{text} {rules.mark(mark)}" for mark in calls}
    parts = [
        f"{begun[mark] if mark in tokens else rules.lazy(begun[mark])} {what}" for mark, what in calls.items()
    ]
    parts += [f"{text} {rules.mark(mark)}" for mark in around if rules.has(mark)]
    alone = one_of(f"{rules.mark(mark)} {what} {GAP}" for mark, what in calls.items())
    return Ways(f"({one_of(parts)})* {text}", f"{alone}+")


def as_a_whole(rules: Rules, marks: Iterable[str], calls: Begun, alone: str) -> Ways:
    """Calls that are the whole answer, at most behind one of the marks. A text that begins otherwise, or goes on
    otherwise behind such a beginning, is free.

    ``alone`` are the same calls in as many parts as they have: beside other grammars, those of which an answer in JSON
    begins in the same way must not be longer than its own.
    """
    tokens = [mark for mark in marks if rules.has(mark)]
    texts = [literal(mark) for mark in marks if mark not in tokens]
    before = f"{SPACE}(({'|'.join(texts)}){SPACE})?" if texts else SPACE
    ways = [rules.terminal(f"{ANY_TEXT} & ~/{before}({'|'.join(calls)})(?s:.*)/")]
    for begun, named in calls.items():
        made = [f"/{name}/ {what}" for name, what in named.items()]
        free = rules.terminal(f"{ANY_TEXT} & ~/({'|'.join(named)})(?s:.*)/")
        ways.append(f"{rules.terminal(f'/{before}{begun}/')} {one_of([*made, free])}")
    optional = one_of(map(rules.mark, tokens)) + "? " if tokens else ""
    return Ways(optional + one_of(ways), f"{one_of(map(rules.mark, marks))}? {alone}")
