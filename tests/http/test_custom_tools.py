"""Custom tools of the Responses API, whose input is a text that the model writes inside of JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from scripted import Script, Scripted

PATH = "/v1/responses"
PATCH: Any = {"type": "custom", "name": "patch"}
CITY: Any = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
INPUT = 'a "b"\n\\c é \U0001f600!'
WRITTEN = json.dumps({"input": INPUT})


def asked(said: str, finish: str, **more: Any) -> Any:
    choice = {"type": "custom", "name": "patch"}
    body = {"input": "Hi", "tools": [PATCH], "tool_choice": choice} | more
    return Scripted(Script(said, finish=finish)).post(PATH, body)


@pytest.mark.parametrize("end", range(1, len(WRITTEN)))
def test_an_input_that_is_cut_is_told_as_far_as_it_came(end: int) -> None:
    """Without the JSON that it was written in, and without half of an escape."""
    room = end - len('{"input": "')
    come = [
        text
        for text in (INPUT[:count] for count in range(len(INPUT) + 1))
        if len(json.dumps(text)) - 2 <= room
    ]
    response = asked(WRITTEN[:end], "length").json
    assert response["status"] == "incomplete"
    for call in response["output"]:
        assert (call["type"], call["status"]) == ("custom_tool_call", "incomplete")
        assert call["input"] == (come[-1] if come else "")
    events = asked(WRITTEN[:end], "length", stream=True).body.decode()
    told = [json.loads(line[6:]) for line in events.splitlines() if line.startswith("data: ")]
    deltas = [event["delta"] for event in told if event["type"] == "response.custom_tool_call_input.delta"]
    assert "".join(deltas) == "".join(call["input"] for call in response["output"])


def test_an_input_that_is_whole_is_told_whole() -> None:
    [call] = asked(WRITTEN, "stop").json["output"]
    assert (call["input"], call["status"]) == (INPUT, "completed")


@pytest.mark.parametrize(
    ("choice", "place"),
    [
        ({"type": "custom", "name": "weather"}, "tool_choice.type"),
        ({"type": "function", "name": "patch"}, "tool_choice.type"),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "custom", "name": "weather"}]},
            "tool_choice.tools[0]",
        ),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "patch"}]},
            "tool_choice.tools[0]",
        ),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"name": "nobody"}]}, "tool_choice.tools[0]"),
    ],
)
def test_a_tool_is_chosen_by_its_own_type(choice: dict[str, Any], place: str) -> None:
    refused = asked("{}", "stop", tools=[PATCH, CITY], tool_choice=choice)
    assert (refused.status, refused.json["error"]["param"]) == (400, place)


@pytest.mark.parametrize(
    "choice",
    [
        {"type": "custom", "name": "patch"},
        {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "custom", "name": "patch"}]},
        {"type": "allowed_tools", "mode": "auto", "tools": [{"name": "patch"}, {"name": "weather"}]},
    ],
)
def test_a_tool_that_is_chosen_as_what_it_is_is_taken(choice: dict[str, Any]) -> None:
    assert asked(WRITTEN, "stop", tools=[PATCH, CITY], tool_choice=choice).status == 200
