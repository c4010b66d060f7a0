"""Calls that a model chooses to make are held to the schemas of strict functions by a grammar that begins at a mark."""

from __future__ import annotations

import json
from array import array
from typing import Any

import pytest
import tokenizers
from slipstream.actors.text.calls import CallMarkup
from slipstream.actors.text.grammar import GrammarCompiler
from slipstream.actors.text.tokenizer import Tokenizer
from slipstream.actors.text.tokenizer_files import load_tokenizer
from slipstream.protocol.formats.formats import HELD_BY_GRAMMAR, AnswerReader, marks_of
from slipstream.protocol.formats.ids import CallIds
from slipstream.protocol.formats.tools import Function, Tool, offer
from slipstream.protocol.internal import Enqueue, Refused, Submit
from slipstream.protocol.messages import Formats
from slipstream.protocol.sampling import Grammar, SamplingParams
from tokenizers import AddedToken

from slipstream.service import BUNDLED_MODEL

CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "A city", "maxLength": 9},
        "days": {"$ref": "#/$defs/days"},
    },
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"days": {"type": "integer", "format": "days"}},
}
TOOLS = [
    Tool(type="function", function=Function(name="weather", parameters=CITY, strict=True)),
    Tool(type="function", function=Function(name="now")),
]
OFFERED = offer(TOOLS, None, None)

RIGHT, WRONG = '{"city": "Rome", "days": 3}', '{"town": "Rome"}'

ANSWERS = {
    "hermes": ('<tool_call>\n{"name": "weather", "arguments": ', "}\n</tool_call>"),
    "mistral": ("[TOOL_CALLS]weather[ARGS]", "[TOOL_CALLS]now[ARGS]{}"),
    "deepseek_v3": (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n",
        "\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    "deepseek_v31": (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>",
        "<｜tool▁call▁end｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    "kimi_k2": (
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:12<|tool_call_argument_begin|>",
        "<|tool_call_end|><|tool_calls_section_end|>",
    ),
    "granite": ('<|tool_call|>[{"name": "now", "arguments": {}}, {"name": "weather", "arguments": ', "}]"),
    "phi4_mini_json": ('functools[{"name": "weather", "arguments": ', "}]"),
}
"""What stands before and behind the arguments of a call, by format."""


def vocabulary(formats: Formats, *, special: bool) -> tokenizers.Tokenizer:
    """One that has the marks of a format as tokens, or as text alone."""
    tokenizer = load_tokenizer(BUNDLED_MODEL)
    if special:
        marks = [mark for mark in sorted(marks_of(formats)) if "func" not in mark]
        tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    return tokenizer


def compiler_for(tokenizer: tokenizers.Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, tokenizer.get_vocab_size(), [0])


def followed(
    tokenizer: tokenizers.Tokenizer, compiler: GrammarCompiler, grammar: Grammar, text: str
) -> tuple[bool, bool]:
    """Whether every token of the text may come, and whether the answer may end behind it."""
    matcher = compiler.compile(grammar)
    for token in tokenizer.encode(text, add_special_tokens=False).ids:
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        if not mask >> token & 1:
            return False, False
        matcher.consume_token(token)
    return True, matcher.is_accepting()


def test_every_format_that_is_said_to_be_held_is_one() -> None:
    assert set(ANSWERS) == HELD_BY_GRAMMAR


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("name", ANSWERS)
def test_a_call_of_a_strict_function_can_have_no_other_arguments(name: str, special: bool) -> None:
    formats = Formats(tool_calls=name, strict=True)
    if name == "mistral" and not special:
        before, behind = '[TOOL_CALLS][{"name": "weather", "arguments": ', "}]"
    else:
        before, behind = ANSWERS[name]
    tokenizer = vocabulary(formats, special=special)
    compiler = compiler_for(tokenizer)
    grammar = Grammar("calls", CallMarkup(tokenizer, name).grammar(OFFERED.calls))
    for text in ("", 'It is {"so": 1} [2]. ', "Well: "):
        assert followed(tokenizer, compiler, grammar, text) == (True, True), "any text may stand before"
        assert followed(tokenizer, compiler, grammar, f"{text}{before}{RIGHT}{behind}") == (True, True)
        assert followed(tokenizer, compiler, grammar, f"{text}{before}{WRONG}") == (False, False)
        assert followed(tokenizer, compiler, grammar, f"{text}{before}{RIGHT[:-1]}")[1] is False, (
            "it is not complete"
        )
    unknown = before.replace("weather", "storm")
    assert followed(tokenizer, compiler, grammar, f"{unknown}{RIGHT}{behind}") == (False, False)
    read = AnswerReader(formats, OFFERED, CallIds("any")).read(before + RIGHT + behind, "stop")
    assert [part.arguments for part in read.calls if part.name == "weather"] == [RIGHT], (
        "and it is read as a call"
    )


def enqueued(actor: Tokenizer, submit: Submit) -> Enqueue | Refused:
    sent = [message for _, message in actor.receive("gateway", submit, 0.0)]
    return next(message for message in sent if isinstance(message, Enqueue | Refused))


def asked(calls: dict[str, Any], **params: Any) -> Submit:
    given: Any = SamplingParams(seed=1, **params)
    return Submit(1, None, given, prompt_ids=array("i", [5, 6]).tobytes(), marks=True, calls=calls)


