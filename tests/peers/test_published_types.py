"""Bodies and events hold to the types that the official client publishes, which it never checks itself; others do."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseItem, ResponseStreamEvent
from pydantic import TypeAdapter
from scripted import MODEL, Script, Scripted
from slipstream.protocol.messages import Formats

SAID = (
    "<think>I lo",
    "ok.</think>Let me see.<tool_call>",
    '{"name": "weather", "arguments": {"city"',
    ': "Rome"}}</tool_call>',
)
FORMATS = Formats(reasoning="qwen3", tool_calls="hermes")
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
FUNCTION = {"name": "weather", "parameters": SCHEMA}
CHAT_TOOLS = [{"type": "function", "function": FUNCTION}]
RESPONSES_TOOLS = [{"type": "function", **FUNCTION}]
CUSTOM = [{"type": "custom", "name": "weather"}]
HELLO = [{"role": "user", "content": "Hi"}]


def check(kind: Any, value: Any) -> None:
    """Whether it is of the published type as it stands, without a text for a number or the like."""
    TypeAdapter(kind).validate_python(value, strict=True)


def script(**more: Any) -> Script:
    return Script(*SAID, formats=FORMATS, **more)


def test_models_are_of_the_published_type() -> None:
    check(list[Model], Scripted().get("/v1/models").json["data"])


@pytest.mark.parametrize("finish", ["stop", "length"])
@pytest.mark.parametrize("fields", [{}, {"tools": CHAT_TOOLS}, {"return_token_ids": True}])
def test_chat_completions_are_of_the_published_types(fields: dict[str, Any], finish: str) -> None:
    body = {"messages": HELLO} | fields
    path = "/v1/chat/completions"
    check(ChatCompletion, Scripted(script(finish=finish)).post(path, body).json)
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, _ = Scripted(script(finish=finish)).post(path, body).events
    check(list[ChatCompletionChunk], chunks)


def test_completions_are_of_the_published_type() -> None:
    check(Completion, script_answer("/v1/completions", {"prompt": "x"}))


@pytest.mark.parametrize("finish", ["stop", "length", RuntimeError("no")])
@pytest.mark.parametrize("tools", [[], RESPONSES_TOOLS, CUSTOM])
def test_responses_and_their_events_are_of_the_published_types(tools: list[Any], finish: Any) -> None:
    body = {"input": "Hi", "tools": tools, "instructions": "Be brief.", "metadata": {"a": "b"}}
    if isinstance(finish, str):
        check(Response, script_answer("/v1/responses", body, finish=finish))
    answer = Scripted(script(finish=finish)).post("/v1/responses", body | {"stream": True})
    lines = answer.body.decode().splitlines()
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    for event in events:
        if event["type"] == "response.failed":  # whose code may be one of this service's own
            event["response"]["error"]["code"] = "server_error"
        check(ResponseStreamEvent, event)


def test_what_a_response_was_asked_is_of_the_published_type_and_its_labels_are_told() -> None:
    said = [{"role": role, "content": role} for role in ("system", "user", "assistant", "user")]
    labels = {"user": "u", "safety_identifier": "s", "prompt_cache_key": "k"}
    frontend = Scripted(Script("Yes."))
    answer = frontend.post("/v1/responses", {"input": said} | labels).json
    assert {name: answer[name] for name in labels} == labels
    items = frontend.get(f"/v1/responses/{answer['id']}/input_items").json["data"][::-1]
    check(list[ResponseItem], items)
    assert [(item["role"], item["content"][0]["text"]) for item in items] == [
        (message["role"], message["content"]) for message in said
    ]


def script_answer(path: str, body: dict[str, Any], **more: Any) -> Any:
    answer = Scripted(script(**more)).post(path, {"model": MODEL} | body)
    assert answer.status == 200
    return answer.json
