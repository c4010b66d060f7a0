"""Batches: a file of requests in OpenAI's form, answered into another file that a killed run is taken up from.

A line of the input is ``{"custom_id", "method": "POST", "url": "/v1/…", "body"}``; one of the output is
``{"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error"}``, written when the answer is there,
in the order in which that is.
"""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from socket import SHUT_RDWR
from threading import Event, local
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import msgspec

URLS = ("/v1/chat/completions", "/v1/completions")
"""What a request of a batch may ask for."""

AGAIN = frozenset({429, 503})
"""Statuses that say to ask again later."""

REFUSED_FOR_S = 120.0
"""How long a service may refuse a request, or not be there, before the batch is given up. It can be taken up again."""

LONGEST_PAUSE_S = 5.0
"""The longest pause before a request is sent again that the service did not take."""

TIMEOUT_S = 3600.0
"""For one answer: as long as a service takes by default."""


class BatchError(Exception):
    """Why a batch cannot be run, or not to its end."""


class Request(msgspec.Struct, forbid_unknown_fields=True):
    custom_id: str
    url: str
    body: dict[str, Any]
    method: str = "POST"


class Result(msgspec.Struct):
    custom_id: str
    url: str | None = None
    """Only a request has one."""


def read_requests(path: Path) -> list[Request]:
    """The requests of a batch; ``BatchError`` names the first line that is none."""
    found: dict[str, Request] = {}
    for number, line in enumerate(lines_of(path), 1):
        try:
            request = msgspec.json.decode(line, type=Request)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise BatchError(f"{path}, line {number} is no request of a batch: {error}") from None
        wrong = None
        if request.method != "POST" or request.url not in URLS:
            wrong = f"asks {request.method} {request.url}; a batch asks POST {' or '.join(URLS)}"
        elif request.custom_id in found:
            wrong = f"has custom_id {request.custom_id!r:.80}, which a line before it has; give each its own"
        elif request.body.get("stream"):
            wrong = "asks for a stream, and a batch has whole answers; leave stream out"
        if wrong:
            raise BatchError(f"{path}, line {number} {wrong}")
        found[request.custom_id] = request
    return list(found.values())


def lines_of(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file):
                if number == 0:
                    line = line.removeprefix(BOM_UTF8)  # which some editors begin files with
                if line.strip():
                    yield line
    except OSError as error:
        raise BatchError(f"{path} cannot be read: {error.strerror}") from None


def no_file(path: Path) -> bool:
    """Whether nothing that is written there can be read again. (Of a folder it is said when it is opened.)"""
    return str(path) == "-" or (path.exists() and not path.is_file() and not path.is_dir())


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """No other batch writes to this output meanwhile; BatchError if one does.

    What cannot be opened or locked is told when it is written.
    """
    with ExitStack() as stack:
        if not no_file(path):
            with suppress(OSError):
                file = stack.enter_context(path.open("ab"))
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise BatchError(f"another batch is writing to {path}; wait until it ends") from None
        yield


def take_up(path: Path, requests: Sequence[Request]) -> list[Request]:
    """The requests that the output file has no answer to. A line that a kill has cut off is removed from it."""
    if no_file(path):
        raise BatchError(
            f"{path} is no file; name one, since a run that is cut off is taken up from its output"
        )
    if not path.exists():
        return list(requests)
    answered: set[str] = set()
    whole = 0
    try:
        file = path.open("r+b")
    except OSError as error:
        raise BatchError(f"{path} cannot be written: {error.strerror}") from None
    with file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            try:
                result = msgspec.json.decode(line, type=Result)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise BatchError(f"{path} is there and is no output of a batch: {error}") from None
            if result.url is not None:
                raise BatchError(f"{path} has requests, not answers; name another file for the output")
            answered.add(result.custom_id)
            whole += len(line)
        others = answered - {request.custom_id for request in requests}
        if others:
            raise BatchError(
                f"{path} has answers to other requests, {min(others)!r:.80} for one; name another file for these"
            )
        file.truncate(whole)
    return [request for request in requests if request.custom_id not in answered]


