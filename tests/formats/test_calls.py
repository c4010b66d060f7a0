"""Calls of tools, read from a model's text however it is cut."""

from __future__ import annotations

import itertools
import json
import re
import time
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slipstream.actors.text.grammars.grammar import GrammarCompiler
from slipstream.actors.text.vocabulary.tokenizer_files import load_tokenizer
from slipstream.protocol.errors import InvalidRequest
from slipstream.protocol.formats.answer import AnswerReader, calls_reader
from slipstream.protocol.formats.calls import CallReader
from slipstream.protocol.formats.formats import Formats
from slipstream.protocol.formats.ids import CallIds
from slipstream.protocol.formats.moved_schemas import moved
from slipstream.protocol.formats.reader import Parsed
from slipstream.protocol.formats.schemas import Schema
from slipstream.protocol.formats.tools import Function, FunctionName, NamedTool, Offer, Tool, offer, offer_of
from slipstream.protocol.sampling import Grammar

from slipstream.serving.service import BUNDLED_MODEL

CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = [
    Tool(type="function", function=Function(name="weather", parameters=CITY | {"required": ["city"]})),
    Tool(type="function", function=Function(name="now")),
]


def read(
    *parts: str, offered: Offer | None = None, at_limit: bool = False, formats: Formats | None = None
) -> tuple[str, list[tuple[str, object]]]:
    """The text and the calls that parts of an answer give together."""
    text, calls = read_raw(*parts, offered=offered, at_limit=at_limit, formats=formats)
    return text, [(name, json.loads(arguments)) for name, arguments in calls]


def read_raw(
    *parts: str, offered: Offer | None = None, at_limit: bool = False, formats: Formats | None = None
) -> tuple[str, list[tuple[str, str]]]:
    """The same with the arguments as they came."""
    reader = calls_reader(formats or Formats(), offered or offer(TOOLS, None, None), CallIds("any"))
    said = [reader.take() for part in parts if reader.feed(part) is None]
    reader.end(at_limit=at_limit)
    said.append(reader.take())
    found = [part for one in said for part in one.calls]
    assert {part.index for part in found} == set(range(reader.calls))
    assert all((part.id != "") == (part.name != "") for part in found)
    names = [part.name for part in found if part.name]
    arguments = ["".join(p.arguments for p in found if p.index == index) for index in range(reader.calls)]
    return "".join(one.text for one in said), list(zip(names, arguments, strict=True))


MARKS_INSIDE = '<tool_call> a </tool_call> "b\\ </function> <function=now>'
"""What a user may well ask an agent to write into a file."""
TRICKY = json.dumps(MARKS_INSIDE)[1:-1]
WEATHER = ("weather", {"city": "Rome"})
NOW = ("now", {})

ANSWERS = {
    "text": ("It is sunny.", "It is sunny.", []),
    "Hermes": (
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>',
        "",
        [WEATHER],
    ),
    "after text": (
        'Let me see. <tool_call>{"name": "now", "arguments": {}}</tool_call>',
        "Let me see. ",
        [NOW],
    ),
    "two of them": (
        '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>\n'
        '<tool_call>{"name": "now"}</tool_call>\n',
        "",
        [WEATHER, NOW],
    ),
    "Qwen3-Coder": (
        "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n</function>\n</tool_call>",
        "",
        [WEATHER],
    ),
    "Llama": ('{"name": "weather", "parameters": {"city": "Rome"}}', "", [WEATHER]),
    "Llama, two": (
        '{"name": "now"}; {"name": "weather", "parameters": {"city": "Rome"}}',
        "",
        [NOW, WEATHER],
    ),
    "Llama with its mark": ('<|python_tag|>{"name": "now", "parameters": {}}', "", [NOW]),
    "Mistral": ('[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Rome"}}]', "", [WEATHER]),
    "arguments as a text": ('{"name": "weather", "arguments": "{\\"city\\": \\"Rome\\"}"}', "", [WEATHER]),
    "unknown function": (
        '<tool_call>{"name": "rm"}</tool_call>',
        '<tool_call>{"name": "rm"}</tool_call>',
        [],
    ),
    "broken": ('<tool_call>{"name": </tool_call> x', '<tool_call>{"name": </tool_call> x', []),
    "never closed": ('<tool_call>{"name": "now"', '<tool_call>{"name": "now"', []),
    "text between and after": (
        '<tool_call>{"name": "now"}</tool_call>\n And <tool_call>{"name": "now"}</tool_call>\nBye ',
        "\n And \nBye ",
        [NOW, NOW],
    ),
    "complete, but never closed": ('<tool_call>{"name": "now"}\n', "", [NOW]),
    "JSON that is no call": ('{"answer": 42}', '{"answer": 42}', []),
    "one of two is no call": ('[{"name": "now"}, 5]', '[{"name": "now"}, 5]', []),
    "only a beginning of a mark": ("a <tool_ca", "a <tool_ca", []),
    "a bracket at first": ("[sic] it is so", "[sic] it is so", []),
    "the closing mark in an argument": (
        f'<tool_call>{{"name": "weather", "arguments": {{"city": "{TRICKY}"}}}}</tool_call> x',
        " x",
        [("weather", {"city": MARKS_INSIDE})],
    ),
    "the closing mark as an escape": (
        '<tool_call>{"name": "weather", "arguments": {"city": "\\\\"}}</tool_call>"',
        '"',
        [("weather", {"city": "\\"})],
    ),
    "the closing mark in a value without quotes": (
        f"<tool_call>\n<function=weather>\n<parameter=city>\n{MARKS_INSIDE}\n</parameter>\n</function>\n</tool_call>",
        "",
        [("weather", {"city": MARKS_INSIDE})],
    ),
    "quotes that are never closed": (
        '<tool_call>{"name": "no</tool_call> x',
        '<tool_call>{"name": "no</tool_call> x',
        [],
    ),
    "bare": ("So: <function=weather><parameter=city>Rome</parameter></function>", "So: ", [WEATHER]),
    "bare, two of them": (
        f"<function=weather>\n<parameter=city>\n{MARKS_INSIDE}\n</parameter>\n</function>\n</tool_call>\n"
        "<function=now>\n</function> Bye",
        " Bye",
        [("weather", {"city": MARKS_INSIDE}), NOW],
    ),
    "bare, of an unknown function": ("<function=rm></function> x", "<function=rm></function> x", []),
    "bare, never closed": ("<function=now>", "<function=now>", []),
    "a mark that was none": ("a <functio <function> b", "a <functio <function> b", []),
    "a parameter that is never closed": (
        "<tool_call><function=now><parameter=x>1</function></tool_call> x",
        " x",
        [NOW],
    ),
    "marks of an end in a value": (
        "<tool_call><function=weather><parameter=city>a</function>\n</tool_call> <function=now>b</parameter></function>"
        "</tool_call> Bye",
        " Bye",
        [("weather", {"city": "a</function>\n</tool_call> <function=now>b"})],
    ),
    "a parameter that is never closed, and another call": (
        "<tool_call><function=now><parameter=x>1</function></tool_call>\n"
        "<tool_call><function=weather><parameter=city>Rome</parameter></function></tool_call>",
        "",
        [NOW, WEATHER],
    ),
    "empty": ("", "", []),
    "space": (" \n", " \n", []),
    "deep": ("[" * 100_000, "[" * 100_000, []),
}


