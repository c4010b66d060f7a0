"""The Messages API in its published form: blocks and events. The official client runs on it in ``tests/clients``."""

from __future__ import annotations

import json
from typing import Any

import pytest
from scripted import Answer, Script, Scripted
from slipstream.protocol.messages import Formats

from slipstream import InvalidRequest

PATH = "/v1/messages"
THINKS = Formats(reasoning="qwen3", tool_calls="hermes")
TOOLS = [{"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}]
CALL = (
    "<think>I lo",
    "ok.</think>Let me see.<tool_call>",
    '{"name": "weather", "arguments": {"city"',
    ': "Rome"}}</tool_call>',
)


def post(script: Script, path: str = PATH, **fields: Any) -> Answer:
    body: dict[str, Any] = {"max_tokens": 50, "messages": [{"role": "user", "content": "Hi"}]}
    if path != PATH:
        del body["max_tokens"]
    return Scripted(script).post(path, body | fields)


def events_of(answer: Answer) -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = []
    for part in answer.body.decode().split("\n\n")[:-1]:
        name, data = part.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def test_an_answer_has_thinking_text_and_tool_use_as_blocks() -> None:
    answer = post(Script(*CALL, formats=THINKS), tools=TOOLS)
    assert answer.status == 200
    thinking, text, call = answer.json["content"]
    assert (thinking["type"], thinking["thinking"]) == ("thinking", "I look.")
    assert (text["type"], text["text"]) == ("text", "Let me see.")
    assert (call["type"], call["name"], call["input"]) == ("tool_use", "weather", {"city": "Rome"})
    assert answer.json["stop_reason"] == "tool_use"
    assert answer.json["usage"] == {
        "input_tokens": 3,
        "cache_read_input_tokens": 0,
        "cache_creation_input_tokens": 0,
        "output_tokens": len(CALL),
        "output_tokens_details": {"thinking_tokens": 2},
    }


def test_a_stream_tells_the_same_in_the_published_events() -> None:
    script = Script(*CALL, formats=THINKS, prompt_ids=[1, 2, 3])
    events = events_of(post(script, tools=TOOLS, stream=True))
    assert [name for name, _ in events] == [
        "message_start",
        *("content_block_start", "content_block_delta", "content_block_delta", "content_block_stop"),
        *("content_block_start", "content_block_delta", "content_block_stop"),
        *("content_block_start", "content_block_delta", "content_block_delta", "content_block_stop"),
        *("message_delta", "message_stop"),
    ]
    assert all(data["type"] == name for name, data in events)
    start = events[0][1]["message"]
    assert (start["content"], start["stop_reason"], start["usage"]["input_tokens"]) == ([], None, 3)
    deltas = [(data["index"], data["delta"]) for name, data in events if name == "content_block_delta"]
    told = [
        "".join(next(reversed(delta.values())) for at, delta in deltas if at == index) for index in range(3)
    ]
    assert told == ["I look.", "Let me see.", '{"city": "Rome"}']
    assert [delta["type"] for _, delta in deltas[1:4]] == ["thinking_delta", "text_delta", "input_json_delta"]
    begun = [data["content_block"] for name, data in events if name == "content_block_start"]
    assert [block["type"] for block in begun] == ["thinking", "text", "tool_use"]
    assert begun[2]["input"] == {}
    assert begun[1]["text"] == ""
    assert events[-2][1]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert events[-2][1]["usage"]["output_tokens"] == len(CALL)


@pytest.mark.parametrize("path", [PATH, "/v1/responses"])
def test_a_call_is_whole_whose_end_comes_together_with_the_text_behind_it(path: str) -> None:
    script = Script(
        '<tool_call>{"name": "weather", "arguments": {"city"', ': "Rome"}}</tool_call>Bye', formats=THINKS
    )
    if path == PATH:
        call, text = post(script, tools=TOOLS).json["content"]
        assert (call["input"], text["text"]) == ({"city": "Rome"}, "Bye")
        return
    tools = [{"type": "function", "name": "weather", "parameters": TOOLS[0]["input_schema"]}]
    call, text = Scripted(script).post(path, {"input": "Hi", "tools": tools}).json["output"]
    assert (json.loads(call["arguments"]), text["content"][0]["text"]) == ({"city": "Rome"}, "Bye")


def test_the_blocks_of_an_agents_turn_become_one_conversation() -> None:
    script = Script("Yes.")
    messages = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "Weather?", "cache_control": {"type": "ephemeral"}}],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": ""},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "a", "name": "weather", "input": {"city": "Rome"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "20"}]},
                {"type": "text", "text": "And?"},
            ],
        },
    ]
    system = [{"type": "text", "text": "Be brief."}]
    assert post(script, system=system, messages=messages, tools=TOOLS).status == 200
    first, user, assistant, result, more = script.asked["messages"]
    assert first == {"role": "system", "content": "Be brief."}
    assert user == {"role": "user", "content": "Weather?"}
    assert (assistant["reasoning"], assistant["content"]) == ("Hm.", "I look.")
    assert assistant["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Rome"}}
    assert result == {"role": "tool", "tool_call_id": "a", "content": "20"}
    assert more == {"role": "user", "content": "And?"}


