"""The Responses API as the official client sees it; what the model says is scripted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI
from openai.types import chat, responses
from openai.types.chat.parsed_function_tool_call import ParsedFunction
from openai.types.responses import response_input_item_param
from openai.types.responses.response_create_params import ResponseCreateParamsBase
from pydantic import BaseModel
from scripted import MODEL, Script, Scripted
from slipstream.actors.http.errors import Problem
from slipstream.actors.http.responses import items
from slipstream.actors.http.responses.items import ITEMS, messages_of
from slipstream.actors.http.responses.store import Store, Stored
from slipstream.actors.http.responses.tools import TOOLS as TOOL_KEYS
from slipstream.actors.http.responses.tools import tools_of
from slipstream.actors.text.prompts import keys
from slipstream.protocol.messages import Formats

from slipstream import InvalidRequest

THINKS = Formats(reasoning="qwen3", tool_calls="hermes")

TOOLS: Any = [
    {
        "type": "function",
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    }
]

CALL = (
    "<think>I lo",
    "ok.</think>Let me see.<tool_call>",
    '{"name": "weather", "arguments": {"city"',
    ': "Rome"}}</tool_call>',
)


def talk(script: Script, ask: Callable[[AsyncOpenAI, Scripted], Awaitable[Any]]) -> Any:
    """What ``ask`` returns, given a client of a frontend before this script."""
    frontend = Scripted(script, hosts=None)

    async def run() -> Any:
        transport = httpx2.ASGITransport(frontend.app)
        http = httpx2.AsyncClient(transport=transport, base_url="http://here")
        async with AsyncOpenAI(
            base_url="http://here/v1", api_key="x", max_retries=0, http_client=http
        ) as client:
            return await ask(client, frontend)

    return asyncio.run(run())


def create(script: Script, **fields: Any) -> Any:
    async def ask(client: AsyncOpenAI, frontend: Scripted) -> Any:
        made: Any = client.responses.create
        return await made(**{"model": MODEL, "input": "Hi"} | fields)

    return talk(script, ask)


def stream(script: Script, **fields: Any) -> list[Any]:
    async def ask(client: AsyncOpenAI, frontend: Scripted) -> Any:
        made: Any = client.responses.create
        return [
            event async for event in await made(**{"model": MODEL, "input": "Hi", "stream": True} | fields)
        ]

    return talk(script, ask)


def test_an_answer_has_thoughts_text_and_calls_as_items() -> None:
    response = create(Script(*CALL, formats=THINKS), tools=TOOLS)
    thoughts, text, call = response.output
    assert thoughts.type == "reasoning"
    assert thoughts.content[0].text == "I look."
    assert text.content[0].text == response.output_text == "Let me see."
    assert (call.type, call.name, json.loads(call.arguments)) == (
        "function_call",
        "weather",
        {"city": "Rome"},
    )
    assert response.status == "completed"
    assert (response.usage.input_tokens, response.usage.output_tokens) == (3, len(CALL))


def test_a_stream_tells_the_same_in_the_published_events() -> None:
    events = stream(Script(*CALL, formats=THINKS), tools=TOOLS)
    whole = create(Script(*CALL, formats=THINKS), tools=TOOLS)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds == [
        *("created", "in_progress"),
        *("output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.delta"),
        *("reasoning_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "content_part.added", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done"),
        "completed",
    ]
    told = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert told == whole.output_text
    arguments = "".join(event.delta for event in events if event.type.endswith("arguments.delta"))
    assert arguments == whole.output[2].arguments
    items = [event.item for event in events if event.type == "response.output_item.done"]
    assert items == events[-1].response.output
    assert [item.type for item in items] == [item.type for item in whole.output]
    added = [event.item for event in events if event.type == "response.output_item.added"]
    assert [item.id for item in added] == [item.id for item in items]
    assert all(item.status == "in_progress" for item in added)


def test_the_helper_for_streams_understands_them() -> None:
    async def ask(client: AsyncOpenAI, frontend: Scripted) -> Any:
        async with client.responses.stream(model=MODEL, input="Hi", tools=TOOLS) as events:
            async for _ in events:
                pass
            return await events.get_final_response()

    response = talk(Script(*CALL, formats=THINKS), ask)
    assert response.output_text == "Let me see."
    assert json.loads(response.output[2].arguments) == {"city": "Rome"}


class Sum(BaseModel):
    value: int


def test_structured_text_is_made_to_match_and_parsed() -> None:
    async def ask(client: AsyncOpenAI, frontend: Scripted) -> Any:
        parsed = await client.responses.parse(model=MODEL, input="2 + 2?", text_format=Sum)
        return parsed.output_parsed, frontend.script.asked["params"].json_schema

    value, schema = talk(Script('{"value": 4}'), ask)
    assert value == Sum(value=4)
    assert schema["properties"]["value"]["type"] == "integer"


def test_the_items_of_an_agents_turn_become_one_conversation() -> None:
    async def ask(client: AsyncOpenAI, frontend: Scripted) -> Any:
        items: Any = [
            {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
            {
                "type": "reasoning",
                "id": "rs_1",
                "summary": [],
                "content": [{"type": "reasoning_text", "text": "Hm."}],
            },
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
            {"type": "function_call", "call_id": "a", "name": "weather", "arguments": '{"city": "Rome"}'},
            {"type": "function_call", "call_id": "b", "name": "weather", "arguments": '{"city": "Bern"}'},
            {"type": "function_call_output", "call_id": "a", "output": "20"},
            {"type": "function_call_output", "call_id": "b", "output": "10"},
        ]
        await client.responses.create(model=MODEL, instructions="Be brief.", input=items, tools=TOOLS)
        return frontend.script.asked["messages"]

    system, user, assistant, *results = talk(Script("Yes."), ask)
    assert system == {"role": "system", "content": "Be brief."}
    assert user == {"role": "user", "content": "Weather?"}
    assert (assistant["reasoning"], assistant["content"]) == ("Hm.", "I look.")
    assert [call["id"] for call in assistant["tool_calls"]] == ["a", "b"]
    assert [(one["tool_call_id"], one["content"]) for one in results] == [("a", "20"), ("b", "10")]


def test_a_conversation_goes_on_from_a_response_that_is_kept() -> None:
    async def ask(client: AsyncOpenAI, frontend: Scripted) -> Any:
        first = await client.responses.create(model=MODEL, input="Hi", instructions="Be brief.")
        await client.responses.create(model=MODEL, input="And?", previous_response_id=first.id)
        followed = frontend.script.asked["messages"]
        assert (await client.responses.retrieve(first.id)).output_text == "Yes."
        items = await client.responses.input_items.list(first.id)
        assert items.data[0].content[0].text == "Hi"  # type: ignore[union-attr]
        await client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(first.id)
        with pytest.raises(openai.NotFoundError, match="send the whole conversation") as gone:
            await client.responses.create(model=MODEL, input="And?", previous_response_id=first.id)
        assert gone.value.param == "previous_response_id"
        unkept = await client.responses.create(model=MODEL, input="Hi", store=False)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(unkept.id)
        return followed

    assert talk(Script("Yes."), ask) == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "And?"},
    ]


def test_the_input_of_a_response_comes_in_pages() -> None:
    async def ask(client: AsyncOpenAI, frontend: Scripted) -> Any:
        said: Any = [{"role": "user", "content": str(number)} for number in range(30)]
        asked = await client.responses.create(model=MODEL, input=said)
        pages = client.responses.input_items
        first = await pages.list(asked.id)
        rest = await pages.list(asked.id, after=first.data[-1].id)
        for wrong in ({"limit": 0}, {"limit": 101}, {"order": "up"}, {"after": "nobody"}):
            with pytest.raises(openai.BadRequestError) as refused:
                await pages.list(asked.id, extra_query=wrong)
            assert [refused.value.param] == list(wrong)
        for name, value in (("stream", "true"), ("starting_after", "3")):
            with pytest.raises(openai.BadRequestError, match=f"{name}: .* told whole"):
                await client.responses.retrieve(asked.id, extra_query={name: value})
        with pytest.raises(openai.BadRequestError, match=r"include has 'file_search_call\.results'"):
            await client.responses.retrieve(asked.id, include=["file_search_call.results"])
        with pytest.raises(openai.BadRequestError, match=r"include has 'message\.output_text\.logprobs'"):
            await pages.list(asked.id, include=["message.output_text.logprobs"])
        await client.responses.retrieve(asked.id, include=["reasoning.encrypted_content"])
        return first, rest, (await pages.list(asked.id, order="asc", limit=2)).data

    first, rest, begin = talk(Script("Yes."), ask)
    assert [item.content[0].text for item in first.data] == [str(number) for number in range(29, 9, -1)]
    assert [item.content[0].text for item in rest.data] == [str(number) for number in range(9, -1, -1)]
    assert (first.has_more, rest.has_more) == (True, False)
    assert [item.content[0].text for item in begin] == ["0", "1"]


def test_items_of_kept_responses_can_be_referred_to() -> None:
    """As the AI SDK does with what it has had before, since responses are kept by default."""

    async def ask(client: AsyncOpenAI, frontend: Scripted) -> Any:
        first = await client.responses.create(model=MODEL, input="Weather?", tools=TOOLS)
        refer: Any = [{"type": "item_reference", "id": item.id} for item in first.output]
        call = first.output[-1]
        done: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny"}  # type: ignore[union-attr]
        given: Any = [{"role": "user", "content": "Weather?"}, *refer, done]
        await client.responses.create(model=MODEL, input=given, tools=TOOLS)
        again: Any = frontend.script.asked["messages"]
        assert [message["role"] for message in again] == ["user", "assistant", "tool"]
        assert again[1]["tool_calls"][0]["id"] == call.call_id  # type: ignore[union-attr]
        assert again[1]["content"] == "Let me see."
        await client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError, match=r"input\[1\].id is .*send the item itself") as gone:
            await client.responses.create(
                model=MODEL, input=[given[0], {"type": "item_reference", "id": "x"}]
            )
        return gone.value

    gone = talk(Script(*CALL, formats=THINKS), ask)
    assert (gone.param, gone.code) == ("input[1].id", "item_not_found")


def test_an_input_refers_to_no_more_than_fits_into_a_body() -> None:
    store = Store()
    item = {"id": "long", "role": "user", "content": "x" * 1_000_000}
    store.put(Stored({"id": "r"}, [item]))
    reference = {"type": "item_reference", "id": "long"}
    assert store.whole([reference] * 16) == [item] * 16
    with pytest.raises(Problem, match=r"refers to has more than 16777216 bytes up to input\[16\]") as refused:
        store.whole([reference] * 100_000)
    assert (refused.value.status, refused.value.error["param"]) == (400, "input")
    store.drop("r")
    assert not store.items


def test_long_arguments_are_left_to_who_writes_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading megabytes of them here would hold up all streams."""
    call = {"type": "function_call", "call_id": "a", "name": "weather", "arguments": "[" * 30}
    monkeypatch.setattr(items, "SHORT_BYTES", 59)
    with pytest.raises(InvalidRequest, match=r"input\[0\].arguments is no JSON object"):
        messages_of([call])
    good = call | {"arguments": json.dumps({"city": "R" * 20})}
    first, second = messages_of([good, good])[0]["tool_calls"]
    assert first["function"]["arguments"] == {"city": "R" * 20}
    assert second["function"]["arguments"] == good["arguments"]