@pytest.mark.parametrize(("answer", "text", "calls"), ANSWERS.values(), ids=ANSWERS.keys())
def test_an_answer_is_parted_into_text_and_calls(
    answer: str, text: str, calls: list[tuple[str, object]]
) -> None:
    assert read(answer) == (text, calls)


@settings(deadline=None)
@given(st.sampled_from([name for name in ANSWERS if name != "deep"]), st.data())
def test_however_an_answer_is_cut_it_is_read_the_same(name: str, data: st.DataObject) -> None:
    answer, text, calls = ANSWERS[name]
    cuts = sorted(data.draw(st.sets(st.integers(0, len(answer)), max_size=8)))
    bounds = [0, *cuts, len(answer)]
    parts = [answer[start:end] for start, end in itertools.pairwise(bounds)]
    assert read(*parts) == (text, calls)


@pytest.mark.parametrize("name", [name for name in ANSWERS if name != "deep"])
def test_each_character_may_be_a_piece_of_its_own(name: str) -> None:
    answer, text, calls = ANSWERS[name]
    for place in range(len(answer)):
        assert read(answer[:place], answer[place], answer[place + 1 :]) == (text, calls), place
    for size in (1, 2, 3, 5):
        assert read(*[answer[start : start + size] for start in range(0, len(answer), size)]) == (text, calls)


@settings(deadline=None)
@given(st.text('<>/tool_cal{}[]" :,nowame\n', max_size=60), st.integers(1, 7))
def test_nothing_of_a_text_without_calls_is_lost(answer: str, size: int) -> None:
    text, calls = read(*[answer[start : start + size] for start in range(0, len(answer), size)])
    if not calls:
        assert text == answer


def test_text_is_told_as_soon_as_it_cannot_be_a_call() -> None:
    reader = CallReader(offer(TOOLS, None, None), CallIds("any"))
    for part, told in (("Let ", "Let "), ("me <tool", "me "), ("box", "<toolbox")):
        reader.feed(part)
        assert reader.take() == Parsed(text=told)


def test_a_forced_call_becomes_a_schema() -> None:
    named = NamedTool(type="function", function=Function(name="weather"))  # type: ignore[arg-type]
    made = offer(TOOLS, named, None)
    assert made.forced == "weather"
    assert made.schema == CITY | {"required": ["city"]}
    required = offer(TOOLS, "required", False).schema
    assert required is not None
    assert (required["minItems"], required["maxItems"]) == (1, 1)
    names = [call["properties"]["name"]["const"] for call in required["items"]["anyOf"]]
    assert names == ["weather", "now"]


def allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def test_of_the_tools_that_the_model_is_shown_only_the_allowed_ones_are_called() -> None:
    plain = msgspec.to_builtins(TOOLS)
    some = offer_of(plain, allowed("auto", "now"), None)
    assert some.tools == offer(TOOLS, None, None).tools
    assert [*some.functions] == ["now"]
    assert some.schema is None
    must = offer_of(plain, allowed("required", "now"), None).schema
    assert must is not None
    assert [call["properties"]["name"]["const"] for call in must["items"]["anyOf"]] == ["now"]


