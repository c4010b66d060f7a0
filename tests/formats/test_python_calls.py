"""Lists of calls in Python's form: those that are cut, and those of which some are calls and some are not."""

from __future__ import annotations

import ast
import json
from typing import Any

import pytest
from slipstream.protocol.formats import pythonic
from slipstream.protocol.formats.answer import AnswerReader
from slipstream.protocol.formats.ids import CallIds
from slipstream.protocol.formats.pythonic import sources_of
from slipstream.protocol.formats.tools import Function, Tool, offer
from slipstream.protocol.messages import Formats

CITY: dict[str, Any] = {"type": "object", "properties": {"city": {"enum": ["Rome", "Bonn"]}}}
ROME, BONN = ("weather", {"city": "Rome"}), ("weather", {"city": "Bonn"})
NOW: tuple[str, dict[str, Any]] = ("now", {})


def read(*parts: str, strict: bool = False, reason: str = "stop") -> tuple[str, list[tuple[str, Any]]]:
    """The text and the calls of an answer that comes in parts."""
    weather = Function(name="weather", parameters=CITY, strict=strict)
    tools = [
        Tool(type="function", function=one) for one in (weather, Function(name="now"), Function(name="say"))
    ]
    reader = AnswerReader(Formats(tool_calls="pythonic"), offer(tools, None, None), CallIds("any"))
    told = [reader.read(part) for part in parts] + [reader.read("", reason)]
    calls: dict[int, list[str]] = {}
    for part in (call for one in told for call in one.calls):
        call = calls.setdefault(part.index, ["", ""])
        call[0] += part.name
        call[1] += part.arguments
    text = "".join(one.text for one in told)
    return text, [(name, json.loads(arguments)) for name, arguments in calls.values()]


WHOLE = """[weather(city="Rome"), now(), weather(city='Bonn')]"""

CUT = {
    "[weather(": [],
    '[weather(city="Ro': [],
    '[weather(city="Rome"': [],
    '[weather(city="Rome")': [ROME],
    '[weather(city="Rome"), ': [ROME],
    '[weather(city="Rome"), now(': [ROME],
    '[weather(city="Rome"), now()': [ROME, NOW],
    """[weather(city="Rome"), now(), weather(city='Bo""": [ROME, NOW],
    """[weather(city="Rome"), weather(city="Bo) \\""": [ROME],
    WHOLE: [ROME, NOW, BONN],
    '[say(x=")", y=[(1, 2)], z={"a": "]"}), now(': [("say", {"x": ")", "y": [[1, 2]], "z": {"a": "]"}})],
    """[say(x='it\\'s (', y="'"), say(x="a)""": [("say", {"x": "it's (", "y": "'"})],
}


@pytest.mark.parametrize(("answer", "calls"), CUT.items())
@pytest.mark.parametrize("mark", ["", "<|tool_call_start|>"])
def test_of_a_list_that_is_cut_the_complete_calls_are_calls(
    answer: str, calls: list[tuple[str, Any]], mark: str
) -> None:
    assert read(mark + answer, reason="length") == ("", calls)
    assert read(*(mark + answer), reason="length") == ("", calls)


@pytest.mark.parametrize(
    "answer", ["[rm(a=1), weather(ci", "[f(x) for x in y", '[weather(city="Rome"), rm(a=1), now(']
)
def test_what_is_cut_and_no_list_of_calls_that_are_offered_is_text(answer: str) -> None:
    assert read(answer, reason="length") == (answer, [])
    assert read(*answer, reason="length") == (answer, [])


OSLO = 'weather(city="Oslo")'


@pytest.mark.parametrize(
    ("answer", "text", "calls"),
    [
        (f"[{OSLO}]", f"[{OSLO}]", []),
        (f"[{OSLO}, {OSLO}]", f"[{OSLO}, {OSLO}]", []),
        (f"[now(), {OSLO}]", OSLO, [NOW]),
        (
            f'[{OSLO}, weather(city="Rome"), weather( city = "Köln")]',
            f'{OSLO}weather( city = "Köln")',
            [ROME],
        ),
        (
            f'[now(),\n weather(city="Köln\\n",\r\n zip=1),\n{OSLO}]',
            f'weather(city="Köln\\n",\r\n zip=1){OSLO}',
            [NOW],
        ),
    ],
)
def test_the_text_of_a_call_that_does_not_fit_is_told_once(
    answer: str, text: str, calls: list[tuple[str, Any]]
) -> None:
    """And never that of one that does."""
    assert read(answer, strict=True) == (text, calls)
    assert read(*answer, strict=True) == (text, calls)


def test_a_list_is_divided_into_lines_once_for_all_its_calls_that_do_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As many as are parsed took minutes when it was done for each."""
    divided: list[str] = []

    def noted(text: str, nodes: list[ast.expr]) -> list[str]:
        divided.append(text)
        return sources_of(text, nodes)

    monkeypatch.setattr(pythonic, "sources_of", noted)
    many = f"[now(), {', '.join([OSLO] * 50)}]"
    assert read(many, strict=True) == (OSLO * 50, [NOW])
    assert divided == [many]