def test_what_is_asked_for_reaches_the_sampler() -> None:
    script = Script('[{"name": "weather", "arguments": {"city": "Rome"}}]')
    choice = {"type": "any", "disable_parallel_tool_use": True}
    answer = post(script, tools=TOOLS, tool_choice=choice, stop_sequences=["x"], temperature=0.5, top_k=3)
    params = script.asked["params"]
    assert (params.max_tokens, params.stop, params.temperature, params.top_k) == (50, ["x"], 0.5, 3)
    assert params.json_schema["maxItems"] == 1
    assert [block["type"] for block in answer.json["content"]] == ["tool_use"]
    named = post(Script('{"city": "Rome"}'), tools=TOOLS, tool_choice={"type": "tool", "name": "weather"})
    assert named.json["content"][0]["input"] == {"city": "Rome"}
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    script = Script('{"a": 1}')
    post(script, output_config={"format": {"type": "json_schema", "schema": schema}})
    assert script.asked["params"].json_schema == schema


def test_an_answer_says_why_it_ended() -> None:
    assert post(Script("Yes")).json["stop_reason"] == "end_turn"
    assert post(Script("Yes", finish="length")).json["stop_reason"] == "max_tokens"


def test_tokens_are_counted_as_they_would_be_asked_for() -> None:
    asked = {"prompt": None, "messages": [{"role": "user", "content": "Hi"}]}
    expected = Scripted().post("/tokenize", asked).json["count"]
    assert post(Script(), f"{PATH}/count_tokens").json == {"input_tokens": expected}
    more = post(Script(), f"{PATH}/count_tokens", system="Be brief.").json["input_tokens"]
    assert more > expected


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0]"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        (
            {"tool_choice": {"type": "auto", "name": "weather"}},
            "tool_choice.name goes with type tool, not auto",
        ),
        ({"no_such": 1}, "no_such"),
        (
            {"tools": [{"name": "f"}, {"name": "f", "description": "g"}]},
            "tools[1].name is 'f', which another tool has",
        ),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"model": "other"}, "not served here"),
    ],
)
def test_what_is_not_served_is_refused_in_anthropics_form(fields: dict[str, Any], said: str) -> None:
    answer = post(Script("Yes."), **fields)
    kind = "not_found_error" if "model" in fields else "invalid_request_error"
    assert answer.status == (404 if "model" in fields else 400)
    assert answer.json["type"] == "error"
    assert answer.json["error"]["type"] == kind
    assert said in answer.json["error"]["message"]


TEXT_BLOCK = {"type": "text", "text": "x"}
THOUGHT = {"type": "thinking", "thinking": "Hm."}
USE = {"type": "tool_use", "id": "a", "name": "weather", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "a", "content": [TEXT_BLOCK]}


