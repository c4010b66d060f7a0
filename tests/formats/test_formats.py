"""Thoughts, text and calls in the form of each family of models, whole and cut anywhere."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slipstream.protocol.formats.answer import AnswerReader
from slipstream.protocol.formats.formats import (
    REASONING,
    TOOL_CALLS,
    Formats,
    formats_of,
    marks_of,
)
from slipstream.protocol.formats.ids import CallIds
from slipstream.protocol.formats.marks import beginning_of
from slipstream.protocol.formats.tools import Function, Offer, Tool, offer

CITY = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
TOOLS = [
    Tool(type="function", function=Function(name="weather", parameters=CITY | {"required": ["city"]})),
    Tool(type="function", function=Function(name="now")),
]
STRICT = [
    Tool(
        type="function",
        function=Function(name="weather", parameters=CITY | {"required": ["city"]}, strict=True),
    )
]


@dataclass
class Read:
    reasoning: str = ""
    text: str = ""
    calls: list[tuple[str, Any]] = field(default_factory=list)


def read(
    formats: Formats,
    *parts: str,
    offered: Offer | None = None,
    finish_reason: str = "stop",
    plain: bool = False,
    special: bool = False,
) -> Read:
    """What parts of an answer say together; the arguments of calls as text if they are ``plain``."""
    offered = offer(TOOLS, None, None) if offered is None else offered
    reader = AnswerReader(formats, offered, CallIds("any"), special=special)
    said = [reader.read(part) for part in parts] + [reader.read("", finish_reason)]
    result = Read("".join(one.reasoning for one in said), "".join(one.text for one in said))
    calls: dict[int, list[str]] = {}
    for part in (part for one in said for part in one.calls):
        if part.name:
            assert part.id
            assert part.index == len(calls)
            calls[part.index] = [part.name, ""]
        calls[part.index][1] += part.arguments
    result.calls = [(name, text if plain else json.loads(text)) for name, text in calls.values()]
    return result


ROME = ("weather", {"city": "Rome"})
NOW = ("now", {})
QUOTED = '</tool_call> <|call|> ｝ "] [ { \\" <｜tool▁call▁end｜>'
"""What a user may well ask an agent to write."""
TRICKY = ("weather", {"city": QUOTED})
ROME_JSON = '{"city": "Rome"}'
TRICKY_JSON = json.dumps({"city": QUOTED}, ensure_ascii=False)
DS_BEGIN, DS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
DS_CALL, DS_SEP, DS_CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"


def formats(reasoning: str | None, tool_calls: str | None = None) -> Formats:
    return Formats(reasoning=reasoning, tool_calls=tool_calls)


ANSWERS: dict[str, tuple[Formats, str, Read]] = {
    "Qwen3": (formats("qwen3"), "<think>\nHm.\n\nSo.\n</think>\n\nIt is 4.", Read("Hm.\n\nSo.", "It is 4.")),
    "Qwen3, a call": (
        formats("qwen3", "hermes"),
        f'<think>\nI look.\n</think>\n\n<tool_call>\n{{"name": "weather", "arguments": {ROME_JSON}}}\n</tool_call>',
        Read("I look.", "", [ROME]),
    ),
    "no thoughts": (formats("qwen3"), "It is 4 <think>.", Read("", "It is 4 <think>.")),
    "empty thoughts": (formats("qwen3"), "<think>\n\n</think>\n\nIt is 4.", Read("", "It is 4.")),
    "thoughts without an end": (formats("qwen3"), "<think>\nHm </thin", Read("Hm </thin", "")),
    "only a beginning of a mark": (formats("qwen3"), "<thin", Read("", "<thin")),
    "Magistral": (
        formats("mistral", "mistral"),
        f"[THINK]I look.[/THINK][TOOL_CALLS]weather[ARGS]{ROME_JSON}[TOOL_CALLS]now[ARGS]{{}}",
        Read("I look.", "", [ROME, NOW]),
    ),
    "Mistral, with ids": (
        formats(None, "mistral"),
        f"Well. [TOOL_CALLS]weather[CALL_ID]abcdefghi[ARGS]{TRICKY_JSON}",
        Read("", "Well. ", [TRICKY]),
    ),
    "Mistral, a list": (
        formats(None, "mistral"),
        f'Well.[TOOL_CALLS] [{{"name": "weather", "arguments": {TRICKY_JSON}}}, {{"name": "now"}}]',
        Read("", "Well.", [TRICKY, NOW]),
    ),
    "Granite": (
        formats("granite", "granite"),
        "Here is my thought process: I look. Here is my response: Let me see. "
        f'<|tool_call|>[{{"name": "weather", "arguments": {ROME_JSON}}}]',
        Read("I look.", "Let me see. ", [ROME]),
    ),
    "Seed": (formats("seed_oss"), "<seed:think>I look.</seed:think>Yes.", Read("I look.", "Yes.")),
    "DeepSeek V3": (
        formats(None, "deepseek_v3"),
        f"Let me see.{DS_BEGIN}{DS_CALL}function{DS_SEP}weather\n```json\n{ROME_JSON}\n```{DS_CALL_END}\n"
        f"{DS_CALL}function{DS_SEP}now\n```json\n{{}}\n```{DS_CALL_END}{DS_END}",
        Read("", "Let me see.", [ROME, NOW]),
    ),
    "DeepSeek V3.1": (
        formats("deepseek_v3", "deepseek_v31"),
        f"<think>I look.</think>{DS_BEGIN}{DS_CALL}weather{DS_SEP}{TRICKY_JSON}{DS_CALL_END}"
        f"{DS_CALL}now{DS_SEP}{{}}{DS_CALL_END}{DS_END}",
        Read("I look.", "", [TRICKY, NOW]),
    ),
    "GLM": (
        formats("glm45", "glm45"),
        "<think>I look.</think>\nLet me see.\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>"
        "\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>\n<tool_call>now\n</tool_call>",
        Read("I look.", "Let me see.\n", [("weather", {"city": "Rome", "days": 3}), NOW]),
    ),
    "GLM, a mark in a value": (
        formats(None, "glm45"),
        "<tool_call>weather<arg_key>city</arg_key><arg_value></tool_call> 5</arg_value></tool_call>",
        Read("", "", [("weather", {"city": "</tool_call> 5"})]),
    ),
    "Kimi K2": (
        formats("kimi_k2", "kimi_k2"),
        "<think>I look.</think>Let me see.<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0"
        f"<|tool_call_argument_begin|>{TRICKY_JSON}<|tool_call_end|><|tool_call_begin|>functions.now:1"
        "<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
        Read("I look.", "Let me see.", [TRICKY, NOW]),
    ),
    "Phi-4": (
        formats(None, "phi4_mini_json"),
        f'functools[{{"name": "weather", "arguments": {TRICKY_JSON}}}, {{"name": "now", "arguments": {{}}}}]',
        Read("", "", [TRICKY, NOW]),
    ),
    "Llama 4": (
        formats(None, "llama4_pythonic"),
        '[weather(city="Rome", days=3), now()]',
        Read("", "", [("weather", {"city": "Rome", "days": 3}), NOW]),
    ),
    "Llama 4, its marks": (
        formats(None, "llama4_pythonic"),
        "<|python_start|>[weather(city='\\'é')]<|python_end|>",
        Read("", "", [("weather", {"city": "'é"})]),
    ),
    "Llama 4, text": (formats(None, "llama4_pythonic"), "[sic] so it is", Read("", "[sic] so it is")),
    "Llama 4, unknown": (formats(None, "pythonic"), "[rm(a=1)]", Read("", "[rm(a=1)]")),
    "Command R": (
        formats("cohere_command3", "cohere_command3"),
        "<|START_THINKING|>I look.<|END_THINKING|><|START_ACTION|>[\n"
        f'    {{"tool_call_id": "0", "tool_name": "weather", "parameters": {TRICKY_JSON}}},\n'
        '    {"tool_call_id": "1", "tool_name": "now", "parameters": {}}\n]<|END_ACTION|>',
        Read("I look.", "", [TRICKY, NOW]),
    ),
    "Command R, an answer": (
        formats("cohere_command3", "cohere_command3"),
        "<|START_THINKING|>I look.<|END_THINKING|><|START_RESPONSE|>Sunny.<|END_RESPONSE|>",
        Read("I look.", "Sunny."),
    ),
    "gpt-oss": (
        formats("openai_gptoss", "openai"),
        "<|channel|>analysis<|message|>I look.<|end|><|start|>assistant<|channel|>final<|message|>It is 20 °C.",
        Read("I look.", "It is 20 °C."),
    ),
    "gpt-oss, a call": (
        formats("openai_gptoss", "openai"),
        "<|channel|>analysis<|message|>I look.<|end|><|start|>assistant<|channel|>commentary to=functions.weather "
        f"<|constrain|>json<|message|>{ROME_JSON}<|call|>",
        Read("I look.", "", [ROME]),
    ),
    "gpt-oss, the recipient first": (
        formats("openai_gptoss", "openai"),
        "<|channel|>analysis<|message|>A.<|end|><|start|>assistant<|channel|>analysis<|message|>B.<|end|>"
        "<|start|>assistant to=functions.weather<|channel|>commentary json<|message|>" + ROME_JSON,
        Read("A.\nB.", "", [ROME]),
    ),
    "gpt-oss, a preamble": (
        formats("openai_gptoss", "openai"),
        "<|channel|>commentary<|message|>Let me see.<|end|><|start|>assistant<|channel|>commentary"
        " to=functions.now<|message|>{}<|call|><|start|>assistant<|channel|>commentary to=functions.weather"
        f"<|message|>{ROME_JSON}<|call|>",
        Read("", "Let me see.", [NOW, ROME]),
    ),
    "gpt-oss, without channels": (formats("openai_gptoss"), "It is so.", Read("", "It is so.")),
    "Hermes": (
        formats(None, "hermes"),
        f'So. <tool_call>\n{{"name": "weather", "arguments": {TRICKY_JSON}}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": {}}',
        Read("", "So. ", [TRICKY, NOW]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_parted_into_thoughts_text_and_calls(name: str) -> None:
    chosen, answer, expected = ANSWERS[name]
    assert read(chosen, answer) == expected
    assert read(chosen, *answer) == expected


@settings(deadline=None)
@given(st.sampled_from(list(ANSWERS)), st.sampled_from(["stop", "length"]), st.data())
def test_however_an_answer_is_cut_it_is_read_the_same(name: str, reason: str, data: st.DataObject) -> None:
    """Both where its parts begin and where it ends."""
    chosen, answer, _ = ANSWERS[name]
    answer = answer[: data.draw(st.integers(0, len(answer)))]
    cuts = sorted(data.draw(st.sets(st.integers(0, len(answer)), max_size=8)))
    parts = [answer[start:end] for start, end in itertools.pairwise([0, *cuts, len(answer)])]
    whole = read(chosen, answer, finish_reason=reason, plain=True)
    assert read(chosen, *parts, finish_reason=reason, plain=True) == whole


@pytest.mark.parametrize("name", [name for name in ANSWERS if "unknown" not in name and "mark" not in name])
def test_no_markup_is_told_wherever_an_answer_reaches_its_limit(name: str) -> None:
    """Cut inside of a mark that is several tokens it could as well be the model's own words."""
    chosen, answer, expected = ANSWERS[name]
    marks = [*marks_of(chosen), "functools", "[weather("]
    lengths = [
        length
        for length in range(len(answer))
        if not any(beginning_of(mark, answer[:length]) for mark in marks)
    ]
    assert len(lengths) > len(answer) // 10
    for length in lengths:
        found = read(chosen, answer[:length], finish_reason="length", plain=True)
        assert expected.reasoning.startswith(found.reasoning.rstrip())
        assert expected.text.startswith(found.text.rstrip())
        for (called, arguments), (function, _) in zip(found.calls, expected.calls, strict=False):
            assert called == function
            assert arguments[:1] == "{"


