"""The OpenAI face: a real service on an emulated device, asked over HTTP."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from slipstream import Sidecar

NEAR = 30.0
"""Seconds within which anything happens on a busy machine."""

HELLO = [{"role": "user", "content": "hello"}]


def until(condition: Callable[[], object], what: str, seconds: float = NEAR) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)


class Reply:
    def __init__(self, answer: Any) -> None:
        self.status: int = answer.status
        self.headers: dict[str, str] = {name.lower(): value for name, value in answer.headers.items()}
        self.body: bytes = answer.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The events of a stream, ``[DONE]`` as it is."""
        assert self.headers["content-type"].startswith("text/event-stream")
        *lines, rest = self.body.decode().split("\n\n")
        assert rest == ""
        data = [line.removeprefix("data: ") for line in lines]
        return [part if part == "[DONE]" else json.loads(part) for part in data]


class Web:
    """A client that knows only HTTP and JSON."""

    def __init__(self, url: str) -> None:
        self.url = url

    def open(self, path: str, body: Any = None, **headers: str) -> Any:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(
            self.url + path, data=data, headers={"content-type": "application/json"} | named
        )
        return urllib.request.urlopen(request, timeout=NEAR)

    def __call__(self, path: str, body: Any = None, **headers: str) -> Reply:
        try:
            return Reply(self.open(path, body, **headers))
        except urllib.error.HTTPError as error:
            return Reply(error)

    def chat(self, **fields: Any) -> Reply:
        return self("/v1/chat/completions", {"messages": HELLO} | fields)


@pytest.fixture(scope="module")
def service() -> Iterator[Sidecar]:
    with Sidecar(device="emulated", http="127.0.0.1:0", max_num_seqs=16, emulated_step_ms=2) as sidecar:
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
