"""A frontend that listens, before a model whose words are scripted: for programs that know no other way in."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any

from scripted import Script, Scripted
from slipstream.actors.http.server import listen, make_server
from slipstream.protocol.messages import Delta, Formats

THINKS = Formats(reasoning="qwen3", tool_calls="hermes", strict=True)


class Turns(Script):
    """A model that says one thing after the other, request by request."""

    def __init__(self, *turns: tuple[str, ...]) -> None:
        super().__init__(formats=THINKS)
        self.turns = iter(turns)

    async def batches(self, **asked: Any) -> AsyncGenerator[list[Delta], None]:
        self.parts = next(self.turns)
        async for deltas in super().batches(**asked):
            yield deltas


@contextmanager
def served(script: Script) -> Iterator[str]:
    """The URL of a frontend to the script, while the block runs."""
    frontend = Scripted(script, hosts=None)
    listener = listen("127.0.0.1:0")
    server = make_server(frontend.app)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(
        target=loop.run_until_complete, args=(server.serve(sockets=[listener]),), daemon=True
    )
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(server.ended.set)
        thread.join()
        loop.close()