WITH_ARGUMENTS_THAT_STREAM = [
    "Qwen3, a call", "Magistral", "Mistral, a list", "Granite", "DeepSeek V3", "DeepSeek V3.1", "Kimi K2", "Phi-4",
    "gpt-oss, a call", "Hermes",
]  # fmt: skip


@pytest.mark.parametrize("name", WITH_ARGUMENTS_THAT_STREAM)
def test_arguments_are_handed_over_as_they_come(name: str) -> None:
    """Piece by piece, and none of it later than with the character that ends it."""
    chosen, answer, expected = ANSWERS[name]
    reader = AnswerReader(chosen, offer(TOOLS, None, None), CallIds("any"))
    arguments = json.dumps(expected.calls[0][1], ensure_ascii=False)
    start = answer.index(arguments)
    reader.read(answer[:start])
    brought = [reader.read(char).calls for char in arguments]
    first = brought[0][-1].arguments
    told = first + "".join(part.arguments for one in brought[1:] for part in one)
    assert told == arguments
    assert all(len(one) == 1 for one in brought)


@pytest.mark.parametrize("name", WITH_ARGUMENTS_THAT_STREAM)
def test_a_strict_function_is_called_with_arguments_that_fit_or_not_at_all(name: str) -> None:
    chosen, answer, expected = ANSWERS[name]
    wrong = answer.replace('"city"', '"town"')
    offered = offer(STRICT, None, None)
    weather = [call for call in expected.calls if call[0] == "weather"]
    assert read(chosen, *answer, offered=offered).calls == weather
    refused = read(chosen, *wrong, offered=offered)
    assert refused == read(chosen, wrong, offered=offered)
    assert refused.calls == []
    assert '"town"' in refused.text


