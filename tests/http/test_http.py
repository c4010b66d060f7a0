"""The OpenAI frontend: a real service on an emulated device, asked over HTTP."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from processes import NEAR, until
from web import HELLO, Reply, Web

from slipstream import SamplingParams, Sidecar


@pytest.fixture(scope="module")
def service() -> Iterator[Sidecar]:
    options: dict[str, Any] = {"max_num_seqs": 16, "max_model_len": 1024, "emulated_step_ms": 2}
    with Sidecar(device="emulated", http="127.0.0.1:0", **options) as sidecar:
        yield sidecar


@pytest.fixture
def web(service: Sidecar) -> Web:
    return Web(service.ready["http"])


# --- shapes -------------------------------------------------------------------------------------


def test_a_chat_completion_has_openais_shape(web: Web) -> None:
    reply = web.chat(max_tokens=5, seed=1)
    assert reply.status == 200
    told = reply.json
    assert told["id"].startswith("chatcmpl-")
    assert told["object"] == "chat.completion"
    assert told["model"] == "slipstream-bundled"
    assert abs(told["created"] - time.time()) < NEAR
    (choice,) = told["choices"]
    assert choice["index"] == 0
    assert choice["finish_reason"] == "length"
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"]
    usage = told["usage"]
    assert usage["completion_tokens"] == 5
    assert usage["total_tokens"] == usage["prompt_tokens"] + 5


def test_a_stream_has_one_id_the_role_first_and_the_reason_and_the_usage_last(web: Web) -> None:
    whole = web.chat(max_tokens=12, seed=3).json
    reply = web.chat(max_tokens=12, seed=3, stream=True, stream_options={"include_usage": True})
    *chunks, usage, done = reply.events
    assert done == "[DONE]"
    everything = [*chunks, usage]
    assert len({(c["id"], c["created"], c["model"], c["object"]) for c in everything}) == 1
    assert usage["object"] == "chat.completion.chunk"
    assert usage["choices"] == []
    assert usage["usage"] == whole["usage"]
    assert all(chunk["usage"] is None for chunk in chunks)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert deltas[-1] == {}
    assert reasons == [None] * (len(chunks) - 1) + ["length"]
    text = "".join(delta["content"] for delta in deltas[:-1])
    assert text == whole["choices"][0]["message"]["content"]


def test_without_include_usage_no_chunk_speaks_of_usage(web: Web) -> None:
    *chunks, done = web.chat(max_tokens=3, stream=True).events
    assert done == "[DONE]"
    assert all("usage" not in chunk and len(chunk["choices"]) == 1 for chunk in chunks)


# --- texts --------------------------------------------------------------------------------------


def test_tokenize_and_detokenize_are_those_of_the_service(service: Sidecar, web: Web) -> None:
    with service.client() as client:
        ids = client.generate("Once upon a time", SamplingParams(max_tokens=1)).prompt_token_ids
        chat_ids = client.chat(HELLO, SamplingParams(max_tokens=1)).prompt_token_ids
    told = web("/tokenize", {"prompt": "Once upon a time", "return_token_strs": True}).json
    assert told["tokens"] == ids
    assert told["count"] == len(ids or ()) == len(told["token_strs"])
    assert told["max_model_len"] == 1024
    assert web("/detokenize", {"tokens": ids}).json == {"prompt": "Once upon a time"}
    assert web("/tokenize", {"messages": HELLO}).json["tokens"] == chat_ids
    assert web("/tokenize", {"messages": HELLO, "add_generation_prompt": False}).json["count"] < len(
        chat_ids or ()
    )


# --- bad input ----------------------------------------------------------------------------------

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"

BAD: dict[str, tuple[int, str, Any, list[str]]] = {
    "no such path": (404, "/v1/nothing", None, ["/v1/nothing"]),
    "wrong method": (405, CHAT, None, ["POST", "GET"]),
    "no JSON": (400, CHAT, b"{", ["no JSON"]),
    "no UTF-8": (400, CHAT, b'{"messages": [{"role": "\xff"}]}', ["no JSON"]),
    "deep JSON": (400, CHAT, b'{"messages": ' + b"[" * 200_000, []),
    "deep schema": (
        400,
        CHAT,
        b'{"messages": [{"role":' + b'{"a":' * 20_000 + b"1",
        ["nested too deep", "32"],
    ),
    "a list": (400, CHAT, [], ["object", "array"]),
    "no messages": (400, CHAT, {}, ["messages"]),
    "empty messages": (400, CHAT, {"messages": []}, ["messages"]),
    "message without role": (400, CHAT, {"messages": [{"content": "x"}]}, ["role"]),
    "lone surrogate": (400, CHAT, b'{"messages": [{"role": "user", "content": "\\ud800"}]}', ["no JSON"]),
    "unknown field": (400, CHAT, {"messages": HELLO, "best_off": 2}, ["best_off"]),
    "unknown field of a message": (
        400,
        CHAT,
        {"messages": [{"role": "user", "content": "x", "colour": "red"}]},
        ["messages[0].colour is no field that is read here", "content"],
    ),
    "wrong type": (400, CHAT, {"messages": HELLO, "n": "2"}, ["n", "'2'"]),
    "NaN": (400, CHAT, b'{"messages": [{}], "temperature": NaN}', ["no JSON"]),
    "huge number": (400, CHAT, {"messages": HELLO, "seed": 2**70}, ["seed"]),
    "infinite number": (400, CHAT, b'{"messages": [{}], "temperature": 1e999}', ["temperature"]),
    "out of range": (400, CHAT, {"messages": HELLO, "top_p": 1.5}, ["top_p=1.5", "1.0"]),
    "prompt of nothing": (400, TEXT, {"prompt": []}, ["prompt"]),
    "prompt of both": (400, TEXT, {"prompt": ["a", 5]}, ["mixes"]),
    "unknown token": (400, TEXT, {"prompt": [5, 99999]}, ["99999", "2047"]),
    "negative token": (400, "/detokenize", {"tokens": [-1]}, ["-1", "2047"]),
    "too long": (400, TEXT, {"prompt": [5] * 1024}, ["1024 tokens"]),
    "too many prompts": (400, TEXT, {"prompt": ["a"] * 2000}, ["2000"]),
    "nothing to tokenize": (400, "/tokenize", {}, ["prompt", "messages"]),
    "other model": (404, TEXT, {"prompt": "a", "model": "b"}, ["'b'", "slipstream-bundled"]),
    "too large": (413, CHAT, b" " * (17 << 20), ["16777216"]),
}


AT_ONCE_S = 0.05


def test_every_bad_input_is_answered_at_once_in_openais_form_while_a_stream_goes_on(web: Web) -> None:
    body = {"messages": HELLO, "max_tokens": 900, "ignore_eos": True, "stream": True}
    streaming = web.open(CHAT, body)
    assert streaming.readline()
    slowest = 0.0
    for name, (status, path, sent, named) in BAD.items():
        best, reply = float("inf"), None
        for _ in range(20):  # the machine may be busy with other things
            begun = time.monotonic()
            reply = web(path, sent)
            best = min(best, time.monotonic() - begun)
            if best < AT_ONCE_S:
                break
        assert reply is not None
        slowest = max(slowest, best) if name != "too large" else slowest
        assert reply.status == status, name
        error = reply.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"
        for word in named:
            assert word in error["message"], name
    print(f"slowest refusal {slowest * 1000:.1f} ms")
    assert slowest < AT_ONCE_S
    assert streaming.readlines()[-2] == b"data: [DONE]\n"


def deep(levels: int) -> Any:
    value: Any = "x"
    for level in range(levels):
        value = [value] if level % 2 else {"items": value}
    return value


@pytest.mark.parametrize("levels", [40, 200, 900])
def test_what_is_nested_deeper_than_a_frame_may_be_is_refused_wherever_it_is(web: Web, levels: int) -> None:
    schema = {"type": "array", "items": deep(levels)}
    call = {
        "id": "1",
        "type": "function",
        "function": {"name": "f", "arguments": json.dumps({"a": deep(levels)})},
    }
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    strict = [{"type": "function", "function": {"name": "f", "parameters": schema, "strict": True}}]
    places: dict[str, tuple[str, dict[str, Any]]] = {
        "messages": (CHAT, {"messages": [{"role": "user", "content": "x", "name": deep(levels)}]}),
        "messages[0].tool_calls": (CHAT, {"messages": [{"role": "assistant", "tool_calls": [call]}]}),
        "chat_template_kwargs": (CHAT, {"messages": HELLO, "chat_template_kwargs": {"a": deep(levels)}}),
        "tools": (CHAT, {"messages": HELLO, "tools": tools}),
        "tools, strict": (CHAT, {"messages": HELLO, "tools": strict}),
        "tools, required": (CHAT, {"messages": HELLO, "tools": tools, "tool_choice": "required"}),
        "tools, named": (
            CHAT,
            {
                "messages": HELLO,
                "tools": tools,
                "tool_choice": {"type": "function", "function": {"name": "f"}},
            },
        ),
        "structured_outputs": (TEXT, {"prompt": "x", "structured_outputs": {"json": schema}}),
        "messages to be tokens": (
            "/tokenize",
            {"messages": [{"role": "user", "content": "x", "a": deep(levels)}]},
        ),
    }
    for place, (path, body) in places.items():
        refused = web(path, body)
        assert refused.status == 400, (place, refused.body)


def talk(url: str, data: bytes) -> tuple[bytes, Any]:
    """The status line and the body of what a server answers to these bytes."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=NEAR) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.splitlines()[0], json.loads(body)


