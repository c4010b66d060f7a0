# pyright: reportMissingImports=false, reportUnknownMemberType=false
"""First examples of frameworks, as their documents have them, on the bundled model: nothing is scripted.

They run in an environment of their own (``make clients``), against a service of the one that serves.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import litellm
import pytest
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.prebuilt import create_react_agent
from openai import AsyncOpenAI
from pydantic_ai import Agent as PydanticAgent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.models.openai import OpenAIResponsesModel as PydanticResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

MODEL = "slipstream-bundled"
SERVE = Path(__file__).parents[2] / ".venv" / "bin" / "slipstream"
QUESTION = "What is the weather in Rome?"
FOUND = "sunny, 21 degrees"
ANSWER = "The weather in Rome is sunny, 21 degrees."

set_tracing_disabled(True)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    ready, write_end = os.pipe()
    options = ("--device=cpu", "--dtype=float32", "--http=127.0.0.1:0", f"--ready-fd={write_end}")
    with subprocess.Popen(
        [SERVE, "serve", *options, "--exit-with-parent"], pass_fds=(write_end,), stderr=subprocess.DEVNULL
    ) as process:
        os.close(write_end)
        try:
            with open(ready, encoding="utf-8") as line:
                yield json.loads(line.readline())["http"]
        finally:
            process.terminate()
    assert process.returncode == 0


@pytest.fixture
def cities() -> list[str]:
    """Those that the tool was called for."""
    return []


def weather_tool(cities: list[str]) -> Any:
    def get_weather(city: str) -> str:
        """Get the weather for a given city."""
        cities.append(city)
        return FOUND

    return get_weather


@pytest.mark.parametrize("kind", [OpenAIResponsesModel, OpenAIChatCompletionsModel])
def test_an_agent_of_openai_asks_its_tool_and_tells_the_weather(
    url: str, cities: list[str], kind: Any
) -> None:
    client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    agent = Agent(
        "Weather",
        instructions="You are a helpful assistant.",
        model=kind(MODEL, client),
        model_settings=ModelSettings(temperature=0),
        tools=[function_tool(weather_tool(cities))],
    )
    assert asyncio.run(Runner.run(agent, QUESTION)).final_output == ANSWER
    assert cities == ["Rome"]


@pytest.mark.parametrize("kind", [OpenAIChatModel, PydanticResponsesModel])
def test_an_agent_of_pydantic_ai_does_so(url: str, cities: list[str], kind: Any) -> None:
    model = kind(MODEL, provider=OpenAIProvider(base_url=f"{url}/v1", api_key="none"))
    agent = PydanticAgent(
        model, instructions="Be concise.", model_settings={"temperature": 0}, tools=[weather_tool(cities)]
    )
    assert agent.run_sync(QUESTION).output == ANSWER
    assert cities == ["Rome"]


def test_an_agent_of_langgraph_does_so(url: str, cities: list[str]) -> None:
    model: Any = ChatOpenAI(model=MODEL, base_url=f"{url}/v1", api_key="none", temperature=0)  # type: ignore[arg-type]
    agent = create_react_agent(model, [tool(weather_tool(cities))], prompt="You are a helpful assistant")
    told = agent.invoke({"messages": [{"role": "user", "content": QUESTION}]})
    assert told["messages"][-1].content == ANSWER
    assert cities == ["Rome"]


GREEDY = {"temperature": 0}
"""Anthropic's client has no word for it any more."""

SCHEMA: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def test_anthropics_client_gets_the_call_and_the_answer(url: str) -> None:
    tools: Any = [
        {"name": "get_weather", "description": "Get the weather of a city.", "input_schema": SCHEMA}
    ]
    client = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
    asked: Any = {"model": MODEL, "max_tokens": 200, "tools": tools, "extra_body": GREEDY}
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    first = client.messages.create(messages=messages, **asked)
    [use] = [block for block in first.content if block.type == "tool_use"]
    assert (first.stop_reason, use.name, use.input) == ("tool_use", "get_weather", {"city": "Rome"})
    result = {"type": "tool_result", "tool_use_id": use.id, "content": FOUND}
    messages += [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    second = client.messages.create(messages=messages, **asked)
    assert (second.stop_reason, second.content[0].text) == ("end_turn", ANSWER)  # type: ignore[union-attr]


def test_litellm_gets_the_call_and_the_answer(url: str) -> None:
    function = {"name": "get_weather", "description": "Get the weather of a city.", "parameters": SCHEMA}
    to: Any = {"model": f"hosted_vllm/{MODEL}", "api_base": f"{url}/v1", "api_key": "none", "temperature": 0}
    to["tools"] = [{"type": "function", "function": function}]
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    first: Any = litellm.completion(messages=messages, **to)
    [call] = first.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Rome"})
    messages += [first.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": FOUND}]
    second: Any = litellm.completion(messages=messages, **to)
    assert second.choices[0].message.content == ANSWER
