"""How an answer with calls says that it ended: as OpenAI's API does, whole and as events alike."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import msgspec
import pytest
from scripted import Script, Scripted
from slipstream.actors.http.transport.events import merged
from slipstream.protocol.formats.reader import ChatDelta
from slipstream.protocol.messages import Delta, Formats

PATH = "/v1/chat/completions"
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
NAMED = {"type": "function", "function": {"name": "weather"}}
LIST = '[{"name": "weather", "arguments": {"city": "Rome"}}]'
HERMES = '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'
CUT = '{"city": "Ro'


def ended(answer: str, choice: Any, finish: str, stop_reason: str | int | None) -> tuple[Any, Any, Any]:
    """The text, the arguments of each call, and the reason of the end; equal for a whole answer and for events."""
    script = Script(answer, finish=finish, stop_reason=stop_reason)
    body = {"messages": [{"role": "user", "content": "Hi"}], "tools": [TOOL], "tool_choice": choice}
    whole = Scripted(script).post(PATH, body).json["choices"][0]
    events = [
        event["choices"][0] for event in Scripted(script).post(PATH, body | {"stream": True}).events[:-1]
    ]
    calls: dict[int, str] = {}
    for event in events:
        for part in event["delta"].get("tool_calls", ()):
            calls[part["index"]] = calls.get(part["index"], "") + part["function"]["arguments"]
    text = "".join(event["delta"].get("content") or "" for event in events)
    made = [call["function"]["arguments"] for call in whole["message"].get("tool_calls", ())]
    assert (text, [*calls.values()], events[-1]["finish_reason"]) == (
        whole["message"]["content"] or "",
        made,
        whole["finish_reason"],
    )
    return text, made, whole["finish_reason"]


@pytest.mark.parametrize(("stop", "stop_reason"), [("stop", None), ("stop", "]"), ("stop", 5)])
@pytest.mark.parametrize(("choice", "answer"), [("required", LIST), ("auto", HERMES)])
def test_complete_calls_are_what_an_answer_ends_with_whatever_stopped_it(
    choice: str, answer: str, stop: str, stop_reason: str | int | None
) -> None:
    assert ended(answer, choice, stop, stop_reason) == ("", ['{"city": "Rome"}'], "tool_calls")


@pytest.mark.parametrize(("finish", "stop_reason"), [("stop", "me"), ("stop", 5), ("length", None)])
@pytest.mark.parametrize(
    ("choice", "begin"),
    [
        ("required", '[{"name": "weather", "arguments": '),
        ("auto", '<tool_call>{"name": "weather", "arguments": '),
    ],
)
def test_a_call_that_is_cut_is_none_that_an_answer_ends_with(
    choice: str, begin: str, finish: str, stop_reason: str | int | None
) -> None:
    assert ended(begin + CUT, choice, finish, stop_reason) == ("", [CUT], finish)


@pytest.mark.parametrize("begin", ['<tool_call>{"name": "wea', "<tool_call>", '[{"name": "weather", "argum'])
def test_a_stop_text_inside_the_markup_of_a_call_leaves_none_of_it_in_the_text(begin: str) -> None:
    choice = "required" if begin.startswith("[") else "auto"
    assert ended(begin, choice, "stop", "x") == ("", [], "stop")


@pytest.mark.parametrize(
    ("answer", "finish", "stop_reason"),
    [('{"city": "Rome"}', "stop", None), (CUT, "stop", "me"), (CUT, "length", None)],
)
def test_an_answer_that_had_to_be_the_call_of_a_named_function_ends_as_any_other(
    answer: str, finish: str, stop_reason: str | None
) -> None:
    assert ended(answer, NAMED, finish, stop_reason) == ("", [answer], finish)


def test_the_call_of_a_response_that_a_stop_text_cuts_is_incomplete() -> None:
    tool = {"type": "function"} | TOOL["function"]
    for stop_reason, status in (("me", "incomplete"), (None, "completed")):
        script = Script('[{"name": "weather", "arguments": ' + CUT, stop_reason=stop_reason)
        body = {"input": "Hi", "tools": [tool], "tool_choice": "required"}
        [call] = Scripted(script).post("/v1/responses", body).json["output"]
        assert (call["arguments"], call["status"]) == (CUT, status)


THOUGHT = ["<think>", "Hm", "", ", so.", "</thi", "nk>", "Yes", "."]


@pytest.mark.parametrize(
    ("parts", "count"), [(THOUGHT, 5), (["Yes", "."], 0), (["<think>Hm.</think>Yes."], 1)]
)
@pytest.mark.parametrize("n", [1, 2])
def test_the_usage_tells_how_many_tokens_were_thoughts(parts: list[str], count: int, n: int) -> None:
    """From the mark that begins them, which is none, to the one that ends them; the same whole, streamed and as a
    response."""

    class Several(Script):
        async def batches(self, **asked: Any) -> AsyncGenerator[list[Delta], None]:
            async for [delta] in super().batches(**asked):
                yield [msgspec.structs.replace(delta, index=index) for index in range(n)]

    script = Several(*parts, formats=Formats(reasoning="qwen3"))
    body = {"messages": [{"role": "user", "content": "Hi"}], "n": n}
    whole = Scripted(script).post(PATH, body).json["usage"]
    assert whole["completion_tokens_details"] == {"reasoning_tokens": n * count}
    asked = body | {"stream": True, "stream_options": {"include_usage": True}}
    assert Scripted(script).post(PATH, asked).events[-2]["usage"] == whole
    if n == 1:
        told = Scripted(script).post("/v1/responses", {"input": "Hi"}).json["usage"]
        assert told["output_tokens_details"] == whole["completion_tokens_details"]
        asked = {"messages": body["messages"], "max_tokens": 50}
        said = Scripted(script).post("/v1/messages", asked).json["usage"]
        assert said["output_tokens_details"] == {"thinking_tokens": count}


def test_a_stream_that_is_behind_counts_the_thoughts_of_all_its_tokens() -> None:
    deltas = [ChatDelta(id="a", token_ids=[n], reasoning_tokens=int(n < 2)) for n in range(4)]
    [one] = merged(list(deltas))
    assert isinstance(one, ChatDelta)
    assert one.reasoning_tokens == 2
