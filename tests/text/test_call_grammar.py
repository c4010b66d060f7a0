"""Calls that a model chooses to make are held to the schemas of strict functions by a grammar that begins at a mark."""

from __future__ import annotations

import json
from array import array
from typing import Any, NamedTuple

import pytest
import tokenizers
from slipstream.actors.text.grammars.calls import FORMATS, CallMarkup
from slipstream.actors.text.grammars.grammar import GrammarCompiler
from slipstream.actors.text.tokenizer import Tokenizer
from slipstream.actors.text.vocabulary.tokenizer_files import load_tokenizer
from slipstream.protocol.formats.answer import AnswerReader
from slipstream.protocol.formats.formats import TOOL_CALLS, marks_of
from slipstream.protocol.formats.ids import CallIds
from slipstream.protocol.formats.tools import Function, Offer, Tool, offer
from slipstream.protocol.internal import Enqueue, Refused, Submit
from slipstream.protocol.messages import Formats
from slipstream.protocol.sampling import Grammar, SamplingParams
from tokenizers import AddedToken

from slipstream.serving.service import BUNDLED_MODEL

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
    "cohere_command3": (
        '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "now", "parameters": {}},\n'
        '    {"tool_call_id": "1", "tool_name": "weather", "parameters": ',
        "}\n]<|END_ACTION|>",
    ),
}
"""What stands before and behind the arguments of a call, by format: JSON behind a mark, anywhere in an answer."""

HEADER = "<|start|>assistant"


class Written(NamedTuple):
    """Answers in a format that has other arguments, or calls elsewhere."""

    free: list[str]
    """Answers that are no calls."""
    right: list[str]
    """Calls of ``weather`` with the right arguments, among others."""
    wrong: list[str]
    """Up to where a call can no longer be a right one."""


