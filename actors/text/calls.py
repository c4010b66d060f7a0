"""Calls that a model chooses to make, where text meets tokens: a grammar that begins at the mark of a call.

The reading of calls is ``protocol/formats``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import tokenizers

from ...protocol.formats.formats import LISTS, MARKED
from ...protocol.formats.tools import Function, any_call_of
from .notation import ANY_TEXT, LENIENT_STYLE, NO_FORCING, json_rule, literal

GAP = r"/\n?/"
"""Space between a mark and JSON: with more of it a weak model would go on for ever."""

ANSWER = "answer_itself"
"""The name of the grammar that holds where nothing is called."""

ID = "/[a-zA-Z0-9]{9}/"
"""What some models write for the id of a call."""

Schemas = Mapping[str, dict[str, Any]]
"""Of the arguments of each function that may be called, by its name."""


class CallMarkup:
    """The marks of one format of calls in one vocabulary."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, name: str) -> None:
        """``name`` is one of ``BEGIN_AT_CALLS``."""
        self.tokenizer = tokenizer
        self.name = name

    def grammar(self, functions: Schemas) -> str:
        """Any text, in which what follows the mark of a call is calls of these functions, in llguidance's notation."""
        opening, calls = OPENING[self.name], CALLS[self.name](self, functions)
        begun, text = "begun[lazy]", ANY_TEXT
        if self.has(opening):  # then no text writes it otherwise, since whoever reads it could not tell
            begun, text = "begun", f"{ANY_TEXT} & ~/(?s:.*){literal(opening)}(?s:.*)/"
        return "\n".join(
            [
                NO_FORCING,
                "start: calls* rest",
                f"calls: begun {calls}",
                f"{begun}: TEXT {self.mark(opening)}",
                "rest: TEXT",
                f"TEXT: {text}",
            ]
        )

    def instead(self, functions: Schemas, answer: str) -> str:
        """Nothing but calls of these functions; or else what ``answer`` says, a grammar in llguidance's notation."""
        opening, calls = OPENING[self.name], CALLS[self.name](self, functions)
        whole = f"{NO_FORCING}\nstart: ({self.mark(opening)} {calls} {GAP})+ | @{ANSWER}"
        if not answer.startswith("{"):
            answer = json.dumps({"grammars": [{"lark_grammar": answer}]})
        [first, *others] = json.loads(answer)["grammars"]
        return json.dumps({"grammars": [{"lark_grammar": whole}, first | {"name": ANSWER}, *others]})

    def has(self, mark: str) -> bool:
        """Whether the vocabulary has a mark as one token."""
        return self.tokenizer.token_to_id(mark) is not None

    def mark(self, mark: str) -> str:
        """A mark: its token if it has one of its own, or else its text."""
        token = self.tokenizer.token_to_id(mark)
        return json.dumps(mark, ensure_ascii=False) if token is None else f"<[{token}]>"

    # --- what follows the first mark, by format -----------------------------------------------

    def hermes(self, functions: Schemas) -> str:
        listed = all_calls(functions)
        one = {"anyOf": listed["items"]["anyOf"], "$defs": listed["$defs"]}
        return f"{GAP} {arguments(one)} {GAP} {self.mark('</tool_call>')}"

    def mistral(self, functions: Schemas) -> str:
        if not self.has("[ARGS]"):
            return arguments(all_calls(functions))
        id = f"({self.mark('[CALL_ID]')} {ID})?" if self.has("[CALL_ID]") else ""
        return one_of(
            f"{json.dumps(name)} {id} {self.mark('[ARGS]')} {arguments(schema)}"
            for name, schema in functions.items()
        )

    def listed(self, functions: Schemas) -> str:
        return f"/ ?/ {arguments(all_calls(functions))}"

    def deepseek_v3(self, functions: Schemas) -> str:
        begun = f'{self.mark("<｜tool▁call▁begin｜>")} "function" {self.mark("<｜tool▁sep｜>")}'
        return self.between_marks(functions, f"{begun} {{}}", r'"\n```json\n"', r'"\n```"')

    def deepseek_v31(self, functions: Schemas) -> str:
        begun = f"{self.mark('<｜tool▁call▁begin｜>')} {{}}"
        return self.between_marks(functions, begun, self.mark("<｜tool▁sep｜>"), "")

    def kimi_k2(self, functions: Schemas) -> str:
        begun = f'{self.mark("<|tool_call_begin|>")} "functions." {{}} ":" /[0-9]+/'
        return self.between_marks(functions, begun, self.mark("<|tool_call_argument_begin|>"), "")

    def between_marks(self, functions: Schemas, begun: str, named: str, ended: str) -> str:
        """Calls in a row, with the marks that close each and all of them."""
        marks = MARKED[self.name]
        calls = one_of(
            f"{begun.format(json.dumps(name))} {named} {arguments(schema)} {ended}"
            for name, schema in functions.items()
        )
        return f"({calls} {self.mark(marks.closing)} {GAP})+ {self.mark(marks.around[1])}"


def arguments(schema: dict[str, Any]) -> str:
    return json_rule(schema, LENIENT_STYLE)


def one_of(ways: Any) -> str:
    return f"({' | '.join(ways)})"


def all_calls(functions: Schemas) -> dict[str, Any]:
    """The schema of a list of calls."""
    known = {name: Function(name=name, parameters=schema) for name, schema in functions.items()}
    return any_call_of(known, dict.fromkeys(known, "calls"), None)


CALLS: dict[str, Callable[[CallMarkup, Schemas], str]] = {
    "deepseek_v3": CallMarkup.deepseek_v3,
    "deepseek_v31": CallMarkup.deepseek_v31,
    "granite": CallMarkup.listed,
    "hermes": CallMarkup.hermes,
    "kimi_k2": CallMarkup.kimi_k2,
    "mistral": CallMarkup.mistral,
    "phi4_mini_json": CallMarkup.listed,
}

OPENING = {
    "hermes": "<tool_call>",
    "mistral": MARKED["mistral"].opening,
    **{name: LISTS[name].opening[0] for name in ("granite", "phi4_mini_json")},
    **{name: MARKED[name].around[0] for name in ("deepseek_v3", "deepseek_v31", "kimi_k2")},
}
"""The mark at which the grammar begins."""