def test_what_is_too_much_for_any_conversation_is_refused_at_the_first_that_is() -> None:
    with pytest.raises(InvalidRequest, match="input has more than 8192 messages"):
        messages_of(
            [{"role": "user", "content": "x"}] * 8192 + [{"role": "wrong", "content": "x"}, {"type": "no"}]
        )
    with pytest.raises(InvalidRequest, match="tools has 1025 tools; the limit is 1024"):
        tools_of([{"type": "function"}] * 1025)


def test_the_oldest_responses_are_forgotten_when_there_is_no_room() -> None:
    for store in (Store(max_responses=2), Store(max_bytes=700)):
        for number in range(5):
            store.put(Stored({"id": str(number), "text": "x" * 280}, []))
        assert list(store.kept) == ["3", "4"]
        assert store.bytes == sum(stored.size for stored in store.kept.values())
        store.put(Stored({"id": "3", "text": ""}, []))
        store.drop("4")
        assert store.bytes == store.kept["3"].size


def test_a_response_in_the_background_is_asked_for_until_it_is_complete() -> None:
    async def ask(client: AsyncOpenAI, frontend: Scripted) -> Any:
        begun = await client.responses.create(model=MODEL, input="Hi", background=True)
        assert begun.status == "queued"
        await asyncio.wait(frontend.service.background)
        return await client.responses.retrieve(begun.id)

    made = talk(Script("Yes."), ask)
    assert (made.status, made.output_text, made.background) == ("completed", "Yes.", True)