WRITTEN = {
    "qwen3_coder": Written(
        ["", "A < B, and <b>so</b>."],
        [
            "Well: <tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n<parameter=days>\n3"
            "\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=now>\n<parameter=zone>\n[1]\n</parameter>"
            "\n</function>\n</tool_call>",
            "<function=weather>\n<parameter=city>\nRome\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>"
            "\n</tool_call>",
        ],
        [
            "So <tool_call>\n<function=storm",
            "<function=weather>\n<parameter=town",
            "<function=weather>\n<parameter=days",
            "<tool_call>\n<function=weather>\n<parameter=city>\nConstantinople",
            "<function=weather>\n<parameter=city>\nRome\n</parameter>\n<parameter=days>\nthree",
        ],
    ),
    "glm45": Written(
        ["", "A < B, and <b>so</b>."],
        [
            "Well: <tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n<arg_key>days</arg_key>\n"
            "<arg_value>3</arg_value>\n</tool_call>\n<tool_call>now\n</tool_call>",
            "<tool_call>weather<arg_key>city</arg_key><arg_value>Rome</arg_value><arg_key>days</arg_key>"
            "<arg_value>3</arg_value></tool_call>",
        ],
        [
            "So <tool_call>storm",
            "<tool_call>weather\n<arg_key>town",
            "<tool_call>weather\n</tool_call>",
            "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Constantinople",
            "<tool_call>weather<arg_key>city</arg_key><arg_value>Rome</arg_value><arg_key>days</arg_key><arg_value>th",
        ],
    ),
    "llama3_json": Written(
        ["", "Rome {so}", '{"name": "Ann", "parameters": {"town": "Rome"}}', '[1, 2] and {"name": 3}'],
        [
            f'{{"name": "weather", "parameters": {RIGHT}}}',
            f'<|python_tag|>{{"type": "function", "name": "weather", "parameters": {RIGHT}}}',
            f'{{"name": "now", "parameters": {{}}}}; {{"name": "weather", "parameters": {RIGHT}}}',
        ],
        [
            f'{{"name": "weather", "parameters": {WRONG}',
            '{"name": "weather", "arguments": [',
            ' {"name":"now","parameters":3',
        ],
    ),
    "xlam": Written(
        ["", "Rome [so]", '[{"name": "Ann"}]'],
        [f'[{{"name": "now", "arguments": {{}}}}, {{"name": "weather", "arguments": {RIGHT}}}]'],
        [
            f'[{{"name": "weather", "arguments": {WRONG}',
            f'[{{"name": "now", "arguments": {{}}}}, {{"name": "weather", "arguments": {WRONG}',
        ],
    ),
    "pythonic": Written(
        ["", "[sic] so it is", "[storm(town=1)]"],
        [
            '[weather(city="Rome", days=3)]',
            "<|tool_call_start|>[now(), weather(city='Rome', days=3)]<|tool_call_end|>",
        ],
        [
            "[weather(town",
            "[weather()",
            "[weather(days=3",
            "[now(), storm",
            '[weather(city="Constantinople',
            '[weather(city="Rome", days="',
        ],
    ),
    "llama4_pythonic": Written(
        ["", "[sic] so it is"],
        ['<|python_start|>[now(zone={"a": [None, true]}), weather(city="Rome", days=3)]<|python_end|>'],
        ["<|python_start|>[weather(town", "[now(), weather(days"],
    ),
    "openai": Written(
        [
            "<|channel|>final<|message|>It is so.",
            f"<|channel|>analysis<|message|>I know.<|end|>{HEADER}<|channel|>final<|message|>It is so.",
        ],
        [
            f"<|channel|>analysis<|message|>I look.<|end|>{HEADER}<|channel|>commentary to=functions.weather "
            f"<|constrain|>json<|message|>{RIGHT}<|call|>",
            f"<|channel|>analysis<|message|>I look.<|end|>{HEADER} to=functions.weather<|channel|>commentary json"
            f"<|message|>{RIGHT}",
            f"<|channel|>commentary to=now<|message|>{{}}<|call|>{HEADER}<|channel|>commentary to=functions.weather"
            f"<|message|>{RIGHT}<|call|>",
        ],
        [
            "<|channel|>commentary to=functions.storm",
            f"<|channel|>commentary to=functions.weather<|message|>{WRONG}",
            f" to=weather<|channel|>commentary<|message|>{WRONG}",
        ],
    ),
}  # fmt: skip
"""By format."""


def read(formats: Formats, text: str, offered: Offer = OFFERED) -> list[tuple[str, Any]]:
    """The calls of an answer."""
    calls: list[tuple[str, str]] = []
    for part in AnswerReader(formats, offered, CallIds("any")).read(text, "stop").calls:
        if part.name:
            calls.append((part.name, ""))
        calls[-1] = (calls[-1][0], calls[-1][1] + part.arguments)
    return [(name, json.loads(arguments)) for name, arguments in calls]


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


def test_every_format_of_calls_is_held() -> None:
    assert {*ANSWERS, *WRITTEN} == set(TOOL_CALLS) == set(FORMATS)


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


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("name", WRITTEN)
def test_in_other_notations_it_cannot_either(name: str, special: bool) -> None:
    formats = Formats(reasoning="openai_gptoss" if name == "openai" else None, tool_calls=name, strict=True)
    tokenizer = vocabulary(formats, special=special)
    compiler = compiler_for(tokenizer)
    grammar = Grammar("calls", CallMarkup(tokenizer, name).grammar(OFFERED.calls))
    for text in WRITTEN[name].free:
        assert followed(tokenizer, compiler, grammar, text) == (True, True), text
        assert read(formats, text) == []
    for text in WRITTEN[name].right:
        assert followed(tokenizer, compiler, grammar, text) == (True, True), text
        assert ("weather", {"city": "Rome", "days": 3}) in read(formats, text)
    for text in WRITTEN[name].wrong:
        assert followed(tokenizer, compiler, grammar, text) == (False, False), text


