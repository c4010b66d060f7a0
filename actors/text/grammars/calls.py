"""Calls that a model chooses to make, where text meets tokens: a grammar that begins at the mark of a call.

The reading of calls is ``protocol/formats``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import tokenizers

from ....protocol.formats import harmony
from ....protocol.formats.formats import LISTS, MARKED, OPENAI, REASONING
from ....protocol.formats.tools import Function, any_call_of
from .call_rules import (
    ANSWER,
    GAP,
    SPACE,
    WIDE_GAP,
    Rules,
    Schemas,
    Ways,
    arguments,
    as_a_whole,
    behind_marks,
    one_of,
)
from .notation import ANY_TEXT, literal
from .python_calls import pythonic
from .tagged_calls import glm45, qwen3_coder

ID = "/[a-zA-Z0-9]{9}/"
"""What some models write for the id of a call."""


TYPE = '"\\"type\\"" ":" / ?/ "\\"function\\""'


class CallMarkup:
    """One format of calls in one vocabulary."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, name: str) -> None:
        """``name`` is one of ``FORMATS``."""
        self.tokenizer = tokenizer
        self.name = name

    @property
    def has_thoughts(self) -> bool:
        """Its grammars say what may stand before an answer, too."""
        return self.name == OPENAI

    def grammar(self, functions: Schemas) -> str:
        """Any text, in which all calls are of these functions, in llguidance's notation."""
        rules = Rules(self.tokenizer)
        return rules.grammar(FORMATS[self.name](rules, functions).beside)

    def instead(self, functions: Schemas, answer: str) -> str:
        """Nothing but calls of these functions; or else what ``answer`` says, a grammar in llguidance's notation."""
        rules = Rules(self.tokenizer)
        ways = FORMATS[self.name](rules, functions)
        whole = rules.grammar(f"{ways.alone} | {ways.answer}")
        if not answer.startswith("{"):
            answer = json.dumps({"grammars": [{"lark_grammar": answer}]})
        [first, *others] = json.loads(answer)["grammars"]
        return json.dumps({"grammars": [{"lark_grammar": whole}, first | {"name": ANSWER}, *others]})


# --- JSON behind marks ------------------------------------------------------------------------


def hermes(rules: Rules, functions: Schemas) -> Ways:
    listed = all_calls(functions)
    one = {"anyOf": listed["items"]["anyOf"], "$defs": listed["$defs"]}
    return behind_marks(rules, {"<tool_call>": f"{GAP} {arguments(one)} {GAP} {rules.mark('</tool_call>')}"})


def mistral(rules: Rules, functions: Schemas) -> Ways:
    opening = MARKED["mistral"].opening
    if not rules.has("[ARGS]"):
        return behind_marks(rules, {opening: arguments(all_calls(functions))})
    id = f"({rules.mark('[CALL_ID]')} {ID})?" if rules.has("[CALL_ID]") else ""
    calls = one_of(
        f"{json.dumps(name)} {id} {rules.mark('[ARGS]')} {arguments(schema)}"
        for name, schema in functions.items()
    )
    return behind_marks(rules, {opening: calls})


def listed(format: str, rules: Rules, functions: Schemas) -> Ways:
    """A list that ends with its bracket."""
    return behind_marks(rules, {LISTS[format].opening[0]: f"/ ?/ {arguments(all_calls(functions))}"})


def cohere_command3(rules: Rules, functions: Schemas) -> Ways:
    """``{"tool_call_id": "0", "tool_name": …, "parameters": {…}}``; older models write no id."""
    id = f'("\\"tool_call_id\\"" ":" {WIDE_GAP} /"[0-9]+"/ "," {WIDE_GAP})?'
    one = one_of(
        f'{id} "\\"tool_name\\"" ":" {WIDE_GAP} {quoted(name)} "," {WIDE_GAP} "\\"parameters\\"" ":" {WIDE_GAP}'
        f" {arguments(schema)}"
        for name, schema in functions.items()
    )
    call = rules.rule(f'"{{" {WIDE_GAP} {one} {WIDE_GAP} "}}"')
    calls = f'{WIDE_GAP} "[" {WIDE_GAP} {call} ("," {WIDE_GAP} {call})* {WIDE_GAP} "]" {GAP}'
    marks = LISTS["cohere_command3"]
    ended = {
        opening: f"{calls} {rules.mark(closing)}"
        for opening, closing in zip(marks.opening, marks.closing, strict=True)
    }
    thoughts = REASONING["cohere_command3"]
    return behind_marks(rules, ended, () if thoughts is None else thoughts.around)


def deepseek_v3(rules: Rules, functions: Schemas) -> Ways:
    begun = f'{rules.mark("<｜tool▁call▁begin｜>")} "function" {rules.mark("<｜tool▁sep｜>")}'
    return between_marks(rules, "deepseek_v3", functions, f"{begun} {{}}", r'"\n```json\n"', r'"\n```"')


def deepseek_v31(rules: Rules, functions: Schemas) -> Ways:
    begun = f"{rules.mark('<｜tool▁call▁begin｜>')} {{}}"
    return between_marks(rules, "deepseek_v31", functions, begun, rules.mark("<｜tool▁sep｜>"))


