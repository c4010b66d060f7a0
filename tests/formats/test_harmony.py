"""Harmony's messages to a function whose mark at the end is missing, or comes late."""

from __future__ import annotations

import json
from typing import Any

import pytest
from slipstream.protocol.formats.answer import AnswerReader
from slipstream.protocol.formats.ids import CallIds
from slipstream.protocol.formats.tools import Function, Tool, offer
from slipstream.protocol.messages import Formats

CITY: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}}
HEAD = "<|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
CALL = HEAD + '{"city": "}Rome{"}'
FINAL = "<|start|>assistant<|channel|>final<|message|>"


def read(*parts: str, strict: bool, reason: str = "stop") -> tuple[str, list[str]]:
    """The text and the arguments of each call of an answer that comes in parts."""
    tools = [Tool(type="function", function=Function(name="weather", parameters=CITY, strict=strict))]
    formats = Formats(reasoning="openai_gptoss", tool_calls="openai")
    reader = AnswerReader(formats, offer(tools, None, None), CallIds("any"))
    told = [reader.read(part) for part in parts] + [reader.read("", reason)]
    arguments: dict[int, str] = {}
    for part in (call for one in told for call in one.calls):
        arguments[part.index] = arguments.get(part.index, "") + part.arguments
    return "".join(one.text for one in told), [*arguments.values()]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("reason", ["stop", "length"])
@pytest.mark.parametrize(
    ("answer", "text", "calls"),
    [
        (CALL, "", 1),
        (CALL + "<|call|>", "", 1),
        (CALL + "\n <|call|>", "", 1),
        (CALL + " \n", "", 1),
        (CALL + "\nLet me see.", "\nLet me see.", 1),
        (CALL + " Let me see.<|call|>", " Let me see.", 1),
        (CALL + "Let me see.<|end|>" + FINAL + "So.", "Let me see.So.", 1),
        (CALL + CALL + "Bye", "Bye", 2),
        (CALL + "So: " + CALL, "So: ", 2),
        (HEAD + "<|call|>", "", 1),
    ],
)
def test_what_follows_arguments_whose_mark_is_missing_is_text(
    answer: str, text: str, calls: int, reason: str, strict: bool
) -> None:
    for parts in ((answer,), answer, [answer[at : at + 7] for at in range(0, len(answer), 7)]):
        said, arguments = read(*parts, strict=strict, reason=reason)
        assert said == text
        assert [json.loads(one) for one in arguments] == [
            {"city": "}Rome{"} if "Rome" in answer else {} for _ in range(calls)
        ]


@pytest.mark.parametrize("end", ["<|call|>", ""])
def test_arguments_that_do_not_fit_are_text_beside_what_follows_them(end: str) -> None:
    wrong = CALL.replace('"}Rome{"', "5")
    assert read(wrong + " Hm." + end, strict=True) == ('{"city": 5} Hm.', [])