@pytest.mark.parametrize("name", TOOL_CALLS)
def test_many_functions_can_be_followed_within_the_limits(name: str) -> None:
    formats = Formats(tool_calls=name, strict=True)
    tokenizer = vocabulary(formats, special=True)
    compiler = compiler_for(tokenizer)
    functions = {f"function_{number}": CITY for number in range(40)} | OFFERED.calls
    grammar = Grammar("calls", CallMarkup(tokenizer, name).grammar(functions))
    if name in ANSWERS:
        before, behind = ANSWERS[name]
        call = f"{before}{RIGHT}{behind}"
    else:
        call = WRITTEN[name].right[0]
    compiler.check(grammar)
    assert followed(tokenizer, compiler, grammar, call) == (True, True)


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
    unheld = Tokenizer(tokenizer, "none", 1000, compiler=compiler, formats=Formats())
    assert enqueued(unheld, asked(OFFERED.calls)).calls == ""  # type: ignore[union-attr]


@pytest.mark.parametrize("name", TOOL_CALLS)
@pytest.mark.parametrize(
    ("matches", "answer", "wrong"),
    [
        ({"json_schema": {"enum": [{"sky": "blue"}]}}, '{"sky": "blue"}', '{"sky": "red"}'),
        ({"regex": "[0-9]+"}, "42", "It is 42."),
        ({"choice": ["yes", "no"]}, "yes", "maybe"),
        ({"lark": 'start: "up" | "down"'}, "up", "left"),
        ({"json_schema": {"type": "array", "items": {"type": "integer"}}}, "[1, 2]", '["now", 1]'),
        (
            {"json_schema": {"type": "object", "properties": {"name": {}}, "additionalProperties": False}},
            '{"name": "weather"}',
            '{"nome": "Ann"}',
        ),
    ],
)
def test_what_matches_as_a_whole_may_be_calls_instead(
    name: str, matches: dict[str, Any], answer: str, wrong: str
) -> None:
    """An agent with structured output calls its tools first, and then answers so."""
    channels = name == "openai"
    formats = Formats(reasoning="openai_gptoss" if channels else "qwen3", tool_calls=name, strict=True)
    tokenizer = vocabulary(formats, special=True)
    compiler = compiler_for(tokenizer)
    actor = Tokenizer(tokenizer, "none", 1000, compiler=compiler, formats=formats)
    told = enqueued(actor, asked(OFFERED.calls, **matches))
    assert isinstance(told, Enqueue)
    grammar = Grammar("calls", told.calls, told.before)
    if name in ANSWERS:
        before, behind = ANSWERS[name]
        calls, bad = [f"{before}{RIGHT}{behind}"], [f"{before}{WRONG}", f"Well. {before}"]
    else:
        calls = [text.removeprefix("Well: ") for text in WRITTEN[name].right]
        bad = WRITTEN[name].wrong
    said = "<|channel|>final<|message|>" if channels else ""
    for thoughts in (
        "",
        f"<|channel|>analysis<|message|>Hm.<|end|>{HEADER}" if channels else "<think>Hm.</think>\n\n",
    ):
        assert followed(tokenizer, compiler, grammar, thoughts + said + answer) == (True, True)
        for call in calls:
            assert followed(tokenizer, compiler, grammar, thoughts + call) == (True, True), call
        for call in bad:
            assert followed(tokenizer, compiler, grammar, thoughts + call) == (False, False), call
        assert followed(tokenizer, compiler, grammar, thoughts + said + wrong)[1] is False


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


