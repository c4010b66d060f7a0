"""The HTTP frontend in this process, before a gateway that gives the same answer to every request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterable, MutableMapping
from typing import Any

from slipstream.actors.http.app import Entrance, make_app
from slipstream.actors.http.service import Service
from slipstream.protocol.limits import Limits
from slipstream.protocol.messages import Delta, Usage

from slipstream.service import BUNDLED_MODEL

MODEL = "slipstream-bundled"

Message = MutableMapping[str, Any]


class Script:
    """Stands for the client of the gateway: every request is answered with the same parts of a text."""

    def __init__(self, *parts: str, finish: str | Exception = "stop") -> None:
        self.parts = parts
        self.finish = finish
        self.asked: dict[str, Any] = {}
        """What the last request asked."""

    async def batches(self, **asked: Any) -> AsyncGenerator[list[Delta], None]:
        self.asked = asked
        id = asked["request_id"]
        for number, part in enumerate(self.parts):
            yield [Delta(id=id, text=part, token_ids=[number])]
            await asyncio.sleep(0)
        if isinstance(self.finish, Exception):
            raise self.finish
        usage = Usage(prompt_tokens=3, completion_tokens=len(self.parts))
        yield [Delta(id=id, finish_reason=self.finish, usage=usage)]


class Answer:
    """What the frontend sent."""

    def __init__(self, sent: list[Message]) -> None:
        start = sent[0]
        self.status: int = start["status"]
        self.headers = {name.decode(): value.decode() for name, value in start["headers"]}
        self.body = b"".join(message.get("body", b"") for message in sent[1:])

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The events of a stream, ``[DONE]`` as it is."""
        parts = [part.removeprefix("data: ") for part in self.body.decode().split("\n\n")[:-1]]
        return [part if part == "[DONE]" else json.loads(part) for part in parts]


class Scripted:
    """The frontend; one request at a time."""

    def __init__(self, script: Script | None = None, *, api_key: str | None = None) -> None:
        self.script = script or Script()
        bounds = Limits(max_model_len=1024, vocab_size=2048, max_prompt_bytes=65536, max_queued_requests=8)
        self.service = Service(self.script, str(BUNDLED_MODEL), MODEL, "0", bounds)  # type: ignore[arg-type]
        self.app = Entrance(make_app(self.service, []), api_key)

    def post(self, path: str, body: Any, **headers: str) -> Answer:
        """``body`` is sent as JSON, or as it is if it is bytes."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.ask("POST", path, [data], {"content-type": "application/json"} | headers)

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, [], headers)

    def ask(self, method: str, path: str, parts: Iterable[bytes], headers: dict[str, str]) -> Answer:
        scope = scope_of(method, path, headers)

        async def go() -> list[Message]:
            sent: list[Message] = []
            coming = list(parts) or [b""]

            async def receive() -> Message:
                if not coming:
                    await asyncio.Event().wait()  # the client stays, and sends no more
                part = coming.pop(0)
                return {"type": "http.request", "body": part, "more_body": bool(coming)}

            async def send(message: Message) -> None:
                sent.append(message)

            await self.app(scope, receive, send)
            return sent

        return Answer(asyncio.run(go()))


def scope_of(method: str, path: str, headers: dict[str, str]) -> dict[str, Any]:
    """The ASGI scope of a request."""
    named = {"host": "localhost"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in named.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }
