"""Over HTTP an adapter is a model: requests name it as theirs, and answers are by its name."""

from __future__ import annotations

from typing import Any

import pytest
from scripted import Script, Scripted
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