def test_what_is_no_http_and_what_has_too_long_headers_is_refused_in_the_same_form(web: Web) -> None:
    status, told = talk(web.url, b"\x81\xa1t\xa5hello\r\n\r\n")
    assert status == b"HTTP/1.1 400 Bad Request"
    assert "no HTTP" in told["error"]["message"]
    for data in (b"GET /health HTTP/1.1\r\nX: " + b"x" * 70_000, b"GET /" + b"x" * 70_000):
        status, told = talk(web.url, data + b"\r\n\r\n")
        assert status.startswith(b"HTTP/1.1 431 ")
        assert "65536" in told["error"]["message"]
    assert web("/health").status == 200


def test_a_body_that_is_not_said_to_be_json_is_refused(web: Web) -> None:
    reply = web(CHAT, {"messages": HELLO}, content_type="text/plain")
    assert reply.status == 415
    assert "application/json" in reply.json["error"]["message"]


# --- who may ask --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded() -> Iterator[Web]:
    options: dict[str, Any] = {"api_key": "sesame", "allowed_origins": "https://a.example, https://b.example"}
    with Sidecar(device="emulated", http="127.0.0.1:0", served_model_name="tiny", **options) as sidecar:
        yield Web(sidecar.ready["http"])


def test_a_key_opens_everything_but_the_probes_which_need_none(guarded: Web) -> None:
    for path in ("/v1/models", "/v1/nothing"):
        for headers in (
            {},
            {"authorization": "Bearer sesam"},
            {"authorization": "sesame"},
            {"authorization": "é"},
        ):
            refused = guarded(path, **headers)
            assert refused.status == 401
            assert refused.json["error"]["code"] == "invalid_api_key"
    assert guarded("/v1/models", authorization="Bearer sesame").json["data"][0]["id"] == "tiny"
    assert {guarded(path).status for path in ("/health", "/ready", "/version", "/openapi.json")} == {200}