@pytest.mark.parametrize(
    ("choice", "named"),
    [
        (allowed("auto", "rm"), "'rm', which is not in tools"),
        (allowed("auto"), "Expected `array` of length >= 1"),
        (allowed("none", "now"), """Expected `"auto" | "required"`: the value is 'none'"""),
        ({"type": "allowed_tools"}, "of type allowed_tools has allowed_tools and nothing else"),
        (
            {"type": "function"} | {"allowed_tools": allowed("auto", "now")["allowed_tools"]},
            "of type function has function",
        ),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused(choice: Any, named: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(named)) as refused:
        offer_of(msgspec.to_builtins(TOOLS), choice, None)
    assert (refused.value.param or "").startswith("tool_choice")


def function(parameters: dict[str, Any], strict: bool | None = None) -> Tool:
    return Tool(type="function", function=Function(name="f", parameters=parameters, strict=strict))


def strictly(parameters: dict[str, Any]) -> list[Tool]:
    return [function(parameters, strict=True)]


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


def test_what_cannot_be_kept_is_refused() -> None:
    unknown = NamedTool(type="function", function=Function(name="rm"))  # type: ignore[arg-type]
    strict = strictly({"type": "object", "propertyNames": {"maxLength": 1}})
    pattern = {"properties": {"a": {"pattern": "^b", "oneOf": [{"type": "string"}]}}}
    long = {"properties": {"a": {"pattern": "^b"}, "b": {"enum": ["x" * 40_000]}}}
    for tools, choice, parallel, message in (
        (None, "auto", None, "of no use without tools"),
        (TOOLS, unknown, None, "'rm', which is not in tools"),
        (strict, None, None, "has 'propertyNames'"),
        (strictly(pattern), None, None, "has 'pattern' beside allOf"),
        (strictly(long), None, None, "has 'pattern', with more than 32768 bytes"),
        (strictly({"required": 5}), None, None, "has required=5"),
        (strictly({"properties": {"a": {"type": ["string", 5]}}}), None, None, "no JSON Schema"),
        (strictly(deep(40)), "auto", None, "deeper than 32"),
        ([function(deep(40))], "required", None, "deeper than 32"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            offer(tools, choice, parallel)  # type: ignore[arg-type]


def test_with_choice_none_the_model_is_told_of_no_tool() -> None:
    assert offer(TOOLS, "none", None).tools is None


# --- calls that are cut, more than one ----------------------------------------------------------

ROME = '{"name": "weather", "arguments": {"city": "Rome"}}'

CUT = {
    "Hermes": ('<tool_call>{"name": "wea', "", []),
    "Hermes, the second": (f'<tool_call>{ROME}</tool_call><tool_call>{{"name": "n', "", [WEATHER]),
    "text before": ('So: <tool_call>{"name": "wea', "So: ", []),
    "a list, the second": (f'[{ROME}, {{"name": "n', "", [WEATHER]),
    "a list, between": (f"[{ROME}, ", "", [WEATHER]),
    "in a row": (f'{ROME}; {{"name": "n', "", [WEATHER]),
    "JSON that was no call": ('{"answer": [4', '{"answer": [4', []),
    "a list that was no call": ('[{"answer": 4}, {"ans', '[{"answer": 4}, {"ans', []),
}


@pytest.mark.parametrize(("answer", "text", "calls"), CUT.values(), ids=CUT.keys())
def test_of_calls_that_are_cut_the_complete_ones_are_calls_and_no_markup_is_text(
    answer: str, text: str, calls: list[tuple[str, object]]
) -> None:
    assert read(answer, at_limit=True) == (text, calls)
    assert read(*answer, at_limit=True) == (text, calls)


CUT_ARGUMENTS = {
    "hermes": '<tool_call>{"name": "f", "arguments": ',
    "llama3_json": '{"name": "f", "parameters": ',
    "xlam": '[{"name": "f", "arguments": ',
    "mistral": "[TOOL_CALLS]f[ARGS]",
    "granite": '<|tool_call|>[{"name": "f", "arguments": ',
    "kimi_k2": "<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>",
    "openai": "<|channel|>commentary to=functions.f<|message|>",
}


@pytest.mark.parametrize(("name", "strict"), [*itertools.product(CUT_ARGUMENTS, (False, True))])
def test_the_arguments_of_a_call_that_is_cut_are_sent_as_far_as_they_came(name: str, strict: bool) -> None:
    schema: dict[str, Any] = {"properties": {"city": {"type": "string"}}}
    offered = offer(strictly(schema) if strict else [function(schema)], None, None)
    for arguments in ("{", '{"city": "Ro', '{"city": "Rome"', '{"city": "Rome"}'):
        whole = CUT_ARGUMENTS[name] + arguments
        for parts in ((whole,), [*whole]):
            reader = AnswerReader(Formats(tool_calls=name), offered, CallIds("any"))
            told = [reader.read(part) for part in parts] + [reader.read("", "length")]
            calls = [call for one in told for call in one.calls]
            assert "".join(call.name for call in calls) == "f"
            assert "".join(call.arguments for call in calls) == arguments
            assert "".join(one.text for one in told) == ""


@pytest.mark.parametrize("name", ["llama3_json", "xlam"])
def test_the_arguments_of_a_call_that_is_cut_behind_them_are_those_alone(name: str) -> None:
    reader = AnswerReader(Formats(tool_calls=name), offer([function({})], None, None), CallIds("any"))
    told = [reader.read(CUT_ARGUMENTS[name] + '{"a": {"b": 1}}, "type": "func'), reader.read("", "length")]
    assert "".join(call.arguments for one in told for call in one.calls) == '{"a": {"b": 1}}'


def test_a_pattern_in_a_keyword_that_asks_for_nothing_is_none() -> None:
    schema = {
        "properties": {"a": {"type": "string", "example": {"pattern": "^b"}, "x-ui": {"pattern": "^c"}}}
    }
    assert Schema(schema, "x").check().fits({"a": "d"})
    offer(strictly({**schema, "oneOf": [{}]}), None, None)


@pytest.mark.parametrize("strict", [False, True])
def test_a_call_whose_value_between_tags_is_cut_is_none(strict: bool) -> None:
    """It was handed over without the value, and looked complete."""
    schema: dict[str, Any] = {"properties": {"city": {"type": "string"}}}
    offered = offer(strictly(schema) if strict else [function(schema)], None, None)
    for cut in ("<arg_key>ci", "<arg_key>city</arg_key>", "<arg_key>city</arg_key><arg_value>Ro"):
        assert read("<tool_call>f" + cut, offered=offered, at_limit=True) == ("", [])
        assert read("<tool_call>f" + cut, offered=offered) == ("<tool_call>f" + cut, [])


@pytest.mark.parametrize("length", range(1, len(f"[ {ROME}, {ROME}]")))
def test_an_answer_that_was_made_to_be_calls_is_never_text(length: int) -> None:
    required = offer(TOOLS, "required", None)
    answer = f"[ {ROME}, {ROME}]"[:length]
    text, calls = read_raw(answer, offered=required, at_limit=True)
    assert (text, calls) == read_raw(*answer, offered=required, at_limit=True)
    whole = ('{"city": "Rome"}', '{"city": "Rome"}')
    arguments = [part for _, part in calls]
    assert text == ""
    assert all(name == "weather" for name, _ in calls)
    assert arguments[:-1] == list(whole[: len(arguments)][:-1])
    assert all(part and '{"city": "Rome"}'.startswith(part) for part in arguments)
    heads = (ROME.index("{", 1), 2 + len(ROME) + ROME.index("{", 1))
    assert len(calls) == sum(length > 2 + head for head in heads)


@pytest.mark.parametrize(
    "answer", [f"<tool_call>{ROME}</tool_call>" * 3, f"[{ROME}, {ROME}]", f"{ROME};{ROME}"]
)
def test_without_parallel_calls_the_first_is_the_only_one(answer: str) -> None:
    assert read(answer, offered=offer(TOOLS, "auto", False)) == ("", [WEATHER])
    assert read(*answer, offered=offer(TOOLS, None, False)) == ("", [WEATHER])
    assert len(read(answer, offered=offer(TOOLS, None, True))[1]) > 1


def test_reading_a_call_takes_time_in_proportion_to_its_length() -> None:
    """Arguments without ends were searched for an end again and again: 13 s for 100 kB."""
    unended = "<tool_call><function=weather>" + "<parameter=a>" * 100_000 + "</function></tool_call>"
    begun = time.process_time()
    text, calls = read(unended)
    assert time.process_time() - begun < 1
    assert (text, calls) == ("", [("weather", {})])


# --- arguments as the schema has them -----------------------------------------------------------

TYPED: dict[str, Any] = {
    "type": "object",
    "properties": {
        "path": {"type": "string"},
        "content": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "count": {"type": "integer"},
        "size": {"$ref": "#/$defs/Size"},
        "kind": {"enum": ["1", "2"]},
    },
    "$defs": {"Size": {"type": ["number", "string"]}},
}


@pytest.mark.parametrize(
    ("name", "written", "value"),
    [
        ("path", "12345", "12345"),
        ("path", "null", "null"),
        ("content", '{"a": 1}', '{"a": 1}'),
        ("content", "null", None),
        ("content", "text", "text"),
        ("count", "5", 5),
        ("count", "five", "five"),
        ("size", "1.5", 1.5),
        ("size", "true", "true"),
        ("kind", "1", "1"),
        ("unknown", "[1]", [1]),
        ("unknown", "word", "word"),
    ],
)
def test_a_value_without_quotes_has_the_type_that_the_function_takes(
    name: str, written: str, value: object
) -> None:
    answer = f"<tool_call><function=f><parameter={name}>\n{written}\n</parameter></function></tool_call>"
    assert read(answer, offered=offer([function(TYPED)], None, None)) == ("", [("f", {name: value})])


# --- strict functions that the model chooses to call --------------------------------------------

NODE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "value": {"type": "integer", "minimum": 0},
        "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
    },
    "required": ["value", "next"],
    "additionalProperties": False,
}


def called(arguments: object) -> str:
    return f"<tool_call>{json.dumps({'name': 'f', 'arguments': arguments})}</tool_call>"


@pytest.mark.parametrize(
    ("arguments", "valid"),
    [
        ({"value": 1, "next": None}, True),
        ({"value": 1.0, "next": {"value": 2, "next": None}}, True),
        ({"value": -1, "next": None}, False),
        ({"value": True, "next": None}, False),
        ({"value": 1.5, "next": None}, False),
        ({"value": 1, "next": {"value": 2}}, False),
        ({"value": 1, "next": None, "more": 1}, False),
        ({"value": 1}, False),
        ([], False),
    ],
)
def test_a_call_of_a_strict_function_is_one_if_its_arguments_are_valid(arguments: Any, valid: bool) -> None:
    answer = called(arguments)
    text, calls = read(answer, offered=offer(strictly(NODE), "auto", None))
    assert (text, calls) == (("", [("f", arguments)]) if valid else (answer, []))
    assert bool(jsonschema.Draft202012Validator(NODE).is_valid(arguments)) == valid
    _, calls = read(answer, offered=offer([function(NODE)], "auto", None))
    assert len(calls) == (arguments != [])


SCHEMAS = st.recursive(
    st.sampled_from(
        [
            {},
            True,
            False,
            {"type": "string", "maxLength": 1},
            {"type": ["integer", "null"]},
            {"type": "number", "minimum": 1, "exclusiveMaximum": 3},
            {"multipleOf": 0.5},
            {"const": 1},
            {"const": True},
            {"enum": ["a", None, [1]]},
            {"$ref": "#/$defs/A"},
        ]
    ),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda each: {"anyOf": each}),
        st.lists(inner, min_size=1, max_size=3).map(lambda each: {"oneOf": each}),
        st.lists(inner, min_size=1, max_size=2).map(lambda each: {"allOf": each}),
        st.tuples(inner, inner).map(
            lambda pair: {"properties": {"a": pair[0]}, "additionalProperties": pair[1]}
        ),
        st.tuples(inner, inner).map(lambda pair: {"prefixItems": [pair[0]], "items": pair[1], "maxItems": 2}),
        inner.map(lambda each: {"type": "object", "required": ["a"], "properties": {"a": each}}),
    ),
    max_leaves=6,
)
PLAIN = st.recursive(
    st.sampled_from([None, True, 0, 1, 1.0, 2.5, "a", "ab"]),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("ab"), inner, max_size=2)
    ),
    max_leaves=5,
)


