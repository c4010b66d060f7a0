"""Calls of tools, read from a model's text however it is cut."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from slipstream.actors.http.errors import Problem
from slipstream.actors.http.tools import Call, CallReader, Function, NamedTool, Tool, offer

NAMES = frozenset({"weather", "now"})


def read(*parts: str) -> tuple[str, list[tuple[str, object]]]:
    """The text and the calls that parts of an answer give together."""
    reader = CallReader(NAMES)
    texts: list[str] = []
    calls: list[Call] = []
    for part in parts:
        text, found = reader.feed(part)
        texts.append(text)
        calls += found
    text, found = reader.end()
    calls += found
    assert reader.calls == len(calls)
    return "".join([*texts, text]), [(call.name, json.loads(call.arguments)) for call in calls]


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
    "JSON that is no call": ('{"answer": 42}', '{"answer": 42}', []),
    "one of two is no call": ('[{"name": "now"}, 5]', '[{"name": "now"}, 5]', []),
    "only a beginning of a mark": ("a <tool_ca", "a <tool_ca", []),
    "a bracket at first": ("[sic] it is so", "[sic] it is so", []),
    "empty": ("", "", []),
    "space": (" \n", " \n", []),
    "deep": ("[" * 100_000, "[" * 100_000, []),
}


@pytest.mark.parametrize(("answer", "text", "calls"), ANSWERS.values(), ids=ANSWERS.keys())
def test_an_answer_is_parted_into_text_and_calls(
    answer: str, text: str, calls: list[tuple[str, object]]
) -> None:
    assert read(answer) == (text, calls)


@given(st.sampled_from([name for name in ANSWERS if name != "deep"]), st.data())
def test_however_an_answer_is_cut_it_is_read_the_same(name: str, data: st.DataObject) -> None:
    answer, text, calls = ANSWERS[name]
    cuts = sorted(data.draw(st.sets(st.integers(0, len(answer)), max_size=8)))
    bounds = [0, *cuts, len(answer)]
    parts = [answer[start:end] for start, end in itertools.pairwise(bounds)]
    assert read(*parts) == (text, calls)


@given(st.text('<>/tool_cal{}[]" :,nowame\n', max_size=60), st.integers(1, 7))
def test_nothing_of_a_text_without_calls_is_lost(answer: str, size: int) -> None:
    text, calls = read(*[answer[start : start + size] for start in range(0, len(answer), size)])
    if not calls:
        assert text == answer


def test_text_is_told_as_soon_as_it_cannot_be_a_call() -> None:
    reader = CallReader(NAMES)
    assert reader.feed("Let ") == ("Let ", [])
    assert reader.feed("me <tool") == ("me ", [])
    assert reader.feed("box") == ("<toolbox", [])


TOOLS = [
    Tool(
        type="function",
        function=Function(name="weather", parameters={"type": "object", "required": ["city"]}),
    ),
    Tool(type="function", function=Function(name="now")),
]


def test_a_forced_call_becomes_a_schema() -> None:
    named = NamedTool(type="function", function=Function(name="weather"))  # type: ignore[arg-type]
    told = offer(TOOLS, named, None)
    assert told.forced == "weather"
    assert told.schema == {"type": "object", "required": ["city"]}
    required = offer(TOOLS, "required", False).schema
    assert required is not None
    assert (required["minItems"], required["maxItems"]) == (1, 1)
    names = [call["properties"]["name"]["const"] for call in required["items"]["anyOf"]]
    assert names == ["weather", "now"]


def test_what_cannot_be_kept_is_refused() -> None:
    unknown = NamedTool(type="function", function=Function(name="rm"))  # type: ignore[arg-type]
    strict = [Tool(type="function", function=Function(name="now", strict=True))]
    for tools, choice, parallel, message in (
        (None, "auto", None, "of no use without tools"),
        (TOOLS, unknown, None, "'rm', which is not in tools"),
        (TOOLS, "auto", False, "parallel_tool_calls=false"),
        (strict, None, None, "strict=true"),
    ):
        with pytest.raises(Problem, match=message):
            offer(tools, choice, parallel)  # type: ignore[arg-type]


def test_with_choice_none_the_model_is_told_of_no_tool() -> None:
    assert offer(TOOLS, "none", None).tools is None
