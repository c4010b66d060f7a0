"""The clients in ``examples/`` that share no code with Slipstream: raw Python, JavaScript and C++.

Each is run as a user runs it, against a real service and against a stand-in that plays the golden vectors.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
from slipstream.protocol.codec import decode_from_client
from slipstream.protocol.messages import Generate, Hello

from slipstream import SamplingParams, Sidecar
from slipstream.reference import golden

EXAMPLES = Path(__file__).parents[2] / "examples"
SOURCES = {
    "python": EXAMPLES / "python" / "raw_client.py",
    "javascript": EXAMPLES / "javascript" / "client.mjs",
    "c++": EXAMPLES / "cpp" / "client.cpp",
}
PROMPT = "Once upon a time, in Grüße 世界 🙂"
TIMEOUT_S = 90


def lacking(language: str) -> str | None:
    """What this machine has not got for a language."""
    if language == "javascript":
        if shutil.which("node") is None:
            return "there is no node on this machine"
        if not (EXAMPLES / "javascript" / "node_modules").is_dir():
            return "its packages are not installed: npm ci --prefix examples/javascript"
    if language == "c++":
        for tool in ("c++", "make"):
            if shutil.which(tool) is None:
                return f"there is no {tool} on this machine"
        for header in ("zmq.hpp", "msgpack.hpp"):
            probe = [
                "c++",
                "-std=c++17",
                "-DMSGPACK_NO_BOOST",
                "-fsyntax-only",
                "-include",
                header,
                "-x",
                "c++",
            ]
            if subprocess.run([*probe, os.devnull], capture_output=True).returncode != 0:
                return f"there is no {header}: on Debian, apt-get install cppzmq-dev libmsgpack-cxx-dev"
    return None


def command_of(language: str, scratch: Path) -> list[str]:
    """How the client is started; the test is skipped if the machine has not got what it needs."""
    reason = lacking(language)
    if reason is not None:
        pytest.skip(reason)
    if language == "python":
        return [sys.executable, str(SOURCES[language])]
    if language == "javascript":
        return ["node", str(SOURCES[language])]
    shutil.copytree(EXAMPLES / "cpp", scratch / "cpp", ignore=shutil.ignore_patterns("client"))
    subprocess.run(["make", "-C", scratch / "cpp", "CXXFLAGS=-O0 -Wall -Wextra -Werror"], check=True)
    return [str(scratch / "cpp" / "client")]


@pytest.fixture(scope="module", params=SOURCES)
def command(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return command_of(request.param, tmp_path_factory.mktemp("client"))


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    with Sidecar(device="emulated", emulated_step_ms=10, max_num_seqs=8) as started:
        yield started


def run(command: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=TIMEOUT_S)


def expected(sidecar: Sidecar, tokens: int) -> str:
    with sidecar.client() as client:
        return (
            client.generate(PROMPT, SamplingParams(max_tokens=tokens, temperature=0, seed=7)).outputs[0].text
        )


# --- the sources --------------------------------------------------------------------------------


def test_the_clients_are_short_and_need_only_what_they_say() -> None:
    lines = {name: len(source.read_text().splitlines()) for name, source in SOURCES.items()}
    assert lines["python"] <= 40
    assert lines["javascript"] < 100
    assert lines["c++"] < 100
    tree = ast.parse(SOURCES["python"].read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert imported == {"sys", "msgpack", "zmq"}
    assert not any(isinstance(node, ast.ImportFrom) for node in ast.walk(tree))
    package = json.loads((EXAMPLES / "javascript" / "package.json").read_text())
    assert set(package["dependencies"]) == {"zeromq", "@msgpack/msgpack"}


def test_the_lock_file_names_no_registry() -> None:
    """It then works with whatever registry ``npm`` is set up for, and the hashes hold for all of them."""
    packages = json.loads((EXAMPLES / "javascript" / "package-lock.json").read_text())["packages"]
    assert all("integrity" in package for path, package in packages.items() if path)
    assert [path for path, package in packages.items() if "resolved" in package] == []


# --- a real service -----------------------------------------------------------------------------


def test_a_client_streams_what_ours_does(command: list[str], sidecar: Sidecar) -> None:
    done = run(command, sidecar.endpoint, PROMPT, "24")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == expected(sidecar, 24)


def test_a_client_tells_of_an_error(command: list[str], sidecar: Sidecar) -> None:
    done = run(command, sidecar.endpoint, PROMPT, "0")
    assert done.returncode == 1
    assert "invalid_request: max_tokens=0 is out of range; it must be at least 1" in done.stderr
    assert done.stdout == ""


@pytest.mark.rest
def test_every_client_goes_on_after_the_gateway_was_killed(sidecar: Sidecar, tmp_path: Path) -> None:
    """All of them at once, in the middle of their answers; none loses, repeats or changes a token."""
    commands = [command_of(name, tmp_path) for name in SOURCES if lacking(name) is None]
    whole = expected(sidecar, 150)
    arguments = [sidecar.endpoint, PROMPT, "150"]
    clients = [subprocess.Popen([*one, *arguments], stdout=subprocess.PIPE) for one in commands]
    try:
        started = [os.read(client.stdout.fileno(), 65536) for client in clients if client.stdout is not None]
        os.kill(sidecar.pids["gateway"], signal.SIGKILL)
        for client, begun in zip(clients, started, strict=True):
            rest, _ = client.communicate(timeout=TIMEOUT_S)
            assert client.returncode == 0
            assert len(begun) < len(whole.encode())
            assert (begun + rest).decode() == whole
    finally:
        for client in clients:
            client.kill()
            client.wait()


# --- the golden vectors -------------------------------------------------------------------------


class StandIn:
    """A service that answers a request with given frames. ``ID`` in them stands for the request's id."""

    def __init__(self, folder: Path, messages: list[dict[str, Any]]) -> None:
        self.endpoint = f"ipc://{folder}/stand-in"
        self.messages = messages
        self.asked: list[Hello | Generate] = []
        self.socket = zmq.Context.instance().socket(zmq.ROUTER)
        self.socket.set(zmq.LINGER, 1000)
        self.socket.bind(self.endpoint)
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        while len(self.asked) < 2 and self.socket.poll(TIMEOUT_S * 1000):
            client, frame = self.socket.recv_multipart()
            message = decode_from_client(frame)
            assert isinstance(message, Hello | Generate)
            self.asked.append(message)
            if isinstance(message, Generate):
                for answer in self.messages:
                    self.socket.send_multipart([client, msgpack.packb(renamed(answer, message.id)) or b""])

    def close(self) -> list[Hello | Generate]:
        self.thread.join(TIMEOUT_S)
        self.socket.close()
        return self.asked


