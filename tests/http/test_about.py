"""What the service says of itself: its names, its load, its tokenizer, and what it does not serve."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from scripted import MODEL, Script, Scripted
from slipstream.actors.http.endpoints.dashboard import FOLDER
from slipstream.actors.text.prompts.chat_template import ChatTemplates

from slipstream.options.serve import ServeOptions


def test_a_model_answers_to_each_of_its_names_with_the_first() -> None:
    frontend = Scripted(Script("a"), other_names=["big", "org/latest"])
    listed = frontend.get("/v1/models").json["data"]
    assert [card["id"] for card in listed] == [MODEL, "big", "org/latest"]
    assert {card["root"] for card in listed} == {MODEL}
    assert frontend.get("/v1/models/org/latest").json["id"] == "org/latest"
    for name in (MODEL, "big", "org/latest", None):
        reply = frontend.post("/v1/completions", {"prompt": "x", "model": name})
        assert (reply.status, reply.json["model"]) == (200, MODEL)
    wrong = frontend.post("/v1/completions", {"prompt": "x", "model": "small"}).json["error"]
    assert (wrong["code"], wrong["param"]) == ("model_not_found", "model")
    assert f"this is '{MODEL}' or 'big' or 'org/latest'" in wrong["message"]


def test_the_list_of_models_is_one_page_of_anthropics_list_too() -> None:
    frontend = Scripted(other_names=["big"])
    page = frontend.get("/v1/models").json
    assert (page["first_id"], page["last_id"], page["has_more"]) == (MODEL, "big", False)
    for card in [*page["data"], frontend.get("/v1/models/big").json]:
        assert (card["type"], card["display_name"], card["lifecycle"]) == ("model", card["id"], "active")
        assert datetime.fromisoformat(card["created_at"]).timestamp() == card["created"]


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({"served_model_name": "a"}, ["a"]),
        ({"served_model_name": " a, b,a,,"}, ["a", "b"]),
        ({"model": "folder"}, ["folder"]),
        ({"served_model_name": " ,"}, ["slipstream-bundled"]),
    ],
)
def test_names_are_given_with_commas_between(given: dict[str, Any], names: list[str]) -> None:
    assert ServeOptions(**given).served_names == names


def test_the_load_is_the_requests_that_are_open() -> None:
    frontend = Scripted(Script("a"))

    async def stats() -> dict[str, float]:
        return {"requests_open": 3.0}

    frontend.script.stats = stats  # type: ignore[attr-defined]
    assert frontend.get("/load").json == {"server_load": 3}


def test_what_an_evaluation_needs_to_write_conversations_is_told() -> None:
    frontend = Scripted()
    source = "{{ bos_token }}{{ messages }}"
    frontend.service.prompts.chat_templates = ChatTemplates(
        {"default": source}, {"bos_token": "<s>", "eos_token": "</s>"}, datetime.now
    )
    assert frontend.get("/tokenizer_info").json == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": source,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "model_max_length": 1024,
    }
    frontend.service.prompts.chat_templates = "there is none"
    assert frontend.get("/tokenizer_info").json["chat_template"] is None
    assert Scripted(api_key="secret").get("/tokenizer_info").status == 401


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/v1/embeddings", "no embeddings are made"),
        ("/v1/audio/speech", "reads and writes text alone"),
        ("/v1/batches", "slipstream batch"),
        ("/nothing", "see /docs or /openapi.json"),
    ],
)
def test_what_is_not_served_says_why(path: str, why: str) -> None:
    reply = Scripted().post(path, {"input": "x"})
    assert reply.status == 404
    assert why in reply.json["error"]["message"]


def test_the_page_of_the_api_needs_no_key_and_loads_nothing_from_elsewhere() -> None:
    frontend = Scripted(api_key="secret")
    page = frontend.get("/docs")
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert b"/dashboard/docs.js" in page.body
    script = frontend.get("/dashboard/docs.js")
    assert script.status == 200
    for text in (page.body, script.body, (FOLDER / "style.css").read_bytes()):
        assert b"://" not in text
    assert frontend.get("/openapi.json").status == 200


def test_the_document_names_both_ways_to_give_the_key() -> None:
    document = Scripted(api_key="secret").get("/openapi.json").json
    ways = document["components"]["securitySchemes"]
    headers: dict[str, dict[str, str]] = {
        "key": {"authorization": "Bearer secret"},
        "x-api-key": {ways["x-api-key"]["name"]: "secret"},
    }
    assert document["paths"]["/v1/models"]["get"]["security"] == [{name: []} for name in ways] + [{}]
    assert ways.keys() == headers.keys()
    for given in headers.values():
        assert Scripted(api_key="secret").get("/v1/models", **given).status == 200
    assert Scripted(api_key="secret").get("/v1/models").status == 401