@pytest.mark.parametrize("reasoning", [None, "qwen3", "openai_gptoss"])
def test_a_call_that_is_forced_comes_behind_the_thoughts(reasoning: str | None) -> None:
    before = {
        None: "",
        "qwen3": "<think>I look.</think>\n\n",
        "openai_gptoss": "<|channel|>analysis<|message|>I look.<|end|><|start|>assistant<|channel|>final<|message|>",
    }[reasoning]
    thoughts = "I look." if reasoning else ""
    listed = f'[{{"name": "weather", "arguments": {ROME_JSON}}}]'
    required = offer(TOOLS, "required", None)
    assert read(formats(reasoning), *before, *listed, offered=required) == Read(thoughts, "", [ROME])
    forced = Offer(functions=required.functions, schema={}, forced="weather")
    assert read(formats(reasoning), *before, *ROME_JSON, offered=forced) == Read(thoughts, "", [ROME])


@pytest.mark.parametrize(
    "tool_calls", ["deepseek_v3", "deepseek_v31", "kimi_k2", "mistral", "cohere_command3"]
)
def test_where_no_tools_are_offered_marks_of_calls_are_no_text_either(tool_calls: str) -> None:
    chosen, answer, _ = next(
        one for one in ANSWERS.values() if one[0].tool_calls == tool_calls and one[2].calls
    )
    found = read(chosen, *answer, offered=Offer())
    assert found == read(chosen, answer, offered=Offer())
    assert found.calls == []
    assert "weather" in found.text
    unquoted = found.text.replace(json.dumps(QUOTED, ensure_ascii=False), "")
    assert not any(mark in unquoted for mark in marks_of(chosen) if mark[0] in "<[")
    shown = read(chosen, *answer, offered=Offer(), special=True).text
    assert answer.endswith(shown), "unless they are asked for"
    assert any(mark in shown for mark in marks_of(chosen))