PATTERNED = {
    "type": "object",
    "properties": {"city": {"type": "string", "pattern": "^[A-Z][a-z]+$"}},
    "patternProperties": {"^x-": {"type": "integer", "minimum": 0, "maximum": 9}},
    "additionalProperties": False,
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_call_is_held_to_regular_expressions_where_a_grammar_holds_all_of_it(name: str) -> None:
    formats = Formats(tool_calls=name, strict=True)
    tokenizer = vocabulary(formats, special=True)
    compiler = compiler_for(tokenizer)
    offered = offer(
        [
            Tool(type="function", function=Function(name="weather", parameters=PATTERNED, strict=True)),
            Tool(type="function", function=Function(name="now")),
        ],
        None,
        None,
    )
    told = enqueued(
        Tokenizer(tokenizer, "none", 1000, compiler=compiler, formats=formats), asked(offered.calls)
    )
    assert isinstance(told, Enqueue)
    before, behind = ANSWERS[name]
    grammar = Grammar("calls", told.calls)
    for right in ('{"city": "Rome"}', '{"city": "Rome", "x-a": 3}'):
        assert followed(tokenizer, compiler, grammar, f"{before}{right}{behind}") == (True, True)
        offered.enforced = True
        assert ("weather", json.loads(right)) in read(formats, f"{before}{right}{behind}", offered)
        offered.enforced = False  # nobody knows whether they are valid
        assert "weather" not in dict(read(formats, f"{before}{right}{behind}", offered))
    for wrong in ('{"city": "rome"', '{"city": "R2"', '{"x-a": 12', '{"y": 3'):
        assert followed(tokenizer, compiler, grammar, f"{before}{wrong}") == (False, False)


@pytest.mark.parametrize("name", [*(name for name in WRITTEN if name != "openai"), ""])
def test_regular_expressions_are_refused_where_calls_are_not_held_to_them(name: str) -> None:
    formats = Formats(tool_calls=name or None, strict=bool(name))
    tokenizer = vocabulary(formats, special=True)
    actor = Tokenizer(tokenizer, "none", 1000, compiler=compiler_for(tokenizer), formats=formats)
    told = enqueued(actor, asked({"f": PATTERNED}))
    assert isinstance(told, Refused)
    assert told.param == "calls.f"
    assert "has 'pattern', which calls in the format of this model are not held to" in told.message


def test_regular_expressions_are_refused_beside_what_leaves_calls_free() -> None:
    formats = Formats(tool_calls="hermes", strict=True)
    tokenizer = vocabulary(formats, special=True)
    actor = Tokenizer(tokenizer, "none", 1000, compiler=compiler_for(tokenizer), formats=formats)
    told = enqueued(actor, asked({"f": PATTERNED}, bad_words=["x"]))
    assert isinstance(told, Refused)
    assert "has 'pattern', which calls beside bad_words are not held to" in told.message


def test_an_answer_that_matches_a_schema_matches_its_regular_expressions() -> None:
    tokenizer = vocabulary(Formats(), special=False)
    compiler = compiler_for(tokenizer)
    grammar = Grammar("json_schema", json.dumps(PATTERNED))
    for right in ('{"city": "Rome"}', '{"city": "Rome", "x-a": 3}'):
        assert followed(tokenizer, compiler, grammar, right) == (True, True)
    for wrong in ('{"city": "rome"', '{"x-a": 12', '{"y": 3'):
        assert followed(tokenizer, compiler, grammar, wrong) == (False, False)


VALUES: list[tuple[Any, list[tuple[str, Any]], list[str]]] = [
    ({"type": "string", "minLength": 2, "maxLength": 3}, [("ab", "ab"), ("12", "12"), ("é\nß", "é\nß")], ["a", "abcd"]),
    ({"enum": ["a b", "<c>", 3, None]}, [("a b", "a b"), ("<c>", "<c>"), ("3", 3), ("null", None)], ["a", "d", "4"]),
    ({"type": ["string", "null"], "maxLength": 2}, [("ok", "ok"), ("null", None)], ["nul"]),
    ({"anyOf": [{"const": "on"}, {"type": "boolean"}]}, [("on", "on"), ("true", True)], ["off", "True"]),
    ({"anyOf": [{"type": "integer", "minimum": 3}, {"type": "null"}]}, [("3", 3), ("null", None)], ["2", "x"]),
    ({"type": "array", "items": {"$ref": "#/$defs/n"}, "minItems": 1}, [("[1, 2]", [1, 2])], ["[]", '["a"]']),
    ({"$ref": "#/$defs/s"}, [("yes", "yes")], ["no"]),
    ({}, [("any < text", "any < text"), ('{"a": [1]}', {"a": [1]})], []),
    ({"type": "object", "required": ["a"]}, [('{"a": 1.5}', {"a": 1.5})], ["{}"]),
]  # fmt: skip
"""A schema; texts that are read as a value of it, with the value; and texts that none begins with."""

TAGGED = {
    "qwen3_coder": ("<function=f>\n<parameter=x/y>\n", "\n</parameter>\n</function>\n</tool_call>"),
    "glm45": ("<tool_call>f\n<arg_key>x/y</arg_key>\n<arg_value>", "</arg_value>\n</tool_call>"),
}

DEFINED = {"n": {"type": "integer"}, "s": {"type": "string", "enum": ["yes"]}}


def strict(name: str, schema: Any) -> Offer:
    """One function of one argument, ``x/y``, or whatever ``name`` is."""
    parameters = {
        "type": "object",
        "properties": {name: schema},
        "required": [name],
        "additionalProperties": False,
        "$defs": DEFINED,
    }
    return offer(
        [Tool(type="function", function=Function(name="f", parameters=parameters, strict=True))], None, None
    )


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("name", TAGGED)
@pytest.mark.parametrize(("schema", "right", "wrong"), VALUES)
def test_a_value_between_tags_is_a_text_or_json_by_its_type(
    name: str, special: bool, schema: Any, right: list[tuple[str, Any]], wrong: list[str]
) -> None:
    formats = Formats(tool_calls=name, strict=True)
    tokenizer = vocabulary(formats, special=special)
    compiler = compiler_for(tokenizer)
    offered = strict("x/y", schema)
    grammar = Grammar("calls", CallMarkup(tokenizer, name).grammar(offered.calls))
    before, behind = TAGGED[name]
    for text, value in right:
        answer = f"{before}{text}{behind}"
        assert followed(tokenizer, compiler, grammar, answer) == (True, True), text
        assert read(formats, answer, offered) == [("f", {"x/y": value})]
    for text in wrong:
        assert followed(tokenizer, compiler, grammar, f"{before}{text}{behind}") == (False, False), text


NUMBERS = {"type": "array", "items": {"$ref": "#/$defs/n"}, "minItems": 1, "maxItems": 2}
PARTS = {
    "type": "object",
    "properties": {"a": {"type": "number"}, "b": {"$ref": "#/$defs/s"}},
    "additionalProperties": False,
}
PYTHON_VALUES: list[tuple[Any, list[tuple[str, Any]], list[str]]] = [
    (
        {"type": "string", "minLength": 2, "maxLength": 3},
        [('"ab"', "ab"), (r"'\'\n'", "'\n")],
        ['"a"', '"abcd"', "ab"],
    ),
    (
        {"enum": ["it's", 3, None]},
        [('"it\'s"', "it's"), ("3", 3), ("None", None), ("null", None)],
        ["4", '"its"'],
    ),
    ({"type": ["boolean", "null"]}, [("True", True), ("false", False), ("None", None)], ['"True"', "1"]),
    ({"type": "integer", "minimum": 3}, [("3", 3), ("40", 40)], ["2", "3.5", '"3"']),
    (NUMBERS, [("[1, 2]", [1, 2]), ("[1]", [1])], ["[]", "['a']", "[1, 2, 3]"]),
    (
        {"type": "array", "items": {"type": "string"}},
        [("[]", []), ("['a',\n    'b']", ["a", "b"])],
        ["[1]", "('a',)"],
    ),
    (
        PARTS,
        [("{'a': 1.5}", {"a": 1.5}), ("{'a': 1, 'b': 'yes'}", {"a": 1, "b": "yes"}), ("{}", {})],
        ["{'a': '1'", "{'c'", "{'b': 'yes', 'a'"],
    ),
    (
        {"anyOf": [{"const": "on"}, {"type": "array"}]},
        [("'on'", "on"), ("[1, {'a': [None, true]}]", [1, {"a": [None, True]}])],
        ["'off'", "1"],
    ),
    ({}, [("{'a': -1.5e3}", {"a": -1500.0}), ("'x'", "x")], ["open('x')", "x"]),
]


@pytest.mark.parametrize(("schema", "right", "wrong"), PYTHON_VALUES)
def test_a_value_in_python_is_held_to_its_schema(
    schema: Any, right: list[tuple[str, Any]], wrong: list[str]
) -> None:
    formats = Formats(tool_calls="pythonic", strict=True)
    tokenizer = vocabulary(formats, special=False)
    compiler = compiler_for(tokenizer)
    offered = strict("x", schema)
    grammar = Grammar("calls", CallMarkup(tokenizer, "pythonic").grammar(offered.calls))
    for text, value in right:
        assert followed(tokenizer, compiler, grammar, f"[f(x={text})]") == (True, True), text
        assert read(formats, f"[f(x={text})]", offered) == [("f", {"x": value})]
    for text in wrong:
        assert followed(tokenizer, compiler, grammar, f"[f(x={text})]") == (False, False), text


def test_what_refers_to_itself_can_be_written_in_python() -> None:
    tree = {"type": "object", "properties": {"of": {"type": "array", "items": {"$ref": "#/properties/x"}}}}
    formats = Formats(tool_calls="pythonic", strict=True)
    tokenizer = vocabulary(formats, special=False)
    compiler = compiler_for(tokenizer)
    grammar = Grammar("calls", CallMarkup(tokenizer, "pythonic").grammar(strict("x", tree).calls))
    assert followed(tokenizer, compiler, grammar, "[f(x={'of': [{'of': []}]})]") == (True, True)
    assert followed(tokenizer, compiler, grammar, "[f(x={'of': [{'of': {}]})]") == (False, False)


def test_what_python_has_no_name_for_is_refused_where_calls_are_written_so() -> None:
    formats = Formats(tool_calls="pythonic", strict=True)
    tokenizer = vocabulary(formats, special=False)
    actor = Tokenizer(tokenizer, "none", 1000, compiler=compiler_for(tokenizer), formats=formats)
    told = enqueued(actor, asked(strict("from", {"type": "string"}).calls))
    assert isinstance(told, Refused)
    assert told.param == "calls.f"
    assert "no names for f or for what they require" in told.message
    assert told.message.endswith("leave out strict")


@pytest.mark.parametrize("name", [name for name in WRITTEN if name != "openai"])
def test_what_is_read_when_it_is_complete_is_held_against_the_schema_too(name: str) -> None:
    """So that a grammar of these formats may allow more than a schema does."""
    formats = Formats(tool_calls=name, strict=True)
    [text] = [text for text in WRITTEN[name].right if "3" in text][-1:]
    offered = offer(TOOLS, None, None)
    offered.enforced = True
    assert ("weather", {"city": "Rome", "days": 3}) in read(formats, text, offered)
    assert "weather" not in dict(read(formats, text.replace("Rome", "Constantinople"), offered))


@pytest.mark.parametrize("name", ["hermes", "mistral", "kimi_k2", "cohere_command3", "openai"])
def test_arguments_that_are_held_come_as_they_are_written(name: str) -> None:
    before = ANSWERS[name][0] if name in ANSWERS else WRITTEN[name].right[-1].partition(RIGHT)[0]
    formats = Formats(tool_calls=name, strict=True)
    offered = offer(TOOLS, None, None)
    offered.enforced = True
    reader = AnswerReader(formats, offered, CallIds("any"))
    named = reader.read(before + RIGHT[0]).calls[-1]
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
    loose.enforced = True
    reader = AnswerReader(formats, loose, CallIds("any"))
    assert reader.read(before + RIGHT[0]).calls == [], (
        "what a grammar follows in part alone is looked at when it is complete"
    )
    assert json.dumps(loose.calls).count("anyOf") == 0
