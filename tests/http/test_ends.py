"""How a real service ends while HTTP clients are there."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from typing import Any

from processes import NEAR, alive, until
from web import HELLO, Reply, Web

from slipstream import Sidecar

LONG: dict[str, Any] = {"messages": HELLO, "max_tokens": 1000, "ignore_eos": True}
CHAT = "/v1/chat/completions"


def test_what_a_drain_leaves_is_answered_with_an_error_and_no_traceback_is_logged() -> None:
    with Sidecar(device="emulated", http="127.0.0.1:0", emulated_step_ms=20, shutdown_timeout=1) as sidecar:
        web = Web(sidecar.ready["http"])
        stream = web.open(CHAT, LONG | {"stream": True})
        assert stream.readline().startswith(b"data: ")
        answers: list[Reply] = []
        asking = threading.Thread(target=lambda: answers.append(web(CHAT, LONG)))
        asking.start()
        with sidecar.client() as client:
            until(lambda: client.stats()["num_requests_running"] == 2, "both run")
        code = sidecar.stop()
        asking.join(NEAR)
        lines = [line for line in stream.read().split(b"\n\n") if line]
        assert code == 4, "something was cut off"
        assert lines[-1] == b"data: [DONE]"
        stopped = json.loads(lines[-2].removeprefix(b"data: "))["error"]
        assert "was stopped before this request was finished" in stopped["message"]
        [whole] = answers
        assert whole.status == 503
        assert whole.json["error"] == stopped
        assert "Traceback" not in sidecar.log


def test_a_frontend_that_dies_in_a_drain_has_cut_off_its_answers_and_the_exit_code_says_so() -> None:
    with Sidecar(device="emulated", http="127.0.0.1:0", emulated_step_ms=20) as sidecar:
        stream = Web(sidecar.ready["http"]).open(CHAT, LONG | {"stream": True})
        assert stream.readline().startswith(b"data: ")
        pid = sidecar.pids["http"]
        os.kill(sidecar.pid, signal.SIGTERM)
        until(lambda: "stopping" in sidecar.log, "the drain has begun")
        os.kill(pid, signal.SIGKILL)
        until(lambda: alive([sidecar.pid]) == [], "the drain is over")
        assert sidecar.stop() == 4
        assert "http ended in the middle of answers" in sidecar.log


def test_an_upload_that_stalls_or_breaks_neither_holds_a_drain_nor_is_worth_a_traceback() -> None:
    with Sidecar(device="emulated", http="127.0.0.1:0", shutdown_timeout=20) as sidecar:
        host, port = sidecar.ready["http"].removeprefix("http://").split(":")
        head = f"POST {CHAT} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        data = f"{head}Content-Length: 500\r\n\r\n{{".encode()
        with socket.create_connection((host, int(port))) as broken:
            broken.sendall(data)
        with socket.create_connection((host, int(port)), timeout=NEAR) as stalled:
            stalled.sendall(data)
            assert Web(sidecar.ready["http"])("/health").status == 200  # what came before has been read
            begun = time.monotonic()
            assert sidecar.stop() == 0
            assert time.monotonic() - begun < 10
            answer = b"".join(iter(lambda: stalled.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert "Traceback" not in sidecar.log