def test_a_response_in_the_background_can_be_cancelled() -> None:
    async def ask(client: AsyncOpenAI, frontend: Scripted) -> Any:
        begun = await client.responses.create(model=MODEL, input="Hi", background=True)
        while not frontend.script.running:
            await asyncio.sleep(0)
        cancelled = await client.responses.cancel(begun.id)
        assert frontend.script.running == 0
        return cancelled

    assert talk(Script("Yes.", ends=False), ask).status == "cancelled"


def test_a_drain_waits_for_what_is_made_in_the_background() -> None:
    async def ask(client: AsyncOpenAI, frontend: Scripted) -> Any:
        begun = await client.responses.create(model=MODEL, input="Hi", background=True)
        drained = asyncio.create_task(frontend.app.drained())
        for _ in range(10):
            await asyncio.sleep(0)
        waits = not drained.done()
        frontend.script.closed.set()
        await drained
        return waits, (await client.responses.retrieve(begun.id)).status

    assert talk(Script("Yes.", ends=False), ask) == (True, "failed")


def test_a_null_of_any_published_field_is_as_good_as_none() -> None:
    fields = set(ResponseCreateParamsBase.__annotations__) - {"input", "model"}
    assert create(Script("Yes."), extra_body=dict.fromkeys(fields)).output_text == "Yes."


