"""``slipstream batch``: every request of a file is answered once, over kills and refusals."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from slipstream.batch import Asker, BatchError, ProgressBar, alone, read_requests, seconds, take_up
from slipstream.cli import main
from slipstream.exit_codes import FAILED, USAGE


def asked(number: int, **others: Any) -> dict[str, Any]:
    body = {"prompt": f"{number}", "max_tokens": 4, "temperature": 0}
    return {"custom_id": f"r{number}", "method": "POST", "url": "/v1/completions", "body": body} | others


def write(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def answers(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@contextmanager
def serving(*, refuses: int = 0) -> Iterator[tuple[str, Counter[str]]]:
    """A server that answers with the prompt, its address, and how often each was asked; it refuses some at first."""
    seen: Counter[str] = Counter()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                refused = sum(seen.values()) < refuses
                seen[body["prompt"]] += 1
            status = 503 if refused else 400 if body["prompt"] == "13" else 200
            data = json.dumps({"prompt": body["prompt"]}).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.send_header("x-request-id", "abc")
            if refused:
                self.send_header("retry-after", "0")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_every_request_is_answered_under_its_own_id_errors_too(tmp_path: Path) -> None:
    requests, output = write(tmp_path / "in", [asked(number) for number in range(30)]), tmp_path / "out"
    with serving(refuses=7) as (url, seen):
        assert main(["batch", str(requests), str(output), "--base-url", url, "--concurrency", "4"]) == 0
    found = {answer["custom_id"]: answer for answer in answers(output)}
    assert len(found) == len(answers(output)) == 30
    assert {answer["response"]["body"]["prompt"] for answer in found.values()} == {str(n) for n in range(30)}
    assert found["r13"]["response"]["status_code"] == 400
    assert found["r7"]["response"] == {"status_code": 200, "request_id": "abc", "body": {"prompt": "7"}}
    assert found["r7"]["error"] is None
    assert sum(seen.values()) == 37


def test_what_was_answered_is_not_asked_again_and_a_cut_line_is(tmp_path: Path) -> None:
    requests, output = write(tmp_path / "in", [asked(number) for number in range(5)]), tmp_path / "out"
    with serving() as (url, seen):
        assert main(["batch", str(requests), str(output), "--base-url", url]) == 0
        whole = output.read_bytes()
        output.write_bytes(whole[:-20])
        lost = json.loads(whole.splitlines()[-1])["custom_id"].removeprefix("r")
        assert main(["batch", str(requests), str(output), "--base-url", url]) == 0
        assert main(["batch", str(requests), str(output), "--base-url", url]) == 0
    assert sorted(answer["custom_id"] for answer in answers(output)) == [f"r{number}" for number in range(5)]
    assert seen == Counter({str(number): 1 for number in range(5)}) + Counter([lost])


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{", "line 2 is no request of a batch"),
        (asked(2, custom_id="r1"), "line 2 has custom_id 'r1', which a line before it has"),
        (
            asked(2, url="/v1/embeddings"),
            "asks POST /v1/embeddings; a batch asks POST /v1/chat/completions or",
        ),
        (asked(2, method="GET"), "line 2 asks GET"),
        (asked(2, body={"prompt": "x", "stream": True}), "leave stream out"),
        (asked(2, body=[]), "Expected `object`"),
    ],
)
def test_a_file_with_a_wrong_line_is_refused_before_anything_is_asked(
    tmp_path: Path, line: Any, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    requests = write(tmp_path / "in", [asked(1), line])
    assert main(["batch", str(requests), str(tmp_path / "out"), "--base-url", "http://127.0.0.1:1"]) == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_output_for_which_there_is_no_room_is_told_in_a_sentence_and_taken_up_later(
    tmp_path: Path,
) -> None:
    """Where a file may have no more bytes, as on a full disk."""
    source, out = write(tmp_path / "in", [asked(number) for number in range(20, 60)]), tmp_path / "out"
    with serving() as (url, _):
        command = [sys.executable, "-m", "slipstream", "batch", str(source), str(out), "--base-url", url]
        full = subprocess.run(
            command,
            capture_output=True,
            text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)),
        )
        assert full.returncode == FAILED
        assert full.stderr.splitlines()[-1].startswith(f"slipstream batch: {out} cannot be written: ")
        assert "Traceback" not in full.stderr
        assert subprocess.run(command).returncode == 0
    assert Counter(each["custom_id"] for each in answers(out)) == {f"r{n}": 1 for n in range(20, 60)}


def test_an_output_that_cannot_be_made_is_told_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "in", [asked(1)])
    with serving() as (url, _):
        assert main(["batch", str(source), str(tmp_path / "none" / "out"), "--base-url", url]) == FAILED
        assert main(["batch", str(source), str(tmp_path), "--base-url", url]) == USAGE
    assert capsys.readouterr().err.count("cannot be written: ") == 2


def test_a_file_may_begin_with_the_mark_of_its_encoding(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_text(json.dumps(asked(1)) + "\r\n" + json.dumps(asked(2)), encoding="utf-8-sig")
    assert [request.custom_id for request in read_requests(path)] == ["r1", "r2"]


def test_an_output_of_something_else_is_left_alone(tmp_path: Path) -> None:
    requests = read_requests(write(tmp_path / "in", [asked(1)]))
    others = write(tmp_path / "out", [{"custom_id": "zzz"}])
    with pytest.raises(BatchError, match="answers to other requests, 'zzz' for one"):
        take_up(others, requests)
    letter = write(tmp_path / "letter", ["Dear all,"])
    with pytest.raises(BatchError, match="is no output of a batch"):
        take_up(letter, requests)
    assert letter.read_text() == "Dear all,\n"


def test_the_requests_themselves_are_no_answers(tmp_path: Path) -> None:
    """Nor is the last line of another file taken for one that a kill has cut off."""
    path = tmp_path / "in"
    path.write_text(json.dumps(asked(1)) + "\n" + json.dumps(asked(2)))
    with pytest.raises(BatchError, match="has requests, not answers"):
        take_up(path, read_requests(path))
    assert len(read_requests(path)) == 2
    other = tmp_path / "other"
    other.write_text(json.dumps({"custom_id": "z", "response": {}}) + "\nthe end")
    with pytest.raises(BatchError, match="has answers to other requests, 'z' for one"):
        take_up(other, read_requests(path))
    assert other.read_text().endswith("\nthe end")


def test_two_batches_do_not_write_to_one_output_at_once(tmp_path: Path) -> None:
    """Each would answer what it finds missing: every request twice."""
    output = tmp_path / "out"
    told = f"another batch is writing to {output}; wait until it ends"
    with alone(output), pytest.raises(BatchError, match=told), alone(output):
        pass
    with alone(output):
        assert take_up(output, []) == []


def test_what_cannot_be_locked_is_told_where_it_is_written(tmp_path: Path) -> None:
    with alone(tmp_path), alone(tmp_path / "not" / "here" / "out"), alone(Path("-")):
        assert not Path("-").exists()


@pytest.mark.parametrize("name", ["/dev/null", "-"])
def test_an_output_that_nothing_can_be_taken_up_from_is_refused(name: str) -> None:
    with pytest.raises(BatchError, match=f"{name} is no file; name one"):
        take_up(Path(name), [])


@pytest.mark.parametrize(
    ("written", "waits"),
    [
        (None, 0.5),
        ("2", 2.0),
        ("Wed, 21 Oct 2026 07:28:00 GMT", 0.5),
        ("-1", 0.5),
        ("nan", 0.5),
        ("9999", 9999.0),
    ],
)
def test_a_time_to_come_again_that_is_no_number_is_not_waited_for(written: str | None, waits: float) -> None:
    assert seconds(written, 0.5) == waits


def test_a_service_that_is_not_there_is_waited_for_and_then_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slipstream.batch.REFUSED_FOR_S", 0.2)
    [request] = read_requests(write(tmp_path / "in", [asked(1)]))
    with pytest.raises(BatchError, match=r"does not take requests .*refused.*run the same command again"):
        Asker("http://127.0.0.1:1", None).ask(request)


def test_a_bar_says_how_far_a_batch_is() -> None:
    written: list[str] = []
    bar = ProgressBar(5, 10, written.append)
    bar.show(1)
    bar.show(5)
    assert "] 6/10" in written[0]
    assert f"[{'#' * 30}] 10/10" in written[1]
    assert "0 s left" in written[1]


def test_a_batch_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    requests, output = write(tmp_path / "in", [asked(number) for number in range(40)]), tmp_path / "out"
    command = [sys.executable, "-m", "slipstream", "batch", str(requests), str(output), "--concurrency", "2"]
    running = subprocess.Popen(command, env=os.environ | {"SLIPSTREAM_DEVICE": "emulated"})
    while running.poll() is None and (not output.exists() or output.read_bytes().count(b"\n") < 3):
        os.sched_yield()
    running.send_signal(signal.SIGKILL)
    running.wait()
    before = output.read_bytes().count(b"\n")
    done = subprocess.run(
        command,
        env=os.environ | {"SLIPSTREAM_DEVICE": "emulated"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert sorted(answer["custom_id"] for answer in answers(output)) == sorted(f"r{n}" for n in range(40))
    assert {answer["response"]["status_code"] for answer in answers(output)} == {200}
    assert f"{before} were there before" in done.stdout