@settings(max_examples=400)
@given(SCHEMAS, PLAIN)
def test_what_fits_is_what_a_validator_says(schema: Any, value: Any) -> None:
    root = {"$defs": {"A": {"type": "string"}}, "properties": {"x": schema}}
    expected = jsonschema.Draft202012Validator(root).is_valid({"x": value})
    assert Schema(root, "x").check().fits({"x": value}) == expected
    inside = {"$defs": {"0": moved(root, "#/$defs/0", "x")}, "items": {"$ref": "#/$defs/0"}}
    assert jsonschema.Draft202012Validator(inside).is_valid([{"x": value}]) == expected


def test_a_check_takes_a_bounded_time_whatever_the_schema() -> None:
    """Each definition refers to the next one twice: two to the sixtieth pairs to look at."""
    bomb: dict[str, Any] = {
        "$defs": {str(n): {"anyOf": [{"$ref": f"#/$defs/{n + 1}"}] * 2} for n in range(60)}
    }
    bomb["$defs"]["60"] = {"type": "string"}
    loop: dict[str, Any] = {"$ref": "#"}
    for schema in (bomb | {"$ref": "#/$defs/0"}, loop):
        begun = time.process_time()
        assert not Schema(schema, "x").check().fits({})
        assert time.process_time() - begun < 5


