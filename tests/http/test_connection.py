"""HTTP as it is spoken on a connection, and the bounds that each connection has."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, BinaryIO

import pytest
from processes import until
from scripted import Script, Scripted
from slipstream.actors.http.server import listen, make_server
from slipstream.actors.http.transport import connection

HELLO = [{"role": "user", "content": "hello"}]
CHAT = "/v1/chat/completions"
NEAR = 20.0


class Served:
    """A scripted frontend behind a real socket."""

    def __init__(self, script: Script, most_connections: int | None) -> None:
        self.frontend = Scripted(script)
        self.listener = listen("127.0.0.1:0")
        self.address = self.listener.getsockname()
        self.server = make_server(self.frontend.app, most_connections)
        self.loop: Any = None
        self.thread = threading.Thread(target=lambda: asyncio.run(self.serve()))

    async def serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        await self.server.serve(sockets=[self.listener])

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=NEAR)

    def talk(self, data: bytes) -> tuple[bytes, dict[str, str], bytes]:
        """The status line, the headers and the body of the answer to these bytes."""
        with self.connect() as line:
            line.sendall(data)
            answer = b"".join(iter(lambda: line.recv(65536), b""))
        head, _, body = answer.partition(b"\r\n\r\n")
        status, *lines = head.split(b"\r\n")
        headers = dict(each.decode().split(": ", 1) for each in lines)
        return status, headers, body

    def status(self) -> int:
        """Of a plain request on a connection of its own."""
        with contextlib.closing(http.client.HTTPConnection(*self.address, timeout=NEAR)) as client:
            client.request("GET", "/version")
            return client.getresponse().status


@contextlib.contextmanager
def served(script: Script | None = None, most_connections: int | None = None) -> Iterator[Served]:
    made = Served(script or Script("a", "b"), most_connections)
    made.thread.start()
    try:
        yield made
    finally:
        made.loop.call_soon_threadsafe(made.server.ended.set)
        made.thread.join(NEAR)
        assert not made.thread.is_alive()


def stays_open(line: socket.socket, seconds: float) -> bool:
    """Whether the other side still has a connection open ``seconds`` after the last byte."""
    line.settimeout(seconds)
    try:
        while line.recv(65536):
            pass
    except TimeoutError:
        return True
    return False


def post(body: dict[str, Any], version: str = "1.1", extra: str = "") -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/{version}\r\nHost: localhost\r\nContent-Type: application/json\r\n{extra}"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


# --- as spoken ------------------------------------------------------------------------------------


UPGRADE = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
"""As ``curl --http2`` sends it with the first request of a connection."""


@pytest.mark.parametrize("chunked", [False, True], ids=["by length", "in chunks"])
@pytest.mark.parametrize("cut", [None, 1, 40], ids=["at once", "byte by byte", "in parts"])
def test_an_offer_of_http_2_is_passed_over_and_the_request_answered(chunked: bool, cut: int | None) -> None:
    asked = post({"messages": HELLO}, extra=UPGRADE)
    if chunked:
        head, _, body = asked.partition(b"\r\n\r\n")
        lines = [line for line in head.split(b"\r\n") if not line.startswith(b"Content-Length")]
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:9], body[9:]))
        asked = b"\r\n".join([*lines, b"Transfer-Encoding: chunked"]) + b"\r\n\r\n" + chunks + b"0\r\n\r\n"
    with served() as server, server.connect() as line:
        reader = line.makefile("rb")
        for first in range(0, len(asked), cut or len(asked)):
            line.sendall(asked[first : first + (cut or len(asked))])
        assert json.loads(answer_of(reader))["choices"][0]["message"]["content"] == "ab"
        line.sendall(b"GET /version HTTP/1.1\r\nHost: localhost\r\n" + UPGRADE.encode() + b"\r\n")
        assert b"version" in answer_of(reader)
        line.sendall(post({"messages": HELLO}))
        assert json.loads(answer_of(reader))["choices"][0]["message"]["content"] == "ab"


def answer_of(reader: BinaryIO) -> bytes:
    """The body of the next answer on a connection that stays."""
    assert reader.readline().endswith(b" 200 OK\r\n")
    headers = dict(line.split(b": ", 1) for line in iter(reader.readline, b"\r\n"))
    return reader.read(int(headers[b"content-length"]))


def test_two_hosts_are_one_too_many() -> None:
    with served() as server:
        asked = b"GET /version HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
        status, _, body = server.talk(asked)
        assert status.endswith(b" 400 Bad Request")
        assert b"the header Host is there more than once" in body


@pytest.mark.parametrize(
    ("target", "version", "status"),
    [
        (b"http://localhost/version", b"1.1", b"200 OK"),
        (b"HTTP://127.0.0.1:8000/version?x=/y", b"1.1", b"200 OK"),
        (b"http://evil.example/version", b"1.1", b"421 Misdirected Request"),
        (b"http://evil.example/version", b"1.0", b"421 Misdirected Request"),
        (b"http://user@localhost/version", b"1.1", b"400 Bad Request"),
        (b"http://localhost", b"1.1", b"307 Temporary Redirect"),
        (b"http://localhost?x", b"1.1", b"307 Temporary Redirect"),
        (b"/version", b"2.0", b"505 HTTP Version Not Supported"),
    ],
)
def test_a_whole_uri_says_what_host_is_meant_and_another_version_is_not_taken_for_this(
    target: bytes, version: bytes, status: bytes
) -> None:
    with served() as server:
        host = b"" if version == b"1.0" else b"Host: localhost\r\n"
        asked = b"GET %b HTTP/%b\r\n%bConnection: close\r\n\r\n" % (target, version, host)
        assert server.talk(asked)[0] == b"HTTP/1.1 " + status


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("more", [1, 2])
def test_a_client_that_leaves_ends_its_request_though_others_wait_behind_it(
    stream: bool, more: int, caplog: pytest.LogCaptureFixture
) -> None:
    script = Script("a", ends=False)
    with served(script) as server:
        with server.connect() as line:
            line.sendall(post({"messages": HELLO, "stream": stream}) * (1 + more))
            until(lambda: script.running == 1, "the first one runs")
        until(lambda: script.running == 0, "it has ended")
        until(lambda: not server.frontend.app.under_way, "nothing is under way")
        assert server.status() == 200
    assert "Traceback" not in caplog.text


def test_a_stream_to_an_old_client_has_no_chunks_and_ends_with_the_connection() -> None:
    with served() as server:
        status, headers, body = server.talk(post({"messages": HELLO, "stream": True}, "1.0"))
        assert status.endswith(b" 200 OK")
        assert "transfer-encoding" not in headers
        assert "content-length" not in headers
        assert headers["connection"] == "close"
        assert body.startswith(b"data: {")
        assert body.endswith(b"data: [DONE]\n\n")
        status, headers, body = server.talk(post({"messages": HELLO}, "1.0"))
        assert int(headers["content-length"]) == len(body)
        assert json.loads(body)["choices"][0]["message"]["content"] == "ab"
        status, headers, body = server.talk(b"HEAD /version HTTP/1.0\r\nHost: localhost\r\n\r\n")
        assert body == b""
        _, headers, body = server.talk(
            post({"messages": HELLO, "stream": True}, extra="Connection: close\r\n")
        )
        assert headers["transfer-encoding"] == "chunked"


def test_what_is_no_request_is_answered_with_an_id_too() -> None:
    with served() as server:
        ids = set()
        for data, code in ((b"\x81\xa1t\r\n\r\n", 400), (b"GET /" + b"x" * 70_000 + b"\r\n\r\n", 431)):
            status, headers, body = server.talk(data)
            assert f" {code} ".encode() in status
            assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
            ids.add(headers["x-request-id"])
        assert len(ids) == 2


# --- within bounds --------------------------------------------------------------------------------


@pytest.mark.parametrize("begun", [b"", b"POST ", b"GET /version HTTP/1.1\r\nHost: localhost\r\nX-"])
@pytest.mark.parametrize("earlier", [False, True], ids=["at first", "after a request"])
def test_headers_that_do_not_come_end_the_connection(
    begun: bytes, earlier: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEADERS_S", 0.05)
    with served() as server, server.connect() as line:
        if earlier:
            line.sendall(b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b""
            while not answer.endswith(b"}"):
                answer += line.recv(65536)
            begun = begun or b"G"
        line.sendall(begun)
        answer = b"".join(iter(lambda: line.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"0.05 s" in answer


def test_a_slow_answer_is_not_taken_for_late_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEADERS_S", 0.05)
    with served(Script("a", ends=False)) as server, server.connect() as line:
        line.sendall(post({"messages": HELLO, "stream": True}))
        assert b"200 OK" in line.recv(65536)
        assert stays_open(line, 0.3)


def test_who_only_holds_connections_locks_nobody_out() -> None:
    with served(Script("a", ends=False), most_connections=20) as server, contextlib.ExitStack() as held:
        streams = [held.enter_context(server.connect()) for _ in range(10)]
        for stream in streams:
            stream.sendall(post({"messages": HELLO, "stream": True}))
            assert b"200 OK" in stream.recv(65536)
        idle = [held.enter_context(server.connect()) for _ in range(60)]
        assert [server.status() for _ in range(5)] == [200] * 5
        evicted = [line.recv(65536) for line in idle[:50]]
        assert {answer[:12] for answer in evicted} == {b"HTTP/1.1 503"}
        for stream in streams:  # those at work went on
            assert stays_open(stream, 0.01)


def test_where_all_connections_are_at_work_one_more_is_told_to_come_later() -> None:
    with served(Script("a", ends=False), most_connections=3) as server, contextlib.ExitStack() as held:
        for _ in range(3):
            stream = held.enter_context(server.connect())
            stream.sendall(post({"messages": HELLO, "stream": True}))
            assert b"200 OK" in stream.recv(65536)
        with server.connect() as refused:
            answer = refused.recv(65536)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: 1" in answer
        assert b"3 HTTP connections" in answer


def test_a_client_that_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "UNREAD_S", 0.2)
    script = Script(*["x" * 100_000] * 1000)
    with served(script) as server, server.connect() as line:
        line.sendall(post({"messages": HELLO, "stream": True}))
        assert b"200 OK" in line.recv(1000)
        due = time.monotonic() + NEAR
        while script.running and time.monotonic() < due:
            time.sleep(0.01)
        assert script.running == 0
        assert server.status() == 200


def test_a_client_that_reads_again_in_time_gets_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "UNREAD_S", 10.0)
    script = Script(*["x" * 100_000] * 300)
    with served(script) as server, server.connect() as line:
        line.sendall(post({"messages": HELLO, "stream": True}, extra="Connection: close\r\n"))
        time.sleep(0.3)
        answer = b"".join(iter(lambda: line.recv(1 << 20), b""))
        assert answer.count(b"x" * 100_000) == 300
        assert b"[DONE]" in answer
