"""The bundled model, through a whole service: asked for the weather it calls the tool, and tells what came of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI

from slipstream import Sidecar

NEAR = 120.0


def function(name: str, description: str, **parameters: str) -> dict[str, Any]:
    properties = {parameter: {"type": kind} for parameter, kind in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": list(parameters)}
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": schema},
    }


WEATHER = function("get_weather", "Get the weather of a city.", city="string")
CLOCK = function("get_time", "The time in a place.", place="string")
ADD = function("add", "Add two numbers.", a="number", b="number")
TOOLS: Any = [CLOCK, WEATHER, ADD]
QUESTION: Any = [{"role": "user", "content": "What is the weather in Paris?"}]


@pytest.fixture(scope="module")
def api() -> Iterator[OpenAI]:
    # in float32 the tokens are the same whatever is cached
    with (
        Sidecar(device="cpu", dtype="float32", http="127.0.0.1:0", max_num_seqs=2) as service,
        OpenAI(base_url=f"{service.ready['http']}/v1", api_key="none", max_retries=0, timeout=NEAR) as client,
    ):
        yield client


def ask(api: OpenAI, messages: Any, **fields: Any) -> Any:
    model = api.models.list().data[0].id
    given: Any = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 200} | fields
    return api.chat.completions.create(**given)


def calls_of(message: Any) -> list[tuple[str, Any]]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or ()]


def test_it_calls_the_tool_that_is_wanted(api: OpenAI) -> None:
    [choice] = ask(api, QUESTION, tools=TOOLS).choices
    assert choice.finish_reason == "tool_calls"
    assert not choice.message.content
    assert calls_of(choice.message) == [("get_weather", {"city": "Paris"})]


def test_a_stream_has_the_same_call(api: OpenAI) -> None:
    chunks = [chunk.choices[0] for chunk in ask(api, QUESTION, tools=TOOLS, stream=True) if chunk.choices]
    parts = [made.function for chunk in chunks for made in chunk.delta.tool_calls or ()]
    assert [part.name for part in parts if part.name] == ["get_weather"]
    assert json.loads("".join(part.arguments or "" for part in parts)) == {"city": "Paris"}
    assert chunks[-1].finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("question", "call"),
    [
        ("What time is it in Tokyo?", ("get_time", {"place": "Tokyo"})),
        ("What is 1234 + 567?", ("add", {"a": 1234, "b": 567})),
        ("What's the weather like in Zobrinka today?", ("get_weather", {"city": "Zobrinka"})),
    ],
)
def test_it_copies_what_the_question_says(api: OpenAI, question: str, call: tuple[str, Any]) -> None:
    [choice] = ask(api, [{"role": "user", "content": question}], tools=TOOLS).choices
    assert calls_of(choice.message) == [call]


def test_it_calls_several_tools_at_once(api: OpenAI) -> None:
    asked = [{"role": "user", "content": "What is the weather in Paris and Rome?"}]
    [choice] = ask(api, asked, tools=TOOLS).choices
    assert calls_of(choice.message) == [("get_weather", {"city": "Paris"}), ("get_weather", {"city": "Rome"})]


def test_it_tells_what_came_of_a_call(api: OpenAI) -> None:
    [first] = ask(api, QUESTION, tools=TOOLS).choices
    result = {
        "role": "tool",
        "tool_call_id": first.message.tool_calls[0].id,
        "content": "sunny, 21 degrees",
    }
    messages = [*QUESTION, first.message.model_dump(exclude_none=True), result]
    [choice] = ask(api, messages, tools=TOOLS).choices
    assert choice.finish_reason == "stop"
    assert not choice.message.tool_calls
    assert "sunny, 21 degrees" in choice.message.content


def test_it_tells_a_story_where_no_tool_is_wanted(api: OpenAI) -> None:
    asked = [{"role": "user", "content": "Tell me a story about a fox."}]
    [choice] = ask(api, asked, tools=TOOLS, max_tokens=400).choices
    assert choice.finish_reason == "stop"
    assert not choice.message.tool_calls
    assert "fox" in choice.message.content


def test_it_does_sums_by_itself_without_a_tool_for_them(api: OpenAI) -> None:
    asked = [{"role": "user", "content": "What is 27 + 5?"}]
    [choice] = ask(api, asked, tools=[WEATHER]).choices
    assert choice.message.content == "27 + 5 = 32."