def test_only_pages_of_allowed_origins_may_read_answers(guarded: Web, web: Web) -> None:
    def allowed(web: Web, origin: str) -> str | None:
        return web("/version", origin=origin).headers.get("access-control-allow-origin")

    assert allowed(guarded, "https://a.example") == "https://a.example"
    assert allowed(guarded, "https://b.example") == "https://b.example"
    assert allowed(guarded, "https://c.example") is None
    assert allowed(web, "https://a.example") is None


def test_a_request_keeps_its_id_or_is_given_one(web: Web) -> None:
    assert web("/version", x_request_id="mine-1").headers["x-request-id"] == "mine-1"
    assert web("/nothing", x_request_id="mine-2").headers["x-request-id"] == "mine-2"
    given = {web("/version").headers["x-request-id"] for _ in range(3)}
    assert len(given) == 3
    assert len(web("/version", x_request_id="x" * 500).headers["x-request-id"]) == 32


def test_health_and_readiness_tell_of_every_actor(web: Web) -> None:
    for path in ("/health", "/ready"):
        told = web(path)
        assert told.status == 200
        assert told.json["status"] == "ok"
        states = {actor["name"]: actor["state"] for actor in told.json["actors"]}
        assert set(states) == {"executor", "scheduler", "detokenizer", "tokenizer", "gateway", "http"}
        assert set(states.values()) == {"ready"}


