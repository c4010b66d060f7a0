"""How a turn of the Messages API begins and ends: a beginning that the caller wrote, and the reason why it is over."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from scripted import Answer, Script, Scripted
from slipstream.actors.text.prompts.chat_template import ChatTemplates
from slipstream.protocol.messages import Formats

PATH = "/v1/messages"
USER = {"role": "user", "content": "What is 2 + 2?"}
TOOLS = [{"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}]
CALLS = Formats(tool_calls="hermes")
BEGUN = '<tool_call>{"name": "weather", "arguments": {"city": "Ro'


def post(script: Script, path: str = PATH, **fields: Any) -> Answer:
    body: dict[str, Any] = {"messages": [USER]} | fields
    return Scripted(script).post(path, body if path != PATH else {"max_tokens": 50} | body)


# --- a beginning --------------------------------------------------------------------------------------


@pytest.mark.parametrize("begun", ["The answer is", "{", [{"type": "text", "text": "The answer"}]])
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_goes_on_with_a_last_message_of_the_assistant(begun: Any, stream: bool) -> None:
    script = Script(" 4.")
    answer = post(script, messages=[USER, {"role": "assistant", "content": begun}], stream=stream)
    assert answer.status == 200
    assert script.asked["chat_template_kwargs"] == {"continue_final_message": True}
    text = begun if isinstance(begun, str) else begun[0]["text"]
    assert script.asked["messages"][-1] == {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    "last",
    [
        USER,
        {"role": "assistant", "content": ""},
        {"role": "assistant", "content": []},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "weather", "input": {}}]},
    ],
)
def test_any_other_answer_is_a_turn_of_its_own(last: dict[str, Any]) -> None:
    script = Script("4.")
    assert post(script, messages=[USER, last], tools=TOOLS).status == 200
    assert script.asked["chat_template_kwargs"] == {}


def test_tokens_are_counted_as_far_as_the_beginning() -> None:
    begun = [USER, {"role": "assistant", "content": "The answer"}]
    counted = post(Script(), f"{PATH}/count_tokens", messages=begun).json["input_tokens"]
    goes_on = {"messages": begun, "continue_final_message": True}
    assert counted == Scripted().post("/tokenize", goes_on).json["count"]


def test_a_beginning_that_the_template_does_not_write_is_refused_by_what_the_caller_wrote() -> None:
    frontend = Scripted()
    source = "{{ messages[0].content }}"
    frontend.service.prompts.chat_templates = ChatTemplates({"default": source}, {}, datetime.now)
    asked = {"messages": [USER, {"role": "assistant", "content": "The answer"}]}
    refused = frontend.post(f"{PATH}/count_tokens", asked)
    assert refused.status == 400
    assert refused.json["error"]["message"].startswith(
        "messages goes on with the last message, whose content"
    )


# --- thinking and forms ---------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [0, -1])
def test_a_budget_of_thoughts_is_a_number_of_tokens(budget: int) -> None:
    refused = post(Script("4."), thinking={"type": "enabled", "budget_tokens": budget})
    assert refused.status == 400
    assert "thinking.budget_tokens" in refused.json["error"]["message"]
    assert post(Script("4."), thinking={"type": "enabled", "budget_tokens": 1024}).status == 200


def test_a_form_is_given_under_one_of_its_names() -> None:
    form = {"type": "json_schema", "schema": {"type": "object"}}
    assert post(Script("{}"), output_format=form).status == 200
    refused = post(Script("{}"), output_format=form, output_config={"format": form})
    assert refused.status == 400
    assert refused.json["error"]["message"].startswith(
        "output_format is the older name of output_config.format"
    )


# --- the end ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "stopped", "reason"),
    [
        (BEGUN + 'me"}}</tool_call>', None, "tool_use"),
        (BEGUN + 'me"}}', "</tool_call>", "tool_use"),
        (BEGUN + 'me"}}</tool_call>\nSo', "Observation:", "tool_use"),
        (BEGUN, "me", "stop_sequence"),
        ("So", "Observation:", "stop_sequence"),
        ("So", 7, "end_turn"),
    ],
)
def test_a_complete_call_is_to_be_carried_out_whatever_ended_the_answer(
    said: str, stopped: str | int | None, reason: str
) -> None:
    """An agent's loop runs the tools of answers that say ``tool_use``, and of no others."""
    answer = post(Script(said, stop_reason=stopped, formats=CALLS), tools=TOOLS)
    told = (answer.json["stop_reason"], answer.json["stop_sequence"])
    assert told == (reason, stopped if reason == "stop_sequence" else None)