def message(role: str, *blocks: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": [TEXT_BLOCK, *blocks]}]}


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        (message("user", TEXT_BLOCK | {"colour": 1}), "messages[0].content[1].colour"),
        (message("assistant", THOUGHT | {"colour": 1}), "messages[0].content[1].colour"),
        (message("assistant", {"type": "redacted_thinking", "colour": 1}), "messages[0].content[1].colour"),
        (message("assistant", USE | {"colour": 1}), "messages[0].content[1].colour"),
        (message("user", RESULT | {"colour": 1}), "messages[0].content[1].colour"),
        (
            message("user", RESULT | {"content": [TEXT_BLOCK | {"colour": 1}]}),
            "messages[0].content[1].content[0].colour",
        ),
        ({"messages": [{"role": "user", "content": "x", "colour": 1}]}, "messages[0].colour"),
        ({"system": [TEXT_BLOCK | {"colour": 1}]}, "system[0].colour"),
        ({"tools": [TOOLS[0] | {"colour": 1}]}, "tools[0].colour"),
        ({"tools": [TOOLS[0] | {"defer_loading": True}]}, "tools[0].defer_loading"),
        ({"thinking": {"type": "adaptive", "colour": 1}}, "thinking.colour"),
        ({"metadata": {"colour": 1}}, "metadata.colour"),
        (message("assistant", THOUGHT | {"thinking": 5}), "messages[0].content[1].thinking"),
        (message("assistant", {**USE, "name": 5}), "messages[0].content[1].name"),
        (message("assistant", {**USE, "id": 5}), "messages[0].content[1].id"),
        (message("user", {**RESULT, "tool_use_id": 5}), "messages[0].content[1].tool_use_id"),
        ({"tools": [{"name": ""}]}, "tools[0].name"),
        ({"tools": [{"name": "f", "input_schema": 5}]}, "tools[0].input_schema"),
    ],
)
def test_what_nobody_reads_is_refused_by_its_path(fields: dict[str, Any], path: str) -> None:
    answer = post(Script("Yes."), **fields)
    assert answer.status == 400
    assert answer.json["error"]["message"].startswith(f"{path} is")
    assert post(Script("Yes."), f"{PATH}/count_tokens", **fields).status == 400


def test_what_clients_send_beside_what_is_read_changes_nothing() -> None:
    def asked(**more: Any) -> Any:
        script = Script("Yes.")
        cached = {"cache_control": {"type": "ephemeral", "ttl": "1h"}} if more else {}
        seen = {"citations": [], "parsed_output": {}} if more else {}
        used, thought = ({"caller": {"type": "direct"}}, {"signature": "x"}) if more else ({}, {})
        messages = [
            {"role": "user", "content": [TEXT_BLOCK | cached]},
            {
                "role": "assistant",
                "content": [THOUGHT | thought, TEXT_BLOCK | seen, USE | cached | used],
            },
            {"role": "user", "content": [RESULT | cached | more]},
        ]
        tool = TOOLS[0] | cached
        if more:
            tool |= {"eager_input_streaming": True, "defer_loading": False, "allowed_callers": ["direct"]}
        system = [TEXT_BLOCK | cached | ({"citations": None} if more else {})]
        assert post(script, messages=messages, tools=[tool], system=system).status == 200
        return script.asked["messages"], script.asked["offered"]

    assert asked(is_error=True) == asked()


def test_a_form_is_of_the_text_which_an_answer_that_is_a_call_lacks() -> None:
    """instructor sends both to the Responses API, and OpenAI takes them."""
    form = {"type": "json_schema", "schema": {"type": "object", "properties": {"a": {"type": "integer"}}}}
    named = {"type": "tool", "name": "weather"}
    script = Script('{"city": "Rome"}')
    answer = post(script, tools=TOOLS, tool_choice=named, output_config={"format": form})
    assert answer.json["content"][0]["input"] == {"city": "Rome"}
    assert script.asked["params"].json_schema == TOOLS[0]["input_schema"]
    function = {"type": "function", "name": "weather", "parameters": TOOLS[0]["input_schema"]}
    asked = {"input": "Hi", "tools": [function], "tool_choice": {"type": "function", "name": "weather"}}
    told = Scripted(script).post("/v1/responses", asked | {"text": {"format": form | {"name": "x"}}})
    assert told.json["output"][0]["arguments"] == '{"city": "Rome"}'
    tools = [{"type": "function", "function": {"name": "weather", "parameters": TOOLS[0]["input_schema"]}}]
    chat = {"messages": [{"role": "user", "content": "Hi"}], "tools": tools, "tool_choice": "required"}
    chat |= {"response_format": {"type": "json_object"}}
    assert Scripted(Script("[]")).post("/v1/chat/completions", chat).status == 200


