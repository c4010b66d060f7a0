"""Thoughts and calls through a whole service, over ZeroMQ and HTTP alike."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from slipstream import Client, InvalidRequest, SamplingParams, Sidecar
from slipstream.serving.service import BUNDLED_MODEL

TEMPLATE = """{%- if tools %}{{ tools | tojson }}{% endif -%}
{%- for message in messages -%}<|{{ message.role }}|>{{ message.content }}<|end|>{%- endfor -%}<|assistant|>
{%- if enable_thinking is not defined or enable_thinking %}<think>
{% else %}<think>

</think>

{% endif -%}"""
HELLO: Any = [{"role": "user", "content": "hello"}]
TOOLS: Any = [{"type": "function", "function": {"name": "now", "parameters": {"enum": [{"zone": "here"}]}}}]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """A model whose template begins its thoughts, as DeepSeek R1's does, or closes them, as Qwen3's."""
    folder = tmp_path_factory.mktemp("model") / "thinks"
    shutil.copytree(BUNDLED_MODEL, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    with Sidecar(folder, device="emulated", emulated_step_ms=1, http="127.0.0.1:0") as sidecar:
        yield sidecar


def post(service: Sidecar, **fields: Any) -> Any:
    body = json.dumps({"messages": HELLO, "seed": 3} | fields).encode()
    request = urllib.request.Request(
        f"{service.ready['http']}/v1/chat/completions", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_thoughts_that_the_prompt_begins_are_thoughts_over_both_ways(
    service: Sidecar, client: Client
) -> None:
    assert client.welcome.formats.reasoning == "qwen3"
    output = client.chat(HELLO, SamplingParams(max_tokens=12, seed=3)).outputs[0]
    assert output.text == ""
    assert output.reasoning
    choice = post(service, max_tokens=12)["choices"][0]
    assert choice["message"]["content"] == ""
    assert choice["message"]["reasoning_content"] == choice["message"]["reasoning"] == output.reasoning
    streamed = list(client.stream_chat(HELLO, SamplingParams(max_tokens=12, seed=3)))
    assert "".join(delta.reasoning for delta in streamed) == output.reasoning
    assert "".join(delta.text for delta in streamed) == ""


def test_thoughts_that_the_prompt_closes_leave_the_answer_alone(service: Sidecar) -> None:
    asked = {"chat_template_kwargs": {"enable_thinking": False}, "max_tokens": 12}
    message = post(service, **asked)["choices"][0]["message"]
    assert message["content"]
    assert "reasoning" not in message


def test_what_must_match_begins_behind_the_thoughts(service: Sidecar) -> None:
    format = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["yes"]}}}
    thinking = post(service, response_format=format, max_tokens=12)["choices"][0]["message"]
    assert thinking["reasoning"]
    closed = post(
        service, response_format=format, max_tokens=40, chat_template_kwargs={"enable_thinking": False}
    )
    assert closed["choices"][0]["message"]["content"] == '"yes"'


def test_a_call_is_asked_for_over_both_ways(service: Sidecar, client: Client) -> None:
    closed: Any = {"chat_template_kwargs": {"enable_thinking": False}}
    asked: Any = {"tools": TOOLS, "tool_choice": "required"} | closed
    message = post(service, **asked, max_tokens=200)["choices"][0]["message"]
    output = client.chat(HELLO, SamplingParams(max_tokens=200, seed=3), **asked).outputs[0]
    calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message["tool_calls"]]
    assert [(call.name, call.arguments) for call in output.tool_calls] == calls
    assert output.text == (message["content"] or "") == ""
    name, arguments = calls[0]
    assert (name, json.loads(arguments)) == ("now", {"zone": "here"})
    assert all(call.id for call in output.tool_calls)


def test_tools_of_a_wrong_form_are_refused_by_their_place(client: Client) -> None:
    for wrong, place in (([{"type": "function", "function": {}}], "tools"), ([5], r"tools\[0\]")):
        with pytest.raises(InvalidRequest, match=place):
            client.chat(HELLO, tools=wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="tool_choice"):
        client.chat(HELLO, tools=TOOLS, tool_choice="perhaps")


@pytest.fixture(scope="module")
def client(service: Sidecar) -> Iterator[Client]:
    with service.client() as client:
        yield client