@settings(deadline=None)
@given(st.sampled_from(sorted(REASONING)), st.sampled_from(TOOL_CALLS), st.data())
def test_no_text_breaks_a_reader(reasoning: str, tool_calls: str, data: st.DataObject) -> None:
    """Made of the very marks, in any order; cut in two ways it is read the same."""
    chosen = formats(reasoning, tool_calls)
    words = [
        *sorted(marks_of(chosen)),
        "weather",
        "now",
        ROME_JSON,
        "{",
        "}",
        "[",
        "]",
        '"',
        "\\",
        " ",
        "\n",
        "x",
        "<",
    ]
    answer = "".join(data.draw(st.lists(st.sampled_from(words), max_size=12)))
    assert read(chosen, answer, plain=True) == read(chosen, *answer, plain=True)


@pytest.mark.parametrize(
    ("template", "model_type", "expected"),
    [
        ("{{ '<|im_start|>' }}", "qwen2", formats(None)),
        ("<think></think> <tool_call>", "qwen3", formats("qwen3", "hermes")),
        ("</think> <tool_call><function=", "qwen3_moe", formats("qwen3", "qwen3_coder")),
        ("</think><｜tool▁calls▁begin｜>", "deepseek_v3", formats("deepseek_r1", "deepseek_v31")),
        ("<｜tool▁calls▁begin｜>```json", "deepseek_v3", formats(None, "deepseek_v3")),
        ("</think><tool_call><arg_key>", "glm4_moe", formats("glm45", "glm45")),
        ("<|tool_calls_section_begin|>", "kimi_k2", formats(None, "kimi_k2")),
        ("<|start|><|channel|>", "gpt_oss", formats("openai_gptoss", "openai")),
        ("[THINK][TOOL_CALLS]", "mistral", formats("mistral", "mistral")),
        ("<|START_THINKING|><|START_ACTION|>", "cohere2", formats("cohere_command3", "cohere_command3")),
        ("Here is my thought process:<|tool_call|>", "granite", formats("granite", "granite")),
        ("<|python_start|>", "llama4", formats(None, "llama4_pythonic")),
        (
            'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.',
            "llama",
            formats(None, "llama3_json"),
        ),
        ("", "llama", formats(None)),
    ],
)
def test_the_formats_are_what_the_template_writes(template: str, model_type: str, expected: Formats) -> None:
    assert formats_of(template, model_type) == expected
