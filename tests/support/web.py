"""A client that knows only HTTP and JSON."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from processes import NEAR

HELLO = [{"role": "user", "content": "hello"}]


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