def test_metrics_have_a_type_and_count_the_frontends_own_work_and_refusals(web: Web) -> None:
    refused = 'slipstream_http_requests_total{engine="0",model_name="slipstream-bundled",status="400"}'

    def metrics() -> dict[str, float]:
        lines = web("/metrics").body.decode().splitlines()
        assert not [line for line in lines if line.startswith("# TYPE") and line.endswith("untyped")]
        return {
            name: float(value)
            for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")
        }

    before = metrics().get(refused, 0.0)
    for _ in range(3):
        assert web.chat(no_such_field=1).status == 400
    assert metrics()[refused] == before + 3
    busy = 'slipstream_actor_busy_seconds_total{actor="http",engine="0",model_name="slipstream-bundled"}'
    until(lambda: metrics()[busy] > 0.1, "the supervisor has asked what the frontend has done")


# --- life ---------------------------------------------------------------------------------------


def test_a_client_that_disconnects_ends_its_request(service: Sidecar, web: Web) -> None:
    with service.client() as client:
        before = client.stats()["requests_aborted"]
        body = {"messages": HELLO, "max_tokens": 900, "ignore_eos": True}
        streaming = web.open("/v1/chat/completions", body | {"stream": True})
        assert streaming.readline().startswith(b"data: ")
        until(lambda: client.stats()["num_requests_running"] == 1, "the request runs")
        streaming.close()
        until(lambda: client.stats()["requests_aborted"] == before + 1, "it was aborted")
        until(lambda: client.stats()["num_requests_running"] == 0, "nothing runs")


def test_the_face_is_restarted_at_the_same_place(service: Sidecar, web: Web) -> None:
    before = service.pids
    os.kill(before["http"], signal.SIGKILL)
    until(lambda: service.pids["http"] != before["http"], "a new process")

    def answers() -> bool:
        try:
            return web("/health").status == 200
        except OSError:
            return False

    until(answers, "it answers again")
    assert {name: pid for name, pid in service.pids.items() if name != "http"} == {
        name: pid for name, pid in before.items() if name != "http"
    }


def test_a_stream_survives_the_death_of_the_gateway(service: Sidecar, web: Web) -> None:
    fields = {"max_tokens": 400, "seed": 5, "ignore_eos": True}
    expected = web.chat(**fields).json["choices"][0]["message"]["content"]
    streaming = web.open("/v1/chat/completions", {"messages": HELLO, "stream": True} | fields)
    first = [streaming.readline() for _ in range(6)]
    os.kill(service.pids["gateway"], signal.SIGKILL)
    lines = [line for line in first + streaming.readlines() if line.startswith(b"data: {")]
    chunks = [json.loads(line.removeprefix(b"data: ")) for line in lines]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == expected


@pytest.mark.rest
def test_a_stream_survives_that_all_actors_start_again() -> None:
    with Sidecar(device="emulated", http="127.0.0.1:0", emulated_step_ms=5) as sidecar:
        web = Web(sidecar.ready["http"])
        body: dict[str, Any] = {"messages": HELLO, "max_tokens": 1000, "ignore_eos": True, "seed": 5}
        whole = web("/v1/chat/completions", body).json["choices"][0]["message"]["content"]
        frontend = sidecar.pids["http"]
        stream = web.open("/v1/chat/completions", body | {"stream": True})
        while "restarting all" not in sidecar.log:
            pid = sidecar.pids["tokenizer"]
            os.kill(pid, signal.SIGKILL)
            until(lambda pid=pid: sidecar.pids.get("tokenizer") not in (None, pid), "there is another one")
        *events, done = Reply(stream).events
        assert done == "[DONE]"
        assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == whole
        assert sidecar.pids["http"] == frontend
        assert sidecar.stop() == 0


def test_a_drain_lets_a_stream_end_and_refuses_what_is_new() -> None:
    with Sidecar(device="emulated", http="127.0.0.1:0", emulated_step_ms=5) as sidecar:
        web = Web(sidecar.ready["http"])
        body = {"messages": HELLO, "stream": True, "max_tokens": 300, "ignore_eos": True}
        streaming = web.open("/v1/chat/completions", body)
        streaming.readline()
        stopped = threading.Thread(target=sidecar.stop)
        stopped.start()
        until(lambda: web.chat(max_tokens=1).status == 503, "what is new is refused")
        refused = web.chat(max_tokens=1)
        assert "stopping" in refused.json["error"]["message"]
        assert int(refused.headers["retry-after"]) >= 1
        assert streaming.readlines()[-2:] == [b"data: [DONE]\n", b"\n"]
        stopped.join(NEAR)
        assert sidecar.stop() == 0