def renamed(value: Any, id: str) -> Any:
    if isinstance(value, dict):
        return {key: renamed(item, id) for key, item in value.items()}
    if isinstance(value, list):
        return [renamed(item, id) for item in value]
    return id if value == "ID" else value


VECTORS: list[dict[str, Any]] = [
    vector["message"]
    for vector in json.loads(golden.files()["public.json"])["vectors"]
    if vector["sender"] == "service"
]
"""What a service says, as a client in any language reads it."""

OTHERS = [message for message in VECTORS if message["t"] != "error"]


def for_us(message: dict[str, Any]) -> dict[str, Any]:
    """A vector with the request's own id, and fields that a later minor version may add."""
    if message["t"] == "deltas":
        items = [item | {"id": "ID", "later": [1]} for item in message["items"]]
        return message | {"items": items, "later": {"a": None}}
    return message | ({"id": "ID"} if "id" in message else {}) | {"later": {"a": None}}


@pytest.mark.parametrize(
    "last",
    [message for message in VECTORS if "finish_reason" in str(message)],
    ids=lambda m: str(m["items"][0]),
)
def test_a_client_reads_every_golden_vector(command: list[str], last: dict[str, Any], tmp_path: Path) -> None:
    """Those of other requests and of types that it has no use for are passed over; its own are told."""
    first = {"t": "deltas", "items": [{"id": "ID", "text": "Grüße, 世界 🙂", "token_ids": [70000, 0]}]}
    unknown = {"t": "of a later version", "id": "ID", "items": 7}
    stand_in = StandIn(tmp_path, [*OTHERS, unknown, first, for_us(last)])
    done = run(command, stand_in.endpoint, PROMPT, "7")
    hello, generate = stand_in.close()
    assert isinstance(hello, Hello)
    assert hello.protocol == [1, 0]
    assert isinstance(generate, Generate)
    assert (generate.prompt, generate.received) == (PROMPT, [])
    assert generate.params == SamplingParams(max_tokens=7, temperature=0.0, seed=7)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "Grüße, 世界 🙂" + last["items"][0].get("text", "")


@pytest.mark.parametrize(
    "error", [message for message in VECTORS if message["t"] == "error"], ids=lambda m: m["message"]
)
def test_a_client_tells_every_golden_error(command: list[str], error: dict[str, Any], tmp_path: Path) -> None:
    other = {"t": "error", "code": "internal", "message": "of another request", "id": "another"}
    stand_in = StandIn(tmp_path, [VECTORS[0], other, for_us(error)])
    done = run(command, stand_in.endpoint, PROMPT)
    stand_in.close()
    assert done.returncode == 1
    assert f"{error['code']}: {error['message']}" in done.stderr