@pytest.mark.parametrize(
    ("choice", "place"),
    [("required", "json_schema.$defs.0"), ({"type": "function", "name": "weather"}, "json_schema")],
)
def test_a_schema_that_cannot_be_followed_is_named_as_it_was_written(choice: Any, place: str) -> None:
    error = InvalidRequest(f"{place} cannot be followed: it is odd", param=place)
    with pytest.raises(openai.BadRequestError, match=r"tools\[0\]\.parameters cannot be followed") as refused:
        create(Script("x", finish=error), tools=TOOLS, tool_choice=choice)
    assert refused.value.param == "tools[0].parameters"


def test_an_answer_at_its_limit_is_incomplete() -> None:
    response = create(Script("Yes", finish="length"), max_output_tokens=1)
    assert response.status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"
    assert stream(Script("Yes", finish="length"))[-1].type == "response.incomplete"


def test_a_stream_that_fails_says_so_in_its_last_event() -> None:
    events = stream(Script("Yes", finish=RuntimeError("secret")))
    last = events[-1]
    assert last.type == "response.failed"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    [done] = [event.item for event in events if event.type == "response.output_item.done"]
    assert (done.status, done.content[0].text) == ("incomplete", "Yes")
    assert last.response.error.code == "internal"
    assert "secret" not in last.response.error.message


def test_a_custom_tool_is_called_with_a_text() -> None:
    tool: Any = {"type": "custom", "name": "patch", "description": "Applies a patch"}
    script = Script('<tool_call>{"name": "patch", "arguments": {"input": "*** a"}}</tool_call>')
    response = create(script, tools=[tool])
    assert (response.output[0].type, response.output[0].input) == ("custom_tool_call", "*** a")
    half = Script(r'<tool_call>{"name": "patch", "arguments": {"input": "a\ud800b"}}</tool_call>')
    assert create(half, tools=[tool]).output[0].input == "a\ufffdb", "half a character cannot be sent"