def test_the_checks_of_all_calls_of_a_request_take_a_bounded_time_together() -> None:
    """An answer can have thousands of calls, and a request 64 answers: at 0.1 s for each, nothing else would run."""
    inner = {"$ref": "#/$defs/T"}
    ways: list[Any] = [{"type": "array", "items": inner, "maxItems": most} for most in range(2, 40)]
    parameters = {"properties": {"a": inner}, "$defs": {"T": {"anyOf": [*ways, {"type": "integer"}]}}}
    offered = offer(strictly(parameters), None, None)
    right, wrong = '{"a": [[[[1], 899]]]}', f'{{"a": {"[" * 12}true{"]" * 12}}}'
    begun = time.process_time()
    for _ in range(300):
        assert offered.fits("f", right)
        assert not offered.fits("f", wrong)
    assert time.process_time() - begun < 5


@pytest.mark.parametrize("number", ["1e400", "-1e400", "NaN", "1" * 400])
def test_numbers_beyond_all_bounds_do_no_harm(number: str) -> None:
    schema = {"properties": {"a": {"type": "integer", "multipleOf": 0.1}}}
    answer = f'<tool_call>{{"name": "f", "arguments": {{"a": {number}}}}}</tool_call>'
    assert read(answer, offered=offer(strictly(schema), None, None)) == (answer, [])


@pytest.mark.parametrize("kind", ["string", "array", ["string", "null"], [], 5, None], ids=str)
@pytest.mark.parametrize(
    "choice", ["auto", "required", {"type": "function", "function": {"name": "f"}}], ids=str
)
def test_a_function_whose_arguments_are_no_object_is_refused_by_its_place(kind: Any, choice: Any) -> None:
    """A forced call of it had arguments that are no JSON, or none was told though one was made."""
    tools: list[Any] = [{"type": "function", "function": {"name": "f", "parameters": {"type": kind}}}]
    with pytest.raises(InvalidRequest, match="arguments of a function are an object") as refused:
        offer_of(tools, choice, None)
    assert refused.value.param == "tools[0].function.parameters"


@pytest.mark.parametrize("parameters", [None, {}, {"type": ["null", "object"]}, {"properties": {}}], ids=str)
def test_arguments_are_an_object_whatever_else_the_schema_allows(parameters: Any) -> None:
    tools: list[Any] = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    named = offer_of(tools, {"type": "function", "function": {"name": "f"}}, None).schema
    required = offer_of(tools, "required", None).schema
    assert named is not None
    assert required is not None
    for schema in (named, required["$defs"]["0"]):
        assert schema["type"] == "object"


# --- nested models ------------------------------------------------------------------------------


