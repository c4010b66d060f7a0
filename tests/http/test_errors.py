"""Which field an error names: the one that the caller wrote, under its own name and at its own place."""

from __future__ import annotations

import json
from typing import Any

import pytest
from scripted import Script, Scripted
from slipstream.protocol.errors import InvalidRequest

HELLO = [{"role": "user", "content": "hello"}]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
TOOL = {"type": "function", "function": {"name": "now", "parameters": SCHEMA}}
OTHER = {"type": "function", "function": {"name": "later", "parameters": SCHEMA}}
NAMED = {"type": "function", "function": {"name": "now"}}
LONG = {"type": "object", "description": "x" * 40_000}

REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "top_logprobs=21 is out of range"),
    (CHAT, {"max_completion_tokens": 99999}, "max_completion_tokens", "max_completion_tokens=99999 is"),
    (CHAT, {"max_tokens": 99999}, "max_tokens", "max_tokens=99999 is"),
    (TEXT, {"prompt": "x", "logprobs": 21, "echo": True}, "logprobs", "logprobs=21 is out of range"),
    (
        CHAT,
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": LONG}}},
        "response_format.json_schema.schema",
        "response_format.json_schema.schema has ",
    ),
    (
        CHAT,
        {"response_format": {"type": "text", "json_schema": {"name": "x", "schema": SCHEMA}}},
        "response_format.json_schema",
        "goes with type json_schema, not text",
    ),
    (
        TEXT,
        {"prompt": "x", "response_format": {"type": "json_object", "json_schema": FORMAT["json_schema"]}},
        "response_format.json_schema",
        "goes with type json_schema, not json_object",
    ),
    (CHAT, {"structured_outputs": {}}, "structured_outputs", "structured_outputs is empty"),
    (CHAT, {"structured_outputs": {"choice": []}}, "structured_outputs.choice", "structured_outputs.choice="),
    (
        CHAT,
        {"structured_outputs": {"regex": "a", "choice": ["b"]}},
        "structured_outputs.choice",
        "structured_outputs.regex and structured_outputs.choice",
    ),
    (
        CHAT,
        {"structured_outputs": {"json": SCHEMA}, "response_format": FORMAT},
        "structured_outputs.json",
        "response_format.json_schema.schema and structured_outputs.json",
    ),
    (
        CHAT,
        {"structured_outputs": {"regex": "a"}, "response_format": FORMAT},
        "structured_outputs.regex",
        "response_format.json_schema.schema and structured_outputs.regex",
    ),
    (
        CHAT,
        {
            "tools": [TOOL, {"type": "function", "function": {"name": "f", "parameters": LONG}}],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
        },
        "tools[1].function.parameters",
        "tools[1].function.parameters has ",
    ),
    (TEXT, {"prompt": [1, -1], "echo": True}, "prompt", "prompt has -1"),
    (TEXT, {"prompt": [[1], [99999]], "echo": True}, "prompt[1]", "prompt[1] has 99999"),
    (TEXT, {"prompt": [1] * 2000, "echo": True}, "prompt", "prompt has 2000 tokens; the limit is 1024"),
    ("/detokenize", {"tokens": [1] * 2000}, "tokens", "tokens has 2000 tokens; the limit is 1024"),
    (
        CHAT,
        {"chat_template_kwargs": {"tools": [TOOL]}},
        "chat_template_kwargs.tools",
        "give them in the field tools",
    ),
    (
        "/tokenize",
        {"messages": HELLO, "tools": [TOOL], "chat_template_kwargs": {"tools": [TOOL]}},
        "chat_template_kwargs.tools",
        "give them in the field tools",
    ),
    (
        "/v1/responses",
        {"input": "x", "chat_template_kwargs": {"tools": [TOOL]}},
        "chat_template_kwargs.tools",
        "give them in the field tools",
    ),
    ("/tokenize", {"prompt": "x", "tools": [TOOL]}, "tools", "go with messages, not with prompt"),
    (
        "/tokenize",
        {"prompt": "x", "add_generation_prompt": True},
        "add_generation_prompt",
        "go with messages",
    ),
    (CHAT, {"no_such_field": 1}, "no_such_field", "no_such_field is no field of this request"),
    (CHAT, {"stream_options": {"x": 1}}, "stream_options.x", "stream_options.x is no field of this request"),
    (CHAT, {"messages": [5]}, "messages[0]", "the value is 5"),
    (CHAT, {"logit_bias": {"5": "x"}}, "logit_bias", "the value is {'5': 'x'}"),
    (CHAT, {"metadata": {"a": 5}}, "metadata", "the value is {'a': 5}"),
]


