"""What ``--server-dev-mode`` and ``--model-defaults`` add: the cache forgotten, a profile, defaults under each name."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted import MODEL, Script, Scripted
from slipstream.actors.http.defaults import Defaults
from slipstream.protocol.errors import InvalidRequest, ModelNotSupported
from slipstream.protocol.limits import Limits
from web import Web

from slipstream import Sidecar

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "hello"}]
LIMITS = Limits(max_model_len=64, vocab_size=100, max_prompt_bytes=1000)
PATHS = ("/reset_prefix_cache", "/start_profile", "/stop_profile")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    file = tmp_path_factory.mktemp("defaults") / "defaults.json"
    file.write_text(json.dumps({"short": {"max_tokens": 3, "seed": 7}}))
    options: dict[str, Any] = {"served_model_name": "tiny,short", "model_defaults": str(file)}
    with Sidecar(device="emulated", http="127.0.0.1:0", server_dev_mode=True, **options) as sidecar:
        yield sidecar


@pytest.fixture
def web(service: Sidecar) -> Web:
    return Web(service.ready["http"])


def cached(web: Web, prompt: str) -> int:
    answer = web(TEXT, {"prompt": prompt, "max_tokens": 1}).json
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_what_was_computed_before_a_reset_is_not_found_again(service: Sidecar, web: Web) -> None:
    prompt = "Once upon a time " * 20
    assert cached(web, prompt) == 0
    assert cached(web, prompt) > 0
    assert web("/reset_prefix_cache", {}).status == 200
    assert cached(web, prompt) == 0
    assert cached(web, prompt) > 0, "and then it is a cache as before"
    with service.client() as client:
        client.reset_prefix_cache()
    assert cached(web, prompt) == 0


def test_a_profile_is_the_timeline_from_its_start_to_its_end(web: Web) -> None:
    assert web("/stop_profile", {}).json["error"]["message"].endswith("POST /start_profile first")
    assert web("/start_profile", {}).status == 200
    web(TEXT, {"prompt": "Once", "max_tokens": 5, "ignore_eos": True})
    told = web("/stop_profile", {}).json
    since, until = told["otherData"]["since_ns"] * 1e-3, told["otherData"]["until_ns"] * 1e-3
    names = {event["name"] for event in told["traceEvents"] if event["ph"] == "X"}
    assert len([name for name in names if name.startswith("Plan ")]) >= 5, "each token is a step"
    assert since < until
    assert web("/stop_profile", {}).status == 400, "it was stopped"


def test_a_profile_has_its_beginning_however_late_the_question_for_it_arrives(
    service: Sidecar, web: Web
) -> None:
    gateway = service.pids["gateway"]
    assert web("/start_profile", {}).status == 200
    web(TEXT, {"prompt": "Once", "max_tokens": 5, "ignore_eos": True})
    os.kill(gateway, signal.SIGSTOP)
    late = threading.Timer(0.3, os.kill, (gateway, signal.SIGCONT))
    late.start()
    told = web("/stop_profile", {}).json
    late.join()
    names = {event["name"] for event in told["traceEvents"] if event["ph"] == "X"}
    assert len([name for name in names if name.startswith("Plan ")]) >= 5


def test_without_the_switch_there_are_no_such_endpoints() -> None:
    frontend = Scripted()
    for path in PATHS:
        reply = frontend.post(path, {})
        assert reply.status == 404
        assert "--server-dev-mode" in reply.json["error"]["message"]
    assert not set(PATHS) & frontend.get("/openapi.json").json["paths"].keys()


def test_without_the_switch_no_client_resets_the_cache() -> None:
    with Sidecar(device="emulated") as sidecar, sidecar.client() as client:
        with pytest.raises(InvalidRequest, match="--server-dev-mode"):
            client.reset_prefix_cache()
        assert client.generate("Once").outputs[0].token_ids


def test_a_name_has_defaults_of_its_own(web: Web) -> None:
    def tokens(path: str, **fields: Any) -> tuple[int, str]:
        answer = web(path, fields).json
        choice = answer["choices"][0]
        return answer["usage"]["completion_tokens"], choice.get("text") or choice["message"]["content"]

    for path, asked in ((TEXT, {"prompt": "Once"}), (CHAT, {"messages": HELLO})):
        first = tokens(path, model="short", **asked)
        assert first[0] == 3
        assert tokens(path, model="short", **asked) == first, "the seed is a default too"
        assert tokens(path, model="short", max_tokens=5, **asked)[0] == 5
        assert tokens(path, model="tiny", max_tokens=6, ignore_eos=True, **asked)[0] == 6


def test_what_a_request_says_is_kept_and_the_rest_is_filled() -> None:
    given = {MODEL: {"temperature": 0.5, "max_tokens": 9, "chat_template_kwargs": {"a": 1, "b": 2}}}
    frontend = Scripted(Script("x"), defaults=given)
    assert frontend.post(CHAT, {"messages": HELLO, "max_completion_tokens": 4}).status == 200
    params = frontend.script.asked["params"]
    assert (params.temperature, params.max_tokens) == (0.5, 4)
    asked = {"messages": HELLO, "temperature": 0.0, "chat_template_kwargs": {"b": 3}}
    assert frontend.post(CHAT, asked).status == 200
    assert frontend.script.asked["params"].temperature == 0.0
    assert frontend.script.asked["chat_template_kwargs"] == {"a": 1, "b": 3}
    assert frontend.post("/v1/responses", {"input": "hi", "store": False}).status == 200
    assert frontend.script.asked["params"].temperature == 0.5
    assert frontend.post(TEXT, {"prompt": "hi"}).status == 200
    assert frontend.script.asked["params"].max_tokens == 9


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"other": {}}, "'other', which is none of the served names m"),
        ({"m": {"messages": []}}, "'messages' for m; fields with a default are"),
        ({"m": {"chat_template_kwargs": {"tools": [{}]}}}, "for m: chat_template_kwargs has tools"),
        ({"m": {"temperature": 9}}, "temperature=9.0 is out of range"),
        ({"m": {"temperature": "hot"}}, "Expected `float | null`"),
        ({"m": {"json_schema": {}}}, "'json_schema' for m"),
    ],
)
def test_defaults_that_no_request_could_have_are_refused_at_the_start(
    given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelNotSupported, match="--model-defaults") as refused:
        Defaults(given, ("m",), LIMITS)
    assert message in str(refused.value)


def test_a_file_of_defaults_that_cannot_be_read_says_how_it_looks(tmp_path: Path) -> None:
    file = tmp_path / "defaults.json"
    file.write_text("[]")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (file, pipe, tmp_path):
        with pytest.raises(InvalidRequest, match="it is a JSON file such as"):
            Sidecar(device="emulated", http="127.0.0.1:0", model_defaults=str(path))


@pytest.mark.parametrize(
    "value",
    [str(10**30), "[" * 5000 + "]" * 5000, json.dumps({"long": "x" * 2**16}), str([1.5] * 10_000)],
    ids=["wide", "deep", "long", "long as numbers"],
)
def test_a_file_of_defaults_that_no_message_can_hold_says_so(tmp_path: Path, value: str) -> None:
    file = tmp_path / "defaults.json"
    file.write_text('{"m": {"chat_template_kwargs": {"key": ' + value + "}}}")
    with pytest.raises(InvalidRequest, match=r"cannot be read: .*; it is a JSON file such as"):
        Sidecar(device="emulated", http="127.0.0.1:0", served_model_name="m", model_defaults=str(file))
