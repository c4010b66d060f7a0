"""Over HTTP an adapter is a model: requests name it as theirs, and answers are by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
from scripted import Script, Scripted
from slipstream.actors.http.endpoints.adapters import named
from slipstream.protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from slipstream import AsyncClient

HELLO = [{"role": "user", "content": "hello"}]
ASKED: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "x"},
    "/v1/chat/completions": {"messages": HELLO},
    "/v1/responses": {"input": "x"},
    "/v1/messages": {"messages": HELLO, "max_tokens": 5},
}
ASKED_APART: dict[str, dict[str, Any]] = {
    "/tokenize": {"prompt": "x"},
    "/detokenize": {"tokens": [5]},
    "/v1/messages/count_tokens": {"messages": HELLO},
}
"""What is answered without the gateway."""


@pytest.mark.parametrize("path", ASKED)
def test_the_model_of_a_request_is_its_adapter(path: str) -> None:
    frontend = Scripted(Script("a"), other_names=["base"], adapters=True)
    for model, adapter in (("sql", "sql"), ("base", ""), ("slipstream-bundled", "")):
        reply = frontend.post(path, ASKED[path] | {"model": model})
        assert reply.status == 200, reply.body
        assert frontend.script.asked["params"].adapter == adapter
        assert reply.json["model"] == (adapter or "slipstream-bundled")


@pytest.mark.parametrize(
    ("loaded", "those"), [((), "none is"), (("verse", "code"), "those that are: code, verse")]
)
@pytest.mark.parametrize("path", ASKED_APART)
def test_where_the_gateway_is_not_asked_the_name_is_looked_up(
    path: str, loaded: list[str], those: str
) -> None:
    frontend = Scripted(Script(loaded=loaded), adapters=True, other_names=["big"])
    reply = frontend.post(path, ASKED_APART[path] | {"model": "sql"})
    assert reply.status == 404
    expected = (
        "the model 'sql' is not served here; this is 'slipstream-bundled' or 'big', and adapter='sql' is not loaded;"
        f" {those}"
    )
    assert reply.json["error"]["message"] == expected
    assert frontend.get("/v1/models/sql").json["error"]["message"] == expected


@pytest.mark.parametrize("path", ASKED)
def test_one_that_is_not_loaded_is_no_model_that_is_served(path: str) -> None:
    refusal = InvalidRequest("adapter='sql' is not loaded; none is", param="adapter", code="model_not_found")
    reply = Scripted(Script(finish=refusal), adapters=True).post(path, ASKED[path] | {"model": "sql"})
    assert reply.status == 404
    there_is = "this is 'slipstream-bundled', and adapter='sql' is not loaded; none is"
    assert reply.json["error"]["message"] == f"the model 'sql' is not served here; {there_is}"


@pytest.mark.parametrize("path", ASKED_APART)
def test_a_router_lists_no_adapters_so_that_any_may_be_one(path: str) -> None:
    frontend = Scripted(adapters=True)
    frontend.service.routed = True
    assert frontend.post(path, ASKED_APART[path] | {"model": "sql"}).status == 200


@pytest.mark.parametrize("path", ASKED_APART)
def test_tokens_are_counted_by_the_name_of_an_adapter_too(path: str) -> None:
    frontend = Scripted(Script(loaded=["sql"]), adapters=True)
    assert frontend.post(path, ASKED_APART[path] | {"model": "sql"}).status == 200


@pytest.mark.parametrize("path", ASKED_APART)
def test_who_counts_tokens_does_not_wait_for_adapters_that_are_loaded_or_unloaded(path: str) -> None:
    """A client asks one such question after the other, and an adapter is unloaded when nobody uses it any more."""

    class Waiting(Script):
        async def adapters(self) -> Any:
            raise AssertionError("asked behind what is loaded and unloaded")

    frontend = Scripted(Script(loaded=["sql"]), adapters=True)
    frontend.service.clients.own = cast("AsyncClient", Waiting())
    assert frontend.post(path, ASKED_APART[path] | {"model": "sql"}).status == 200


@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("path", [*ASKED, *ASKED_APART])
def test_no_model_has_an_empty_name(path: str, adapters: bool) -> None:
    reply = Scripted(Script("a"), adapters=adapters).post(path, (ASKED | ASKED_APART)[path] | {"model": ""})
    assert reply.status == 404
    assert "the model '' is not served here" in reply.json["error"]["message"]


def test_a_name_that_is_too_long_for_an_adapter_is_refused_as_that_of_a_model() -> None:
    refusal = InvalidRequest("adapter has 300 characters; the limit is 256", param="adapter")
    reply = Scripted(Script(finish=refusal), adapters=True).post(
        "/v1/completions", {"prompt": "x", "model": "m"}
    )
    error = reply.json["error"]
    assert (error["param"], error["message"]) == ("model", "model has 300 characters; the limit is 256")


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
