"""The HTTP frontend in this process, before a gateway that gives the same answer to every request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, MutableMapping, Sequence
from datetime import datetime
from typing import Any, cast

from slipstream.actors.http.app import make_app
from slipstream.actors.http.entrance import Entrance
from slipstream.actors.http.service import Service
from slipstream.actors.text.prompts.prompts import load_texts
from slipstream.protocol.client.pending import Stream
from slipstream.protocol.errors import ServiceUnavailable
from slipstream.protocol.formats.ids import CallIds
from slipstream.protocol.formats.tools import NO_OFFER
from slipstream.protocol.limits import Limits
from slipstream.protocol.messages import NO_FORMATS, Actors, Delta, Formats, Generate, LoadedAdapter, Usage

from slipstream import AsyncClient
from slipstream.serving.service import BUNDLED_MODEL

MODEL = "slipstream-bundled"

Message = MutableMapping[str, Any]


class Script:
    """Stands for the client of the gateway: every request is answered with the same parts of a text."""

    def __init__(
        self,
        *parts: str,
        finish: str | Exception = "stop",
        stop_reason: str | int | None = None,
        ends: bool = True,
        prompt_ids: list[int] | None = None,
        formats: Formats = NO_FORMATS,
        loaded: Sequence[str] = (),
    ) -> None:
        """``ends=False``: nothing comes after the parts until the client is closed. ``formats`` are the model's, and
        ``loaded`` the adapters beside it."""
        self.loaded = loaded
        self.formats = formats
        self.parts = parts
        self.finish = finish
        self.stop_reason = stop_reason
        self.ends = ends
        self.prompt_ids = prompt_ids
        self.asked: dict[str, Any] = {}
        """What the last request asked."""
        self.closed = asyncio.Event()
        self.running = 0
        """Requests that somebody consumes the answer of."""

    async def batches(self, **asked: Any) -> AsyncGenerator[list[Delta], None]:
        self.asked = asked
        id = asked["request_id"]
        request = Generate(id=id, params=asked["params"], marks="messages" in asked)
        stream = Stream(request, 0.0, None, asked.get("offered", NO_OFFER), asked.get("new_ids", CallIds))

        def parsed(delta: Delta) -> list[Delta]:
            return [stream.parsed(delta, self.formats) if request.marks else delta]

        self.running += 1
        try:
            for number, part in enumerate(self.parts):
                ids = None if number else self.prompt_ids
                yield parsed(Delta(id=id, text=part, token_ids=[number], prompt_token_ids=ids))
                await asyncio.sleep(0)
            if not self.ends:
                await self.closed.wait()
                raise ServiceUnavailable("the client was closed")
            if isinstance(self.finish, Exception):
                raise self.finish
            usage = Usage(prompt_tokens=3, completion_tokens=len(self.parts))
            yield parsed(Delta(id=id, finish_reason=self.finish, stop_reason=self.stop_reason, usage=usage))
        finally:
            self.running -= 1

    async def adapters(self) -> list[LoadedAdapter]:
        return [LoadedAdapter(name=name, path=f"/{name}") for name in self.loaded]

    async def actors(self) -> Actors:
        return Actors(actors=[], live=True, ready=True)

    async def close(self) -> None:
        self.closed.set()


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

    def __init__(
        self,
        script: Script | None = None,
        *,
        api_key: str | None = None,
        hosts: frozenset[str] | None = frozenset(),
        other_names: Sequence[str] = (),
        defaults: Mapping[str, Mapping[str, Any]] | None = None,
        adapters: bool = False,
        origins: Sequence[str] = (),
    ) -> None:
        self.script = script or Script()
        bounds = Limits(max_model_len=1024, vocab_size=2048, max_prompt_bytes=65536, max_queued_requests=8)
        client = cast("AsyncClient", self.script)
        texts = load_texts(BUNDLED_MODEL, datetime.now)
        self.service = Service(
            lambda: client,
            texts,
            MODEL,
            "0",
            bounds,
            other_names=other_names,
            defaults=defaults,
            adapters=adapters,
        )
        self.app = Entrance(self.service, make_app(self.service), api_key, hosts, origins)

    def post(self, path: str, body: Any, **headers: str) -> Answer:
        """``body`` is sent as JSON, or as it is if it is bytes."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.ask("POST", path, [data], {"content-type": "application/json"} | headers)

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, [], headers)

    def ask(self, method: str, path: str, parts: Iterable[bytes], headers: dict[str, str]) -> Answer:
        exchange = Exchange(method, path, headers, list(parts) or [b""])
        asyncio.run(exchange.run(self.app))
        return exchange.answer


class Exchange:
    """One request, and what is answered."""

    def __init__(
        self, method: str, path: str, headers: dict[str, str], parts: list[bytes], *, whole: bool = True
    ) -> None:
        """Without ``whole``, more of the body is said to come than ``parts``."""
        self.scope = scope_of(method, path, headers)
        self.coming = parts
        self.whole = whole
        self.sent: list[Message] = []
        self.gone = asyncio.Event()
        """The client has closed the connection."""

    async def run(self, app: Any) -> None:
        await app(self.scope, self.receive, self.send)

    async def receive(self) -> Message:
        if self.coming:
            part = self.coming.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(self.coming) or not self.whole}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def answer(self) -> Answer:
        return Answer(self.sent)


def scope_of(method: str, path: str, headers: dict[str, str]) -> dict[str, Any]:
    """The ASGI scope of a request."""
    named = {"host": "localhost"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path.partition("?")[0],
        "raw_path": path.partition("?")[0].encode(),
        "root_path": "",
        "query_string": path.partition("?")[2].encode(),
        "headers": [(name.encode(), value.encode()) for name, value in named.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }


async def until(condition: Callable[[], Any]) -> None:
    """Let the loop turn until the condition holds; a ``TimeoutError`` if it never does."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)