NULLABLE = ["container", "context_management", "inference_geo", "mcp_servers", "metadata", "output_config"]
NULLABLE += ["output_format", "service_tier", "speed", "stop_sequences", "stream", "system", "temperature"]
NULLABLE += ["thinking", "tool_choice", "tools", "top_k", "top_p"]


NULL = {"colour": None}


@pytest.mark.parametrize(
    "fields",
    [
        NULL,
        {"messages": [{"role": "user", "content": "x"} | NULL]},
        {"system": [TEXT_BLOCK, TEXT_BLOCK | NULL]},
        {"tools": [TOOLS[0] | NULL]},
        message("user", TEXT_BLOCK | NULL),
        {"thinking": {"type": "adaptive"} | NULL},
        {"metadata": NULL, "system": [TEXT_BLOCK | NULL]},
    ],
)
def test_a_null_asks_for_nothing_whatever_its_name(fields: dict[str, Any]) -> None:
    assert post(Script("Yes."), **fields).status == 200


def test_a_null_and_what_is_in_force_anyway_are_as_good_as_a_field_left_out() -> None:
    """Typed clients write all that they know."""
    nulls: dict[str, Any] = dict.fromkeys(NULLABLE)
    assert post(Script("Yes."), **nulls).status == 200
    assert post(Script("Yes."), mcp_servers=[], speed="standard", system=[], stop_sequences=[]).status == 200
    count = f"{PATH}/count_tokens"
    assert post(Script("Yes."), count, context_management=None, mcp_servers=[], speed=None).status == 200
    refused = post(Script("Yes."), speed="fast")
    assert refused.status == 400
    assert refused.json["error"]["message"].startswith("speed='fast' is not served here; leave it out")


def test_an_input_schema_may_have_null_for_no_properties() -> None:
    script = Script('[{"name": "f", "arguments": {}}]')
    tools = [{"name": "f", "input_schema": {"type": "object", "properties": None, "required": None}}]
    answer = post(script, tools=tools, tool_choice={"type": "any"})
    assert answer.status == 200
    schema = script.asked["params"].json_schema
    assert schema["$defs"]["0"] == {"type": "object"}


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "f"}, {"type": "auto"}])
def test_a_schema_that_is_refused_is_named_as_it_was_written(choice: dict[str, str]) -> None:
    tools = [*TOOLS, {"name": "f", "input_schema": {"type": "array"}}]
    answer = post(Script("x"), tools=tools, tool_choice=choice)
    assert answer.status == 400
    assert answer.json["error"]["message"].startswith("tools[1].input_schema is of the type")
    place = {"any": "json_schema.$defs.1", "tool": "json_schema"}.get(choice["type"])
    if place is not None:
        error = InvalidRequest(f"{place} cannot be followed: it is odd", param=place)
        tools[1]["input_schema"] = {"type": "object"}
        answer = post(Script("x", finish=error), tools=tools, tool_choice=choice)
        assert answer.json["error"]["message"] == "tools[1].input_schema cannot be followed: it is odd"


def test_a_stream_that_fails_says_so_in_its_last_event() -> None:
    name, data = events_of(post(Script("Yes", finish=RuntimeError("secret")), stream=True))[-1]
    assert name == data["type"] == "error"
    assert data["error"]["type"] == "api_error"
    assert "secret" not in data["error"]["message"]


