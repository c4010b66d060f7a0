# pyright: reportMissingImports=false, reportUnknownMemberType=false
"""Frameworks that agents are built with in Python, each with a tool, a stream and structured output.

They run in an environment of their own (``make clients``). What a model says is scripted; all else is real.
"""

from __future__ import annotations

import asyncio
from typing import Any

import instructor
import litellm
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.prebuilt import create_react_agent
from openai import OpenAI
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from scripted import MODEL
from served import Turns, served

CALL = (
    "<think>I lo",
    "ok.</think><tool_",
    'call>{"name": "weather", "arguments": {"city',
    '": "Rome"}}</tool_call>',
)
SUNNY = ("It is su", "nny.")
BLUE = ('{"sky": ', '"blue"}')


class Report(BaseModel):
    sky: str


def weather(city: str) -> str:
    """The weather of a city."""
    return f"Sunny in {city}."


def called(script: Turns) -> Any:
    """The names of the tools that the model was shown, and the last message of the conversation."""
    asked = script.asked
    return list(asked["offered"].functions), asked["messages"][-1]


# --- pydantic-ai ----------------------------------------------------------------------------------


def pydantic_model(url: str, kind: Any = OpenAIChatModel) -> Any:
    return kind(MODEL, provider=OpenAIProvider(base_url=f"{url}/v1", api_key="none"))


def test_pydantic_ai_calls_a_tool() -> None:
    for kind in (OpenAIChatModel, OpenAIResponsesModel):
        script = Turns(CALL, SUNNY)
        with served(script) as url:
            agent = Agent(pydantic_model(url, kind), tools=[weather])
            assert agent.run_sync("Weather in Rome?").output == "It is sunny."
        assert called(script)[1]["content"] == "Sunny in Rome."


def test_pydantic_ai_streams_and_has_structured_output() -> None:
    async def told(url: str) -> str:
        async with Agent(pydantic_model(url)).run_stream("Hi") as result:
            return "".join([text async for text in result.stream_text(delta=True)])

    script = Turns(SUNNY, BLUE)
    with served(script) as url:
        assert asyncio.run(told(url)) == "It is sunny."
        agent = Agent(pydantic_model(url), output_type=NativeOutput(Report))
        assert agent.run_sync("Sky?").output == Report(sky="blue")
    assert script.asked["params"].json_schema["properties"]["sky"]["type"] == "string"


# --- LangChain ------------------------------------------------------------------------------------


def langchain(url: str, **more: Any) -> ChatOpenAI:
    return ChatOpenAI(model=MODEL, base_url=f"{url}/v1", api_key="none", max_retries=0, **more)  # type: ignore[arg-type]


def test_langchain_binds_strict_tools_and_streams_their_calls() -> None:
    script = Turns(CALL, CALL)
    with served(script) as url:
        bound = langchain(url).bind_tools([tool(weather)], strict=True)
        whole = bound.invoke("Weather in Rome?")
        assert isinstance(whole, AIMessage)
        assert [(call["name"], call["args"]) for call in whole.tool_calls] == [("weather", {"city": "Rome"})]
        first, *others = bound.stream("Weather in Rome?")
        for other in others:
            first += other
        assert [call["args"] for call in first.tool_calls] == [{"city": "Rome"}]  # type: ignore[union-attr]


def test_a_langgraph_agent_runs_its_tool() -> None:
    script = Turns(CALL, SUNNY)
    with served(script) as url:
        agent = create_react_agent(langchain(url), [tool(weather)])
        told = agent.invoke({"messages": [("user", "Weather in Rome?")]})
    assert told["messages"][-1].content == "It is sunny."
    assert called(script)[1]["content"] == "Sunny in Rome."


def test_langchain_has_structured_output_by_both_ways() -> None:
    with served(Turns(BLUE, BLUE)) as url:
        for method in ("json_schema", "function_calling"):
            assert langchain(url).with_structured_output(Report, method=method).invoke("Sky?") == Report(
                sky="blue"
            )  # type: ignore[arg-type]


# --- LiteLLM and instructor -----------------------------------------------------------------------

FUNCTION = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def test_litellm_has_tools_streams_and_structured_output() -> None:
    hello: Any = [{"role": "user", "content": "Hi"}]
    with served(Turns(CALL, SUNNY, BLUE)) as url:
        to: Any = {
            "model": f"hosted_vllm/{MODEL}",
            "api_base": f"{url}/v1",
            "api_key": "none",
            "messages": hello,
        }
        message = litellm.completion(**to, tools=[FUNCTION], reasoning_effort="low").choices[0].message  # type: ignore[union-attr]
        assert message.tool_calls[0].function.arguments == '{"city": "Rome"}'
        assert message.reasoning_content == "I look."
        parts = litellm.completion(**to, stream=True)
        assert "".join(part.choices[0].delta.content or "" for part in parts) == "It is sunny."  # type: ignore[union-attr]
        told = litellm.completion(**to, response_format=Report).choices[0].message.content  # type: ignore[union-attr]
        assert Report.model_validate_json(told or "") == Report(sky="blue")


def test_instructor_has_its_models_whole_and_in_part() -> None:
    hello: Any = [{"role": "user", "content": "Sky?"}]
    with served(Turns(BLUE, BLUE, BLUE)) as url:
        plain = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
            client = instructor.from_openai(plain, mode=mode)
            assert client.create(model=MODEL, messages=hello, response_model=Report).sky == "blue"
        client = instructor.from_openai(plain)
        *_, last = client.create_partial(model=MODEL, messages=hello, response_model=Report)
        assert last.sky == "blue"
