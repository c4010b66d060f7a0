# pyright: reportMissingImports=false, reportUnknownMemberType=false
"""Programs that people build agents with, on their own: the official client of Anthropic, and OpenAI's agents.

They run in an environment of their own (``make clients``), since they bring many packages. What a model says is
scripted; everything else is as its users have it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import anthropic
import httpx2
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
from anthropic.pagination import SyncPage
from anthropic.types import ErrorResponse, ModelInfo
from openai import AsyncOpenAI
from pydantic import BaseModel, TypeAdapter
from scripted import MODEL, Script, Scripted
from served import THINKS, Turns

CALL = (
    "<think>I lo",
    "ok.</think>Let me see.<tool_",
    'call>{"name": "weather", "arguments": {"city',
    '": "Rome"}}</tool_call>',
)

set_tracing_disabled(True)


def http_to(script: Script) -> httpx2.AsyncClient:
    transport = httpx2.ASGITransport(Scripted(script, hosts=None).app)
    return httpx2.AsyncClient(transport=transport, base_url="http://here")


# --- Anthropic's client ---------------------------------------------------------------------------

TOOLS: Any = [
    {
        "name": "weather",
        "description": "The weather of a city",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
    }
]
ASKED: Any = {"model": MODEL, "max_tokens": 50, "messages": [{"role": "user", "content": "Hi"}]}


def claude(script: Script, ask: Callable[[anthropic.AsyncAnthropic], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with anthropic.AsyncAnthropic(
            base_url="http://here", api_key="x", max_retries=0, http_client=http_to(script)
        ) as client:
            return await ask(client)

    return asyncio.run(run())


def test_anthropics_client_reads_thinking_text_and_tools() -> None:
    message = claude(
        Script(*CALL, formats=THINKS), lambda client: client.messages.create(**ASKED, tools=TOOLS)
    )
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
    assert message.content[2].input == {"city": "Rome"}
    assert message.stop_reason == "tool_use"


def test_anthropics_helper_for_streams_puts_the_same_message_together() -> None:
    async def ask(client: anthropic.AsyncAnthropic) -> Any:
        async with client.messages.stream(**ASKED, tools=TOOLS) as stream:
            texts = [text async for text in stream.text_stream]
            return texts, await stream.get_final_message()

    texts, message = claude(Script(*CALL, formats=THINKS, prompt_ids=[1, 2]), ask)
    assert "".join(texts) == "Let me see."
    assert message.content[0].thinking == "I look."
    assert message.content[2].input == {"city": "Rome"}
    assert message.usage.output_tokens == len(CALL)


def test_anthropics_client_knows_our_errors_and_counts_tokens() -> None:
    async def refused(client: anthropic.AsyncAnthropic) -> Any:
        with pytest.raises(anthropic.BadRequestError) as error:
            await client.messages.create(**ASKED | {"max_tokens": 0})
        return error.value

    assert "max_tokens=0" in str(claude(Script(), refused))

    async def count(client: anthropic.AsyncAnthropic) -> Any:
        return await client.messages.count_tokens(model=MODEL, messages=ASKED["messages"])

    assert claude(Script(), count).input_tokens > 0


def test_anthropics_tool_runner_goes_on_to_the_end() -> None:
    """It asks for a thread first, and after the refusal without."""
    asked: list[str] = []

    @anthropic.beta_async_tool
    async def weather(city: str) -> str:
        """The weather of a city."""
        asked.append(city)
        return f"Sunny in {city}."

    async def ask(client: anthropic.AsyncAnthropic) -> Any:
        return await client.beta.messages.tool_runner(**ASKED, tools=[weather]).until_done()

    script = Turns(CALL, ("It is su", "nny."))
    message = claude(script, ask)
    assert asked == ["Rome"]
    assert (message.content[0].text, message.stop_reason) == ("It is sunny.", "end_turn")
    assert script.asked["messages"][-1]["content"] == "Sunny in Rome."


def test_anthropics_client_lists_the_models_and_knows_the_id_of_a_request() -> None:
    async def ask(client: anthropic.AsyncAnthropic) -> Any:
        models = [model async for model in client.models.list()]
        with pytest.raises(anthropic.BadRequestError) as refused:
            await client.messages.create(**ASKED | {"max_tokens": 0})
        return (
            [*models, await client.models.retrieve(MODEL)],
            await client.messages.create(**ASKED),
            refused.value,
        )

    models, message, refused = claude(Script("Yes."), ask)
    assert [model.id for model in models] == [MODEL, MODEL]
    told = Scripted().get("/v1/models").body
    assert TypeAdapter(SyncPage[ModelInfo]).validate_json(told, strict=True).data == models[:1]
    assert len({message._request_id, refused.request_id, None}) == 3


@pytest.mark.parametrize("finish", ["stop", "length", RuntimeError("no")])
def test_messages_and_their_events_are_of_the_published_types(finish: Any) -> None:
    """As they stand, without a text for a number or the like: the client itself never checks them."""
    script = Script(*CALL, formats=THINKS, finish=finish)
    if isinstance(finish, str):
        TypeAdapter(anthropic.types.Message).validate_json(
            Scripted(script).post("/v1/messages", ASKED | {"tools": TOOLS}).body, strict=True
        )
    answer = Scripted(script).post("/v1/messages", ASKED | {"tools": TOOLS, "stream": True})
    lines = [line for line in answer.body.decode().splitlines() if line.startswith("data: ")]
    assert len(lines) > 10
    kind: Any = TypeAdapter(anthropic.types.RawMessageStreamEvent | ErrorResponse)
    for line in lines:
        kind.validate_json(line.removeprefix("data: "), strict=True)


# --- OpenAI's agents ------------------------------------------------------------------------------


@function_tool
def weather(city: str) -> str:
    """The weather of a city."""
    return f"Sunny in {city}."


class Report(BaseModel):
    sky: str


KINDS = [OpenAIResponsesModel, OpenAIChatCompletionsModel]


def agent_of(kind: Any, script: Script, **more: Any) -> Agent[Any]:
    client = AsyncOpenAI(base_url="http://here/v1", api_key="x", max_retries=0, http_client=http_to(script))
    return Agent("Weatherman", instructions="Be brief.", model=kind(MODEL, client), **more)


@pytest.mark.parametrize("kind", KINDS)
def test_an_agent_calls_its_tool_and_tells_what_came_of_it(kind: Any) -> None:
    script = Turns(CALL, ("<think>So.</think>It is su", "nny."))
    agent = agent_of(kind, script, tools=[weather])
    result = asyncio.run(Runner.run(agent, "Weather in Rome?"))
    assert result.final_output == "It is sunny."
    told = script.asked["messages"]
    assert told[-1]["content"] == "Sunny in Rome."
    assert told[-2]["tool_calls"][0]["function"]["name"] == "weather"


@pytest.mark.parametrize("kind", KINDS)
def test_an_agent_streams(kind: Any) -> None:
    async def run() -> tuple[str, Any]:
        result = Runner.run_streamed(
            agent_of(kind, Turns(CALL, ("It is su", "nny.")), tools=[weather]), "Weather in Rome?"
        )
        told = ""
        async for event in result.stream_events():
            data = getattr(event, "data", None)
            if getattr(data, "type", "") == "response.output_text.delta":
                told += data.delta  # type: ignore[union-attr]
        return told, result.final_output

    assert asyncio.run(run()) == ("Let me see.It is sunny.", "It is sunny.")


@pytest.mark.parametrize("kind", KINDS)
def test_an_agent_has_structured_output(kind: Any) -> None:
    script = Turns(('{"sky": "blue"}',))
    result = asyncio.run(Runner.run(agent_of(kind, script, output_type=Report), "Sky?"))
    assert result.final_output == Report(sky="blue")
    assert script.asked["params"].json_schema["properties"]["sky"]["type"] == "string"


@pytest.mark.parametrize("kind", KINDS)
def test_an_agent_hands_over_to_another(kind: Any) -> None:
    handing = '<tool_call>{"name": "transfer_to_weatherman", "arguments": {}}</tool_call>'
    script = Turns((handing,), ("Sunny.",))
    weatherman = agent_of(kind, script)
    first = Agent("First", model=weatherman.model, handoffs=[weatherman])
    assert asyncio.run(Runner.run(first, "Weather?")).final_output == "Sunny."


def test_an_agent_goes_on_from_its_last_response() -> None:
    script = Turns(("Hello.",), ("Again.",))
    agent = agent_of(
        OpenAIResponsesModel,
        script,
        model_settings=ModelSettings(reasoning={"effort": "low"}, verbosity="low", store=True),  # type: ignore[arg-type]
    )

    async def run() -> Any:
        first = await Runner.run(agent, "Hi")
        return await Runner.run(agent, "And?", previous_response_id=first.last_response_id)

    assert asyncio.run(run()).final_output == "Again."
    said = [(message["role"], message["content"]) for message in script.asked["messages"]]
    assert said == [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "And?")]