def kimi_k2(rules: Rules, functions: Schemas) -> Ways:
    begun = f'{rules.mark("<|tool_call_begin|>")} "functions." {{}} ":" /[0-9]+/'
    return between_marks(rules, "kimi_k2", functions, begun, rules.mark("<|tool_call_argument_begin|>"))


def between_marks(
    rules: Rules, format: str, functions: Schemas, begun: str, named: str, ended: str = ""
) -> Ways:
    """Calls in a row, with the marks that close each and all of them."""
    marks = MARKED[format]
    calls = one_of(
        f"{begun.format(json.dumps(name))} {named} {arguments(schema)} {ended}"
        for name, schema in functions.items()
    )
    opening, closing = marks.around
    return behind_marks(
        rules, {opening: f"({calls} {rules.mark(marks.closing)} {GAP})+ {rules.mark(closing)}"}
    )


def all_calls(functions: Schemas) -> dict[str, Any]:
    """The schema of a list of calls."""
    known = {name: Function(name=name, parameters=schema) for name, schema in functions.items()}
    return any_call_of(known, dict.fromkeys(known, "calls"), None)


def quoted(text: str) -> str:
    """A text in JSON, as a text of a grammar."""
    return json.dumps(json.dumps(text, ensure_ascii=False), ensure_ascii=False)


# --- JSON that is the whole answer ------------------------------------------------------------


def llama3_json(rules: Rules, functions: Schemas) -> Ways:
    """One call, several in a row, or a list of them. An object that names no function that is offered is an answer."""
    colon, comma = f"{SPACE}:{SPACE}", f"{SPACE},{SPACE}"
    begun = rf'\{{{SPACE}("(id|type)"{colon}"[^"\\]*"{comma})?"name"{colon}"'
    ends = {
        name: rules.rule(f'{WIDE_GAP} {arguments(schema)} {WIDE_GAP} "}}"')
        for name, schema in functions.items()
    }
    named = f'"{{" {WIDE_GAP} ({TYPE} "," {WIDE_GAP})? "\\"name\\"" ":" {WIDE_GAP}'
    given = f'"," {WIDE_GAP} ("\\"arguments\\"" | "\\"parameters\\"") ":"'
    call = rules.rule(one_of(f"{named} {quoted(name)} {given} {end}" for name, end in ends.items()))
    in_a_row = f"({WIDE_GAP} /;?/ {WIDE_GAP} {call})* {WIDE_GAP}"
    in_a_list = f'({WIDE_GAP} "," {WIDE_GAP} {call})* {WIDE_GAP} "]"'
    calls = {
        opening: {literal(json.dumps(name)[1:]): f"{given} {end} {others}" for name, end in ends.items()}
        for opening, others in ((begun, in_a_row), (rf"\[{SPACE}{begun}", in_a_list))
    }
    alone = f'({call} {in_a_row} | "[" {WIDE_GAP} {call} {in_a_list})'
    return as_a_whole(rules, ("<|python_tag|>", "[TOOL_CALLS]"), calls, alone)


# --- channels ---------------------------------------------------------------------------------


def openai(rules: Rules, functions: Schemas) -> Ways:
    """Messages, each in a channel, and some to a function."""
    start, channel, message, constrain, end, called = map(
        rules.mark,
        (harmony.START, harmony.CHANNEL, harmony.MESSAGE, harmony.CONSTRAIN, *harmony.ENDS[:2]),
    )
    json_form = f'/ ?/ ({constrain}? "json")?'
    text = f"{message} {rules.up_to(ANY_TEXT, harmony.ENDS[0])}"
    said = rules.rule(f"{channel} /analysis|commentary|final/ {json_form} {text}")
    call = rules.rule(
        one_of(
            f"({to} {channel} /commentary|analysis/ | {channel} /commentary|analysis/ {to}) {json_form}"
            f" {message} {arguments(schema)}"
            for name, schema in functions.items()
            for to in [one_of(json.dumps(f" to={space}{name}") for space in ("functions.", ""))]
        )
    )
    following = f'{start} "assistant"'
    last = f"{channel} /analysis|commentary|final/ {json_form} {message} {rules.terminal(ANY_TEXT)}"
    before = f"(({said} | {call} ({end} | {called})) {following})*"
    thoughts = f"({channel} /analysis|commentary/ {text} {following})*"
    return Ways(
        f"{before} ({last} | {said} | {call} ({end} | {called})?)",
        f"{thoughts} {call} (({end} | {called}) {following} {thoughts} {call})* ({end} | {called})?",
        f'{thoughts} {channel} "final" {json_form} {message} @{ANSWER}',
    )


FORMATS: dict[str, Callable[[Rules, Schemas], Ways]] = {
    "cohere_command3": cohere_command3,
    "deepseek_v3": deepseek_v3,
    "deepseek_v31": deepseek_v31,
    "glm45": glm45,
    "granite": partial(listed, "granite"),
    "hermes": hermes,
    "kimi_k2": kimi_k2,
    "llama3_json": llama3_json,
    "llama4_pythonic": pythonic,
    "mistral": mistral,
    OPENAI: openai,
    "phi4_mini_json": partial(listed, "phi4_mini_json"),
    "pythonic": pythonic,
    "qwen3_coder": qwen3_coder,
    "xlam": llama3_json,
}
"""By the names of ``TOOL_CALLS``: how calls of these functions are written."""