def test_a_key_may_come_as_anthropics_clients_send_it() -> None:
    frontend = Scripted(Script("Yes."), api_key="sesame")
    body = {"max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]}
    assert frontend.post(PATH, body, x_api_key="sesame").status == 200
    assert frontend.post(PATH, body, x_api_key="wrong").status == 401


@pytest.mark.parametrize("stream", [False, True])
def test_the_input_of_a_call_is_what_the_model_wrote_whatever_that_is(stream: bool) -> None:
    arguments = r'{"city": "\ud800", "n": 123456789012345678901234567890, "e": 1.0}'
    script = Script('[{"name": "weather", "arguments": ' + arguments + "}]")
    answer = post(script, tools=TOOLS, tool_choice={"type": "any"}, stream=stream)
    assert answer.status == 200
    if stream:
        parts = [data["delta"] for name, data in events_of(answer) if name == "content_block_delta"]
        assert "".join(part["partial_json"] for part in parts) == arguments
    else:
        [block] = answer.json["content"]
        assert block["input"] == json.loads(arguments)


def test_several_texts_are_parts_which_the_chat_template_puts_together() -> None:
    """As in the conversations of every other face: the same one has the same prompt."""
    one, two = ({"type": "text", "text": text} for text in ("one", "two"))
    script = Script("Yes.")
    use = {"type": "tool_use", "id": "a", "name": "weather", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "a", "content": [one, two]}
    messages = [
        {"role": "user", "content": [one, two]},
        {"role": "assistant", "content": [one, use, two]},
        {"role": "user", "content": [result, one]},
    ]
    assert post(script, system=[one, two], messages=messages, tools=TOOLS).status == 200
    said = [message["content"] for message in script.asked["messages"]]
    assert said == [[one, two], [one, two], "onetwo", [one, two], "one"]
    assert post(script, system=[one]).status == 200
    assert script.asked["messages"][0] == {"role": "system", "content": "one"}


def test_too_many_tools_are_counted_before_they_are_read() -> None:
    refused = post(Script(), tools=[{"name": "x", "input_schema": {"type": 5}}] * 1025)
    assert refused.status == 400
    assert "tools has 1025 tools; the limit is 1024" in refused.json["error"]["message"]


def test_an_error_that_is_found_before_the_endpoint_has_the_same_form() -> None:
    locked, open_to_all = Scripted(Script("x"), api_key="sesame"), Scripted(Script("x"))
    for answer, status, kind in (
        (locked.post(PATH, {}), 401, "authentication_error"),
        (open_to_all.post(PATH, {}, host="evil.example"), 421, "invalid_request_error"),
        (open_to_all.get(PATH), 405, "invalid_request_error"),
        (open_to_all.post(f"{PATH}/batches", {}), 404, "not_found_error"),
        (open_to_all.post(PATH, {}, content_type="text/plain"), 415, "invalid_request_error"),
    ):
        assert answer.status == status
        assert answer.json["type"] == "error"
        assert answer.json["error"].keys() == {"type", "message"}
        assert answer.json["error"]["type"] == kind
    assert open_to_all.post("/v1/messagesx", {}).json.keys() == {"error"}


@pytest.mark.parametrize("given", ["{a", [1], 5, [], 0, False])
def test_arguments_that_are_no_object_are_refused_under_the_name_that_the_caller_wrote(given: Any) -> None:
    call = {"type": "tool_use", "id": "c", "name": "weather", "input": given}
    asked = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": [call]}]
    answer = post(Script("x"), messages=asked, tools=TOOLS)
    assert answer.json["error"]["message"].startswith("messages[1].content[0].input is no JSON object")
    item = {"type": "function_call", "call_id": "c", "name": "weather", "arguments": given}
    refused = Scripted(Script("x")).post("/v1/responses", {"input": [item]})
    assert refused.json["error"]["param"] == "input[0].arguments"


@pytest.mark.parametrize("kind", ["create", "continue"])
def test_a_thread_is_refused_so_that_anthropics_client_goes_on_without(kind: str) -> None:
    """Its ``tool_runner`` asks for one, and reads this of the refusal."""
    answer = post(Script("Yes."), thread={"type": kind})
    assert (answer.status, answer.json["error"]["type"]) == (400, "invalid_request_error")
    assert answer.json["error"]["details"] == {
        "error_code": "thread_unsupported_request",
        "unsupported": ["thread"],
    }