def test_the_grammar_of_calls_is_for_conversations_in_which_nothing_else_says_what_matches() -> None:
    formats = Formats(reasoning="qwen3", tool_calls="hermes", strict=True)
    tokenizer = vocabulary(formats, special=True)
    compiler = compiler_for(tokenizer)
    actor = Tokenizer(tokenizer, "none", 1000, compiler=compiler, formats=formats)
    told = enqueued(actor, asked(OFFERED.calls))
    assert isinstance(told, Enqueue)
    before, behind = ANSWERS["hermes"]
    grammar = Grammar("calls", told.calls, told.before)
    thoughts = f"<think>I could write {WRONG}.</think>\n\n"
    answers = [(f"{thoughts}Well. {before}{RIGHT}{behind}", True), (f"{thoughts}{before}{WRONG}", False)]
    for answer, right in answers:
        assert followed(tokenizer, compiler, grammar, answer)[0] is right, "thoughts are free"
    other = enqueued(actor, asked(OFFERED.calls, bad_words=["cat"]))
    assert isinstance(other, Enqueue)
    assert other.calls == ""
    unheld = Tokenizer(tokenizer, "none", 1000, compiler=compiler, formats=Formats(tool_calls="qwen3_coder"))
    assert enqueued(unheld, asked(OFFERED.calls)).calls == ""  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize(
    ("matches", "answer", "wrong"),
    [
        ({"json_schema": {"enum": [{"sky": "blue"}]}}, '{"sky": "blue"}', '{"sky": "red"}'),
        ({"regex": "[0-9]+"}, "42", "It is 42."),
        ({"choice": ["yes", "no"]}, "yes", "maybe"),
        ({"lark": 'start: "up" | "down"'}, "up", "left"),
    ],
)
def test_what_matches_as_a_whole_may_be_calls_instead(
    name: str, matches: dict[str, Any], answer: str, wrong: str
) -> None:
    """An agent with structured output calls its tools first, and then answers so."""
    formats = Formats(reasoning="qwen3", tool_calls=name, strict=True)
    tokenizer = vocabulary(formats, special=True)
    compiler = compiler_for(tokenizer)
    actor = Tokenizer(tokenizer, "none", 1000, compiler=compiler, formats=formats)
    told = enqueued(actor, asked(OFFERED.calls, **matches))
    assert isinstance(told, Enqueue)
    grammar = Grammar("calls", told.calls, told.before)
    before, behind = ANSWERS[name]
    for thoughts in ("", "<think>Hm.</think>\n\n"):
        assert followed(tokenizer, compiler, grammar, thoughts + answer) == (True, True)
        assert followed(tokenizer, compiler, grammar, f"{thoughts}{before}{RIGHT}{behind}") == (True, True)
        assert followed(tokenizer, compiler, grammar, f"{thoughts}{before}{WRONG}") == (False, False)
        assert followed(tokenizer, compiler, grammar, thoughts + wrong)[1] is False
        assert followed(tokenizer, compiler, grammar, f"{thoughts}Well. {before}")[1] is False


def test_without_grammars_a_strict_function_is_refused() -> None:
    formats = Formats(tool_calls="hermes", strict=True)
    actor = Tokenizer(
        vocabulary(formats, special=True), "none", 1000, compiler="it has none", formats=formats
    )
    told = enqueued(actor, asked(OFFERED.calls))
    assert isinstance(told, Refused)
    assert "it has none" in told.message


def test_a_schema_that_no_call_can_follow_is_refused_by_its_function() -> None:
    formats = Formats(tool_calls="hermes", strict=True)
    tokenizer = vocabulary(formats, special=True)
    actor = Tokenizer(tokenizer, "none", 1000, compiler=compiler_for(tokenizer), formats=formats)
    told = enqueued(actor, asked({"now": {"type": "object"}, "weather": {"type": "strange"}}))
    assert isinstance(told, Refused)
    assert told.param == "calls.weather"
    assert told.message.startswith("calls.weather cannot be followed")
    assert told.message.endswith("leave out strict")


@pytest.mark.parametrize("name", ["hermes", "mistral", "kimi_k2"])
def test_arguments_that_are_held_come_as_they_are_written(name: str) -> None:
    before, _ = ANSWERS[name]
    formats = Formats(tool_calls=name, strict=True)
    offered = offer(TOOLS, None, None)
    offered.held = True
    reader = AnswerReader(formats, offered, CallIds("any"))
    [named] = reader.read(before + RIGHT[0]).calls
    brought = [reader.read(char).calls for char in RIGHT[1:]]
    assert named.name == "weather"
    assert "".join(part.arguments for one in brought for part in one) == RIGHT[1:]
    assert all(len(one) == 1 for one in brought)
    loose = offer(
        [
            Tool(
                type="function",
                function=Function(
                    name="weather", parameters={"oneOf": [CITY, {}], "$defs": CITY["$defs"]}, strict=True
                ),
            )
        ],
        None,
        None,
    )
    loose.held = True
    reader = AnswerReader(formats, loose, CallIds("any"))
    assert reader.read(before + RIGHT[0]).calls == [], (
        "what a grammar follows in part alone is looked at when it is complete"
    )
    assert json.dumps(loose.calls).count("anyOf") == 0