def test_schemas_of_nested_models_can_be_followed_wherever_a_call_is_forced() -> None:
    """pydantic writes every model inside another one as a reference into ``$defs``."""
    place = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    nested = {
        "type": "object",
        "properties": {"where": {"$ref": "#/$defs/P"}, "$ref": {"type": "string"}, "self": {"$ref": "#"}},
        "required": ["where"],
        "$defs": {"P": place | {"default": {"$ref": "#/$defs/P"}}},
    }
    tools = [
        Tool(type="function", function=Function(name="book", parameters=nested)),
        Tool(
            type="function",
            function=Function(
                name="visit", parameters={"$ref": "#/definitions/P", "definitions": {"P": place}}
            ),
        ),
    ]
    schema = offer(tools, "required", None).schema
    assert schema is not None
    valid = jsonschema.Draft202012Validator(schema).is_valid
    assert valid(
        [{"name": "book", "arguments": {"where": {"n": 1}, "$ref": "x", "self": {"where": {"n": 2}}}}]
    )
    assert valid([{"name": "visit", "arguments": {"n": 1}}])
    assert not valid([{"name": "book", "arguments": {"where": {"n": "1"}}}])
    assert not valid([{"name": "book", "arguments": {"where": {"n": 1}, "self": {}}}])
    assert not valid([{"name": "visit", "arguments": {}}])
    tokenizer = load_tokenizer(BUNDLED_MODEL)
    compiler = GrammarCompiler(tokenizer, tokenizer.get_vocab_size(), [0])
    compiler.check(Grammar("json_schema", json.dumps(schema)))


def test_a_schema_with_an_id_of_its_own_can_be_followed_wherever_a_call_is_forced() -> None:
    """Generators of schemas write one; references are relative to it, so that it cannot go where the schema goes."""
    number = {"type": "object", "properties": {"n": {"const": 7}}, "required": ["n"]}
    inner = {"$id": "https://a.example/i", "items": {"$ref": "#/$defs/N"}, "$defs": {"N": {"const": 8}}}
    parameters = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$id": "https://a.example/f",
        "type": "object",
        "properties": {
            "short": {"$ref": "#/definitions/N"},
            "long": {"$ref": "https://a.example/f#/definitions/N"},
            "whole": {"$ref": "https://a.example/f"},
            "$id": {"type": "string"},
            "inner": inner,
        },
        "required": ["short"],
        "additionalProperties": False,
        "definitions": {"N": number},
    }
    tools = [Tool(type="function", function=Function(name="f", parameters=parameters))]
    schema = offer(tools, "required", None).schema
    assert schema is not None
    valid = jsonschema.Draft202012Validator(schema).is_valid
    short = {"short": {"n": 7}}
    for more in ({}, {"long": {"n": 7}}, {"whole": short}, {"$id": "x"}, {"inner": [8]}):
        assert valid([{"name": "f", "arguments": short | more}])
    for wrong in ({"long": {"n": 8}}, {"whole": {}}, {"$id": 1}, {"inner": [7]}, {"short": {"n": 8}}):
        assert not valid([{"name": "f", "arguments": short | wrong}])
    tokenizer = load_tokenizer(BUNDLED_MODEL)
    compiler = GrammarCompiler(tokenizer, tokenizer.get_vocab_size(), [0])
    compiler.check(Grammar("json_schema", json.dumps(schema)))


def test_a_strict_function_may_have_a_schema_with_an_id_where_the_model_chooses_too() -> None:
    number = {"type": "object", "properties": {"n": {"const": 7}}, "required": ["n"]}
    parameters = {
        "$id": "https://a.example/f",
        "type": "object",
        "properties": {
            "short": {"$ref": "#/definitions/a%20number"},
            "long": {"$ref": "https://a.example/f#/definitions/a%20number"},
            "whole": {"$ref": "https://a.example/f"},
            "text": {"$ref": "https://a.example/f#/definitions/text"},
        },
        "definitions": {"a number": number, "text": {"type": "string"}},
    }
    function = Function(name="f", parameters=parameters, strict=True)
    offered = offer([Tool(type="function", function=function)], "auto", None)
    n = {"n": 7}
    for right in ({}, {"short": n}, {"long": n}, {"whole": {"short": n}}, {"text": "5"}):
        assert offered.fits("f", json.dumps(right)), right
    for wrong in ({"short": {}}, {"long": {"n": 8}}, {"whole": {"long": {}}}, {"text": 5}):
        assert not offered.fits("f", json.dumps(wrong)), wrong
    tokenizer = load_tokenizer(BUNDLED_MODEL)
    compiler = GrammarCompiler(tokenizer, tokenizer.get_vocab_size(), [0])
    compiler.check(Grammar("json_schema", json.dumps(offered.calls["f"])))
    told = "<tool_call><function=f><parameter=text>5</parameter></function></tool_call>"
    loose = offer([Tool(type="function", function=Function(name="f", parameters=parameters))], "auto", None)
    assert read(told, offered=loose) == ("", [("f", {"text": "5"})]), "it is read by what the function takes"


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/nothing"},
        {"$ref": "https://a.example/f"},
        {"$ref": "#anchor"},
        {"$id": "https://a.example/i", "items": {"$ref": "#/$defs/N"}, "$defs": {"N": {}}},
    ],
)
def test_references_to_what_calls_cannot_be_held_to_are_refused_by_name(schema: dict[str, Any]) -> None:
    parameters = {"type": "object", "properties": {"a": schema}, "$defs": {"N": {}}}
    tools = [Tool(type="function", function=Function(name="f", parameters=parameters, strict=True))]
    with pytest.raises(InvalidRequest, match=r"has a \$ref to .*, which leads to nothing") as refused:
        offer(tools, "auto", None)
    assert refused.value.param == "tools[0].function.parameters"


