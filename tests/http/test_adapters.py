"""Over HTTP an adapter is a model: requests name it as theirs, and answers are by its name."""

from __future__ import annotations

from typing import Any

import pytest
from scripted import Script, Scripted
from slipstream.actors.http.endpoints.adapters import named
from slipstream.protocol.errors import InvalidRequest

HELLO = [{"role": "user", "content": "hello"}]
ASKED: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "x"},
    "/v1/chat/completions": {"messages": HELLO},
    "/v1/responses": {"input": "x"},
    "/v1/messages": {"messages": HELLO, "max_tokens": 5},
}


@pytest.mark.parametrize("path", ASKED)
def test_the_model_of_a_request_is_its_adapter(path: str) -> None:
    frontend = Scripted(Script("a"), other_names=["base"], adapters=True)
    for model, adapter in (("sql", "sql"), ("base", ""), ("slipstream-bundled", "")):
        reply = frontend.post(path, ASKED[path] | {"model": model})
        assert reply.status == 200, reply.body
        assert frontend.script.asked["params"].adapter == adapter
        assert reply.json["model"] == (adapter or "slipstream-bundled")


@pytest.mark.parametrize("path", ASKED)
def test_one_that_is_not_loaded_is_no_model_that_is_served(path: str) -> None:
    refusal = InvalidRequest("adapter='sql' is not loaded", param="adapter", code="model_not_found")
    frontend = Scripted(Script(finish=refusal), adapters=True)
    reply = frontend.post(path, ASKED[path] | {"model": "sql"})
    assert reply.status == 404
    assert reply.json["error"]["message"] == "model='sql' is not loaded"


def test_where_there_are_no_adapters_another_model_is_refused_at_once() -> None:
    frontend = Scripted()
    reply = frontend.post("/v1/completions", {"prompt": "x", "model": "sql"})
    assert (reply.status, reply.json["error"]["code"]) == (404, "model_not_found")
    assert not frontend.script.asked


@pytest.mark.parametrize(
    ("message", "param", "written"),
    [
        ("name='x' is not loaded", "lora_name", "lora_name='x' is not loaded"),
        ("name has 0 characters; give 1 to 256", "lora_name", "lora_name has 0 characters; give 1 to 256"),
        ("path='x' is no absolute path", "lora_path", "lora_path='x' is no absolute path"),
        ("the adapter 'x' at '/x' cannot be loaded: there is no such folder", "lora_path", None),
        ("this service loads no adapters", None, None),
    ],
)
def test_a_refusal_names_the_field_of_the_endpoint(
    message: str, param: str | None, written: str | None
) -> None:
    found = named(InvalidRequest(message))
    assert found.param == param
    assert str(found) == (written or message)
