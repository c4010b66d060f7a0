"""A gateway that does what a test says, for clients to speak with."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import zmq
from slipstream.protocol.codec import decode_from_client, encode
from slipstream.protocol.limits import PROTOCOL, Limits
from slipstream.protocol.messages import (
    Abort,
    Deltas,
    Error,
    Generate,
    GetStats,
    GetTrace,
    Hello,
    Ping,
    Pong,
    PublicIn,
    Stats,
    Trace,
    Usage,
    Welcome,
)
from slipstream.protocol.trace import SPAN, Recorded

from slipstream import (
    Delta,
)

LIMITS = Limits(max_model_len=100, vocab_size=256, max_prompt_bytes=1000, max_queued_requests=8)
WELCOME = Welcome(protocol=list(PROTOCOL), server="fake", model="fake", limits=LIMITS)

Handler = Callable[["FakeGateway", bytes, PublicIn], None]


class FakeGateway:
    """A ROUTER in a thread. It greets and answers pings; the rest is up to ``handler``."""

    def __init__(self, endpoint: str, handler: Handler, *, greet: bool = True) -> None:
        self.endpoint = endpoint
        self.handler = handler
        self.greet = greet
        self.seen: list[PublicIn] = []
        self.known: set[bytes] = set()
        self.outside: deque[tuple[bytes, bytes]] = deque()
        """What other threads say; a socket is used by one."""
        self.context = zmq.Context()
        self.router = self.context.socket(zmq.ROUTER)
        self.router.linger = 0
        self.router.sndhwm = 0  # a ROUTER drops what is over its limit
        self.router.bind(endpoint)
        self.halt = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        while not self.halt.is_set():
            while self.outside:
                self.router.send_multipart(self.outside.popleft())
            if not self.router.poll(5):
                continue
            client, frame = self.router.recv_multipart()
            message = decode_from_client(frame)
            self.seen.append(message)
            if isinstance(message, Hello) and self.greet:
                self.known.add(client)
                self.say(client, WELCOME)
            elif client not in self.known and self.greet:
                self.say(client, Error(code="protocol", message="say hello first"))
            elif isinstance(message, Ping):
                self.say(client, Pong(nonce=message.nonce))
            else:
                self.handler(self, client, message)

    def say(self, client: bytes, message: Any) -> None:
        frames = (client, encode(message))
        if threading.current_thread() is self.thread:
            self.router.send_multipart(frames)
        else:
            self.outside.append(frames)

    def tokens(self, client: bytes, *items: tuple[str, str, list[int]], finish: str | None = None) -> None:
        """One delta for each (id, text, token ids)."""
        usage = Usage(prompt_tokens=1, completion_tokens=2) if finish else None
        deltas = [
            Delta(id=id, text=text, token_ids=ids, finish_reason=finish, usage=usage)
            for id, text, ids in items
        ]
        self.say(client, Deltas(items=deltas))

    def stop(self) -> None:
        self.halt.set()
        self.thread.join(5)
        self.context.destroy(linger=0)

    def saw(self, kind: type, count: int = 1) -> list[Any]:
        """Wait until ``count`` messages of a kind have come."""
        end = time.monotonic() + 5
        while time.monotonic() < end:
            found = [message for message in list(self.seen) if isinstance(message, kind)]
            if len(found) >= count:
                return found
            self.halt.wait(0.005)
        raise AssertionError(f"no {count} x {kind.__name__} in {self.seen}")


def echo(gateway: FakeGateway, client: bytes, message: PublicIn) -> None:
    """Answer a text prompt with its characters, one per delta, after what was received."""
    if isinstance(message, Generate):
        prompt = message.prompt
        text = prompt if isinstance(prompt, str) else "".join(map(chr, prompt or [104, 105]))
        rest = text[len(message.received) :]
        if message.return_prompt_ids:
            ids = [ord(character) for character in text]
            gateway.say(client, Deltas(items=[Delta(id=message.id, prompt_token_ids=ids)]))
        for character in rest[:-1]:
            gateway.tokens(client, (message.id, character, [ord(character)]))
        gateway.tokens(client, (message.id, rest[-1:], [ord(c) for c in rest[-1:]]), finish="stop")
    elif isinstance(message, GetStats):
        gateway.say(client, Stats(counters={"requests": 3.0}))
    elif isinstance(message, GetTrace):
        recorded = Recorded(pid=7, names=["Plan"], spans={"scheduler": SPAN.pack(20, 10, 1, 0)})
        gateway.say(client, Trace(actors={"scheduler": recorded}, since_ns=0, until_ns=20))


def never_finish(gateway: FakeGateway, client: bytes, message: PublicIn) -> None:
    if isinstance(message, Generate):
        gateway.tokens(client, (message.id, "a", [1]))
    elif isinstance(message, Abort):
        gateway.tokens(client, (message.id, "", []), finish="abort")