def test_the_id_of_a_call_is_one_that_every_chat_template_takes() -> None:
    ids = {CallIds("any").new("now") for _ in range(1000)}
    assert len(ids) == 1000
    assert all(len(id) == 9 and id.isalnum() for id in ids)


def test_the_ids_of_kimi_say_function_and_number_through_the_whole_conversation() -> None:
    ids = CallIds("counted", 2)
    reader = CallReader(offer(TOOLS, None, None), ids)
    reader.feed(f"<tool_call>{ROME}</tool_call><tool_call>{ROME}</tool_call>")
    calls = reader.take().calls
    assert [call.id for call in calls] == ["functions.weather:2", "functions.weather:3"]


def test_many_small_values_are_read_in_proportion_to_their_number() -> None:
    """Each was cut off the front of the rest, which was copied: a minute for two megabytes."""
    begun = time.process_time()
    answer = "{};" * 500_000
    assert read(answer) == (answer, [])
    assert time.process_time() - begun < 5


# --- JSON as other programs read it --------------------------------------------------------------

HALF = r'{"name": "weather", "parameters": {"city": "\ud800"}}'


def plain_json(text: str) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(
    ("answer", "arguments"),
    [
        (HALF, {"city": "\ud800"}),
        ("<tool_call><function=weather><parameter=n>NaN</parameter></function></tool_call>", {"n": "NaN"}),
        (
            "<tool_call><function=weather><parameter=n>1e999</parameter></function></tool_call>",
            {"n": "1e999"},
        ),
        (
            r'<tool_call>weather<arg_key>n</arg_key><arg_value>["\udfff"]</arg_value></tool_call>',
            {"n": ["\udfff"]},
        ),
        (
            "<tool_call>weather<arg_key>n</arg_key><arg_value>[-Infinity]</arg_value></tool_call>",
            {"n": "[-Infinity]"},
        ),
    ],
)
def test_arguments_can_be_sent_and_are_json_whatever_the_model_writes(answer: str, arguments: object) -> None:
    for parts in ((answer,), answer):
        text, [(name, told)] = read_raw(*parts)
        assert (text, name, plain_json(told)) == ("", "weather", arguments)
        assert told.encode()


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_a_call_in_json_with_what_is_no_number_of_json_is_none(number: str) -> None:
    answer = '{"name": "weather", "parameters": {"city": ' + number + "}}"
    assert read(answer) == (answer, [])


def test_a_strict_schema_may_say_what_no_value_can_offend() -> None:
    """As pydantic writes a union with a discriminator, and OpenAPI its own keywords."""
    cat = {
        "type": "object",
        "properties": {"kind": {"const": "cat"}},
        "required": ["kind"],
        "x-order": [1, {}],
    }
    pet: dict[str, Any] = {
        "oneOf": [cat],
        "discriminator": {"mapping": {"cat": "#/$defs/Cat"}, "propertyName": "kind"},
        "nullable": True,
        "example": {"kind": 5},
    }
    data = {"type": "string", "contentEncoding": "base64", "contentMediaType": "image/png"}
    schema = {"type": "object", "properties": {"pet": pet, "data": data}, "required": ["pet"]}
    offered = offer(strictly(schema), "auto", None)
    for arguments, calls in (({"pet": {"kind": "cat"}}, 1), ({"pet": {"kind": "dog"}}, 0)):
        answer = f"<tool_call>{json.dumps({'name': 'f', 'arguments': arguments})}</tool_call>"
        assert len(read(answer, offered=offered)[1]) == calls
    with pytest.raises(InvalidRequest, match="has 'dependentRequired'"):
        offer(strictly({"dependentRequired": {"a": ["b"]}}), "auto", None)


@pytest.mark.parametrize(
    ("bounds", "valid", "invalid"),
    [
        ({"minimum": 3, "exclusiveMinimum": True}, 4, 3),
        ({"minimum": 0, "exclusiveMinimum": False}, 0, -1),
        ({"maximum": 5, "exclusiveMaximum": True}, 4, 5),
        ({"maximum": 5, "exclusiveMaximum": False}, 5, 6),
        ({"exclusiveMinimum": 2, "exclusiveMaximum": 4}, 3, 4),
    ],
    ids=str,
)
def test_a_bound_may_say_that_it_is_exclusive(bounds: dict[str, Any], valid: int, invalid: int) -> None:
    """As schemas of OpenAPI 3.0 do: true and false were taken for the numbers 1 and 0."""
    schema = Schema({"properties": {"a": bounds}}, "x").check()
    assert schema.fits({"a": valid})
    assert not schema.fits({"a": invalid})
    with pytest.raises(InvalidRequest, match="minLength=True, which is no JSON Schema"):
        Schema({"minLength": True}, "x").check()


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("NaN", None),
        ("[-Infinity, Infinity, 1, -1]", [None, None, 1, -1]),
        ("[True, False, None, true, false, null]", [True, False, None, True, False, None]),
        (r'"NaN, \\ \" -Infinity"', r"NaN, \ " + '" -Infinity'),
        (r'{"Infinity": NaN, "\\": [NaN]}', {"Infinity": None, "\\": [None]}),
    ],
)
@pytest.mark.parametrize("format", ["hermes", "kimi_k2", "granite", "mistral"])
def test_arguments_that_are_handed_over_as_they_come_have_the_words_of_json_for_those_of_python(
    written: str, told: object, format: str
) -> None:
    arguments = f'{{"city": {written}}}'
    answer = {
        "hermes": f'<tool_call>{{"name": "weather", "arguments": {arguments}}}</tool_call>',
        "kimi_k2": f"<|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>{arguments}<|tool_call_end|>",
        "granite": f'<|tool_call|>[{{"name": "weather", "arguments": {arguments}}}]',
        "mistral": f"[TOOL_CALLS]weather[ARGS]{arguments}",
    }[format]
    for parts in ((answer,), answer, [answer[at : at + 3] for at in range(0, len(answer), 3)]):
        text, [(name, came)] = read_raw(*parts, formats=Formats(tool_calls=format))
        assert (text, name, plain_json(came)) == ("", "weather", {"city": told})