def allowed(name: Any) -> dict[str, Any]:
    return {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": name}]}


FORMAT: Any = {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "file_search", "vector_store_ids": []}]}, "tools[0].type"),
        ({"tools": TOOLS * 2}, "tools[1].name"),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice"),
        ({"input": [{"type": "input_image"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"background": True, "store": False}, "background"),
        ({"include": ["web_search_call.results"]}, "include"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format"),
        ({"text": {"format": {"type": "text", "schema": {}}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_object", "schema": {}}}}, "text.format.schema"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"input": [{"type": "reasoning", "content": 5}]}, "input[0].content"),
        ({"input": [{"type": "reasoning", "summary": ["I thought"]}]}, "input[0].summary[0]"),
        ({"tools": TOOLS, "tool_choice": allowed([])}, "tool_choice.tools[0]"),
        ({"tools": TOOLS, "tool_choice": allowed("another")}, "tool_choice.tools[0]"),
        ({"text": {"format": {**FORMAT["format"], "schema": {"title": "x" * 40_000}}}}, "text.format.schema"),
        ({"extra_body": {"n": 2}}, "n"),
        ({"extra_body": {"no_such": 2}}, "no_such"),
    ],
)
def test_what_is_not_served_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        create(Script("Yes."), **fields)
    assert str(refused.value.param).startswith(param)


def test_a_form_of_the_text_beside_a_call_that_is_demanded_is_about_nothing() -> None:
    said = Script('[{"name": "weather", "arguments": {"city": "Rome"}}]')
    response = create(said, tools=TOOLS, tool_choice="required", text=FORMAT)
    assert [item.type for item in response.output] == ["function_call"]


PART = {"type": "input_text", "text": "x"}
CALLED: dict[str, Any] = {"type": "function_call", "call_id": "a", "name": "weather", "arguments": "{}"}
RESULT: dict[str, Any] = {"type": "function_call_output", "call_id": "a", "output": [PART]}
PATCH = {"type": "custom_tool_call", "call_id": "a", "name": "patch", "input": "x"}
THOUGHT = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]}
USER = {"role": "user", "content": [PART]}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": [USER, USER | {"colour": 1}]}, "input[1].colour"),
        ({"input": [{"role": "user", "content": [PART | {"colour": 1}]}]}, "input[0].content[0].colour"),
        ({"input": [USER, CALLED | {"colour": 1}]}, "input[1].colour"),
        ({"input": [RESULT | {"output": [PART | {"colour": 1}]}]}, "input[0].output[0].colour"),
        ({"input": [RESULT | {"colour": 1}]}, "input[0].colour"),
        ({"input": [PATCH | {"colour": 1}]}, "input[0].colour"),
        ({"input": [THOUGHT | {"colour": 1}]}, "input[0].colour"),
        (
            {"input": [THOUGHT | {"summary": [THOUGHT["summary"][0] | {"colour": 1}]}]},  # type: ignore[index]
            "input[0].summary[0].colour",
        ),
        ({"tools": [TOOLS[0] | {"colour": 1}]}, "tools[0].colour"),
        ({"tools": [TOOLS[0] | {"defer_loading": True}]}, "tools[0].defer_loading"),
        (
            {"tools": [{"type": "namespace", "name": "a", "tools": [TOOLS[0] | {"x": 1}]}]},
            "tools[0].tools[0].x",
        ),
        ({"tools": [{"type": "namespace", "name": "a", "colour": 1}]}, "tools[0].colour"),
        ({"tools": [{"type": "web_search", "colour": 1}]}, "tools[0].colour"),
        (
            {"tools": [{"type": "custom", "name": "p", "format": {"type": "text", "colour": 1}}]},
            "tools[0].format.colour",
        ),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "name": "weather", "x": 1}},
            "tool_choice.x",
        ),
        ({"tools": TOOLS, "tool_choice": allowed("weather") | {"x": 1}}, "tool_choice.x"),
        ({"input": [USER, {"role": "user", "content": None}]}, "input[1].content"),
        ({"input": [USER, RESULT | {"output": None}]}, "input[1].output"),
        ({"input": [USER, CALLED | {"name": None}]}, "input[1].name"),
        ({"input": [USER, CALLED | {"call_id": 5}]}, "input[1].call_id"),
        ({"input": [USER, PATCH | {"input": 5}]}, "input[1].input"),
        ({"instructions": "x", "input": [{"role": "user", "content": 5}]}, "input[0].content"),
        ({"tools": [TOOLS[0] | {"strict": 5}]}, "tools[0].strict"),
        ({"tools": [{"type": []}]}, "tools[0].type"),
        ({"tools": [{"type": "namespace", "tools": 5}]}, "tools[0].tools"),
        ({"tools": [{"type": "namespace", "name": 5, "tools": TOOLS}]}, "tools[0].name"),
        ({"tools": [{"type": "namespace", "tools": [5]}]}, "tools[0].tools[0].type"),
    ],
)
def test_what_nobody_reads_is_refused_by_the_path_that_the_caller_wrote(
    fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        create(Script("Yes."), **fields)
    assert refused.value.param == param


def test_items_may_have_every_field_that_the_official_client_knows() -> None:
    """But for what asks for something that this service does not do."""
    kinds = {
        "message": (responses.EasyInputMessageParam, responses.ResponseOutputMessageParam),
        "function_call": (responses.ResponseFunctionToolCallParam,),
        "custom_tool_call": (responses.ResponseCustomToolCallParam,),
        "function_call_output": (response_input_item_param.FunctionCallOutput,),
        "custom_tool_call_output": (responses.ResponseCustomToolCallOutputParam,),
        "reasoning": (responses.ResponseReasoningItemParam,),
    }
    assert kinds.keys() == ITEMS.keys()
    for kind, params in kinds.items():
        known = set().union(*(one.__annotations__ for one in params))
        assert known <= ITEMS[kind].meant | ITEMS[kind].idle, kind
    for part in (responses.ResponseInputTextParam, responses.ResponseOutputTextParam):
        assert set(part.__annotations__) <= items.PART.meant | items.PART.idle
    tools = {"function": responses.FunctionToolParam, "custom": responses.CustomToolParam}
    tools |= {"namespace": responses.NamespaceToolParam, "web_search": responses.WebSearchToolParam}
    for kind, param in tools.items():
        of_tool = TOOL_KEYS[kind]
        named = of_tool.meant | of_tool.idle | set(of_tool.fixed)
        assert set(param.__annotations__) - {"output_schema"} <= named, kind


def test_a_message_may_have_every_field_that_the_official_client_knows() -> None:
    """But for calls and answers of kinds that this service does not have."""
    params: list[Any] = [chat.ChatCompletionAssistantMessageParam, chat.ChatCompletionToolMessageParam]
    params += [chat.ChatCompletionUserMessageParam, chat.ChatCompletionDeveloperMessageParam]
    params += [chat.ChatCompletionMessage, chat.ParsedChatCompletionMessage]
    known = set().union(*(one.__annotations__ for one in params)) - {"audio", "function_call"}
    assert known <= keys.MESSAGE.meant | keys.MESSAGE.idle
    call: set[str] = set(chat.ChatCompletionMessageFunctionToolCall.__annotations__)
    assert call <= keys.CALL.meant
    assert set(ParsedFunction.__annotations__) <= keys.CALLED.meant | keys.CALLED.idle
    assert set(chat.ChatCompletionContentPartTextParam.__annotations__) <= keys.TEXT.meant | keys.TEXT.idle


def test_a_tool_of_a_namespace_is_called_with_it() -> None:
    space: Any = {"type": "namespace", "name": "sky", "description": "Above us", "tools": TOOLS}
    call = create(Script(*CALL, formats=THINKS), tools=[space, {"type": "web_search"}]).output[2]
    assert (call.name, call.namespace) == ("weather", "sky")


def test_what_agents_send_by_default_is_taken() -> None:
    response = create(
        Script("Yes."),
        tools=TOOLS,
        tool_choice="auto",
        parallel_tool_calls=False,
        store=False,
        include=["reasoning.encrypted_content"],
        reasoning={"effort": "medium", "summary": "auto"},
        text={"verbosity": "low"},
        prompt_cache_key="a",
        truncation="disabled",
        metadata={"a": "b"},
        extra_body={"client_metadata": {"turn_id": "1"}},
    )
    assert response.output_text == "Yes."
    assert response.metadata == {"a": "b"}