class Asker:
    """Asks one service, from several threads, each on a connection of its own."""

    def __init__(self, base_url: str, api_key: str | None) -> None:
        parts = urlsplit(base_url if "://" in base_url else f"http://{base_url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BatchError(
                f"{base_url} is no address of an HTTP service; give one such as http://127.0.0.1:8000"
            )
        self.kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self.place = (parts.hostname, parts.port)
        self.path = parts.path.rstrip("/").removesuffix("/v1")
        self.headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self.headers["Authorization"] = f"Bearer {api_key}"
        self.mine = local()
        self.connections: list[HTTPConnection] = []
        self.closed = Event()

    def close(self) -> None:
        """Ask nothing more, and wait for no answer."""
        self.closed.set()
        for connection in self.connections:
            with suppress(OSError):
                if connection.sock is not None:
                    connection.sock.shutdown(SHUT_RDWR)

    def ask(self, request: Request) -> bytes:
        """The line of the output for a request; ``BatchError`` if the service does not take it for long."""
        give_up_at, pause = time.monotonic() + REFUSED_FOR_S, 0.1
        while True:
            why, wait_s = "", pause
            try:
                status, headers, body = self.post(request)
                if status not in AGAIN:
                    return line_of(request, status, headers.get("x-request-id", ""), body)
                why, wait_s = f"status {status}", seconds(headers.get("retry-after"), pause)
            except (OSError, HTTPException) as error:
                why = str(error) or type(error).__name__
            late = time.monotonic() + wait_s > give_up_at
            if late or self.closed.wait(min(wait_s, LONGEST_PAUSE_S)):
                raise BatchError(
                    f"the service does not take requests ({why}); run the same command again to go on"
                )
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def post(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        connection = getattr(self.mine, "connection", None)
        if connection is None:
            connection = self.mine.connection = self.kind(*self.place, timeout=TIMEOUT_S)
            self.connections.append(connection)
        try:
            data = msgspec.json.encode(request.body)
            connection.request("POST", self.path + request.url, data, self.headers)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        except (OSError, HTTPException):
            connection.close()
            raise


def seconds(written: str | None, otherwise: float) -> float:
    """The seconds of a ``Retry-After``, which may be a date or nonsense too."""
    try:
        found = float(written or otherwise)
    except ValueError:
        return otherwise
    return found if found >= 0.0 else otherwise


def line_of(request: Request, status: int, id: str, body: bytes) -> bytes:
    try:
        answer: Any = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        answer = body.decode(errors="replace")
    line = {
        "id": f"batch_req_{uuid.uuid4().hex}",
        "custom_id": request.custom_id,
        "response": {"status_code": status, "request_id": id, "body": answer},
        "error": None,
    }
    return msgspec.json.encode(line) + b"\n"


def run_batch(
    requests: Sequence[Request],
    output: BinaryIO,
    asker: Asker,
    at_once: int,
    on_answer: Callable[[int], None],
) -> int:
    """Answer all requests into ``output``; returns how many were refused. ``on_answer`` is called with how many are
    answered."""
    refused = answered = 0
    left = iter(requests)
    under_way: set[Future[bytes]] = set()
    pool = ThreadPoolExecutor(at_once, "batch")
    try:
        while True:
            while len(under_way) < at_once and (request := next(left, None)) is not None:
                under_way.add(pool.submit(asker.ask, request))
            if not under_way:
                return refused
            done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
            for each in done:
                line = each.result()
                output.write(line)
                answered += 1
                refused += b'"response":{"status_code":200,' not in line
            output.flush()
            on_answer(answered)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class ProgressBar:
    """One line on a terminal that says how far a batch is."""

    WIDTH = 30

    def __init__(self, before: int, all: int, write: Callable[[str], object]) -> None:
        """``before`` of ``all`` requests were answered by an earlier run."""
        self.before = before
        self.all = all
        self.write = write
        self.begun = time.monotonic()

    def show(self, answered: int) -> None:
        done = self.before + answered
        bar = "#" * (self.WIDTH * done // self.all)
        pace = answered / max(time.monotonic() - self.begun, 1e-3)
        left = (self.all - done) / pace if pace else 0.0
        self.write(f"\r[{bar:<{self.WIDTH}}] {done}/{self.all}  {pace:.1f}/s  {left:.0f} s left \x1b[K")


def sync(output: BinaryIO) -> None:
    """Make what was written durable."""
    output.flush()
    os.fsync(output.fileno())