BEHIND = {
    "LFM2": ("pythonic", '<|tool_call_start|>[weather(city="Rome")]<|tool_call_end|>', "Let me see."),
    "LFM2, a mark in quotes": (
        "pythonic",
        '<|tool_call_start|>[weather(city="<|tool_call_end|>")]<|tool_call_end|>',
        "Let me see.",
    ),
    "LFM2, no first mark": ("pythonic", '[weather(city="Rome")]<|tool_call_end|>', "Let me see."),
    "Llama 4": ("llama4_pythonic", '<|python_start|>[weather(city="Rome")]<|python_end|>', "\nLet me see."),
    "Hermes": (
        "hermes",
        '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>',
        " Let me",
    ),
    "Hermes, not closed": (
        "hermes",
        '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}',
        "\nLet me",
    ),
    "Kimi K2": (
        "kimi_k2",
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>"
        '{"city": "Rome"}<|tool_call_end|><|tool_calls_section_end|>',
        "Let me see.",
    ),
    "Kimi K2, not closed": (
        "kimi_k2",
        '<|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>{"city": "Rome"}',
        "\nLet me see.",
    ),
    "Kimi K2, only the section is closed": (
        "kimi_k2",
        '<|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>{"city": "Rome"}<|tool_calls_section_end|>',
        "Let me see.",
    ),
    "DeepSeek V3": (
        "deepseek_v3",
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
        '{"city": "Rome"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        "Let me see.",
    ),
    "Mistral": ("mistral", '[TOOL_CALLS]weather[ARGS]{"city": "Rome"}', "Let me see."),
    "Mistral, a list": (
        "mistral",
        '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Rome"}}]',
        " Let me",
    ),
    "Granite": ("granite", '<|tool_call|>[{"name": "weather", "arguments": {"city": "Rome"}}]', "\nLet me"),
    "Phi-4": ("phi4_mini_json", 'functools[{"name": "weather", "arguments": {"city": "Rome"}}]', " Let me"),
    "Command": (
        "cohere_command3",
        '<|START_ACTION|>[{"tool_name": "weather", "parameters": {"city": "Rome"}}]<|END_ACTION|>',
        "Let me see.",
    ),
    "Command, not closed": (
        "cohere_command3",
        '<|START_ACTION|>[{"tool_name": "weather", "parameters": {"city": "Rome"}}]',
        "\nLet me see.",
    ),
    "GLM": (
        "glm45",
        "<tool_call>weather<arg_key>city</arg_key><arg_value>Rome</arg_value></tool_call>",
        "\nLet me see.",
    ),
    "Qwen3-Coder": (
        "qwen3_coder",
        "<tool_call><function=weather><parameter=city>Rome</parameter></function></tool_call>",
        "\nLet me see.",
    ),
    "Qwen3-Coder, not closed": (
        "qwen3_coder",
        "<tool_call><function=weather><parameter=city>Rome</parameter></function>",
        "\nLet me see.",
    ),
}
"""By name: the format, a call as models write it, and what they may write behind it."""


@pytest.mark.parametrize(("name", "strict"), [*itertools.product(BEHIND, (False, True))])
def test_what_follows_a_call_reaches_the_user(name: str, strict: bool) -> None:
    format, call, behind = BEHIND[name]
    tools = strictly({"properties": {"city": {"type": "string"}}}) if strict else TOOLS
    call = call.replace("weather", "f") if strict else call
    offered = offer(tools, None, None)
    around = [("", ""), ("", call), ("So: ", ""), ("So: ", call)]
    for before, after in around[: 1 if name == "LFM2, no first mark" else 4]:
        answer = before + call + behind + after
        for parts in ((answer,), answer, [answer[at : at + 7] for at in range(0, len(answer), 7)]):
            text, calls = read(*parts, offered=offered, formats=Formats(tool_calls=format))
            assert text == before + behind
            assert len(calls) == 1 + bool(after)
            assert all(isinstance(told, dict) and [*told] == ["city"] for _, told in calls)


def test_a_function_without_parameters_has_no_arguments_and_one_whose_schema_is_empty_has_any() -> None:
    for parameters, fits in ((None, False), ({}, True)):
        tool = Tool(type="function", function=Function(name="now", parameters=parameters, strict=True))
        named = offer([tool], NamedTool(type="function", function=FunctionName(name="now")), None)
        required = offer([tool], "required", None)
        assert named.schema is not None
        assert required.schema is not None
        for arguments, expected in (({}, True), ({"now": 1}, fits)):
            call = [{"name": "now", "arguments": arguments}]
            assert jsonschema.Draft202012Validator(named.schema).is_valid(arguments) is expected
            assert jsonschema.Draft202012Validator(required.schema).is_valid(call) is expected
            text = f'<tool_call>{{"name": "now", "arguments": {json.dumps(arguments)}}}</tool_call>'
            assert bool(read(text, offered=offer([tool], "auto", None))[1]) is expected