@pytest.mark.parametrize(("path", "fields", "param", "message"), REFUSED)
def test_an_error_names_the_field_that_the_caller_wrote(
    path: str, fields: dict[str, Any], param: str, message: str
) -> None:
    reply = Scripted().post(path, {"messages": HELLO} | fields if path == CHAT else fields)
    error = reply.json["error"]
    assert (reply.status, error["param"]) == (400, param)
    assert message in error["message"]


@pytest.mark.parametrize(
    "fields",
    [{"n" * 100_000: 1}, {"stream_options": {"n" * 100_000: 1}}, {"service_tier": "n" * 100_000}],
    ids=["field", "nested field", "value"],
)
def test_an_error_is_short_however_long_the_name_is_that_it_complains_about(fields: dict[str, Any]) -> None:
    reply = Scripted().post(CHAT, {"messages": HELLO} | fields)
    assert reply.status == 400
    assert len(json.dumps(reply.json)) < 1000


FROM_BEHIND: list[tuple[str, dict[str, Any], InvalidRequest, str, str]] = [
    (
        CHAT,
        {"structured_outputs": {"regex": "("}},
        InvalidRequest("regex cannot be followed: x", param="regex"),
        "structured_outputs.regex",
        "structured_outputs.regex cannot be followed: x",
    ),
    (
        CHAT,
        {"tools": [TOOL], "tool_choice": NAMED},
        InvalidRequest("json_schema cannot be followed: x", param="json_schema"),
        "tools[0].function.parameters",
        "tools[0].function.parameters cannot be followed: x",
    ),
    (
        CHAT,
        {"tools": [TOOL], "tool_choice": "required"},
        InvalidRequest("json_schema cannot be followed: x", param="json_schema"),
        "tools",
        "tools cannot be followed: x",
    ),
    (
        CHAT,
        {"tools": [TOOL] * 11 + [OTHER], "tool_choice": "required"},
        InvalidRequest("json_schema.$defs.1 cannot be followed: x", param="json_schema.$defs.1"),
        "tools[11].function.parameters",
        "tools[11].function.parameters cannot be followed: x",
    ),
    (
        CHAT,
        {"response_format": FORMAT},
        InvalidRequest("json_schema cannot be followed: x", param="json_schema"),
        "response_format.json_schema.schema",
        "response_format.json_schema.schema cannot be followed: x",
    ),
    (
        TEXT,
        {"prompt": "x", "structured_outputs": {"json": {"minimum": 10**400}}},
        InvalidRequest("json_schema.minimum cannot be sent", param="json_schema.minimum"),
        "structured_outputs.json.minimum",
        "structured_outputs.json.minimum cannot be sent",
    ),
    (TEXT, {"prompt": [""]}, InvalidRequest("prompt is empty", param="prompt"), "prompt[0]", "prompt[0] is"),
    (TEXT, {"prompt": ""}, InvalidRequest("prompt is empty", param="prompt"), "prompt", "prompt is empty"),
    (
        CHAT,
        {},
        InvalidRequest("messages[0].content is odd", param="messages[0].content"),
        "messages[0].content",
        "messages[0].content is odd",
    ),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "fields", "error", "param", "message"), FROM_BEHIND)
def test_an_error_of_an_actor_is_given_under_the_callers_name_for_the_field(
    path: str, fields: dict[str, Any], error: InvalidRequest, param: str, message: str, stream: bool
) -> None:
    body = {"messages": HELLO} | fields if path == CHAT else fields
    reply = Scripted(Script(finish=error)).post(path, body | {"stream": stream})
    assert reply.status == 400
    assert reply.json["error"]["param"] == param
    assert reply.json["error"]["message"].startswith(message)


def test_a_prompt_that_is_too_long_can_be_told_by_its_code() -> None:
    error = InvalidRequest("too long", param="prompt", code="context_length_exceeded")
    reply = Scripted(Script(finish=error)).post(TEXT, {"prompt": "x"})
    assert reply.status == 400
    assert reply.json["error"]["code"] == "context_length_exceeded"
    assert Scripted().post(CHAT, {"messages": HELLO, "top_k": -2}).json["error"]["code"] is None
