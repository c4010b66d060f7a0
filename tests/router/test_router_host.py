"""A router in its host: what leaves when, of many requests that come at once."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path
from typing import Any, cast

from slipstream.actors.router.router import Router
from slipstream.protocol.codec import encode, encode_from_client
from slipstream.protocol.events import ServiceFrame
from slipstream.protocol.limits import Limits
from slipstream.protocol.messages import Generate, Hello, Welcome
from slipstream.runtime.process.host import CLIENT_MESSAGES_AT_ONCE, Host
from slipstream.runtime.supervision import control

BOUNDS = Limits(max_model_len=1000, vocab_size=100, max_prompt_bytes=1000, max_queued_requests=1000)
REQUESTS = 64
SERVICE = "ipc:///service"


class Arrived:
    """A public socket at which all of this has arrived."""

    def __init__(self, frames: list[bytes]) -> None:
        self.frames = frames

    def receive(self) -> tuple[bytes, list[bytes]] | None:
        return (b"client", [self.frames.pop(0)]) if self.frames else None

    def send(self, client: bytes, message: Any) -> str:
        return "sent"


class Sent:
    """Sockets of services, and how many frames left each time."""

    def __init__(self, router: Router) -> None:
        self.router = router
        self.numbers: list[int] = []

    def flush(self) -> None:
        outbox = self.router.sessions[SERVICE].outbox
        self.numbers.append(len(outbox))
        outbox.clear()


def test_the_first_of_many_requests_leave_while_the_others_wait_to_be_taken_in(tmp_path: Path) -> None:
    """A service begins a step with the first: those that are late for the next one wait a whole step."""
    router = Router("", "model", BOUNDS, [SERVICE], server="test", rng=random.Random(0))
    channel, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    in_hand = os.memfd_create("in hand")
    begin = control.Begin("router", 1, f"ipc://{tmp_path}/router", {}, {}, in_hand=in_hand, frame_key=b"k")
    host = Host(router, begin, its)
    requests = [Generate(id=str(number), prompt=[number]) for number in range(REQUESTS)]
    arrived = [encode_from_client(message) for message in (Hello(protocol=[1, 0]), *requests)]
    sent = Sent(router)
    host.public, host.service_sockets = cast("Any", Arrived(arrived)), cast("Any", sent)
    with channel, its:
        host.do_due()
        welcome = Welcome(protocol=[1, 0], server="test", model="model", limits=BOUNDS)
        host.handle(SERVICE, ServiceFrame(SERVICE, encode(welcome)))
        host.do_due()
        sent.numbers.clear()
        while host.receive_from_clients():
            host.do_due()
        host.do_due()
        assert sum(sent.numbers) >= REQUESTS
        assert max(sent.numbers) <= CLIENT_MESSAGES_AT_ONCE
        host.public = host.service_sockets = None
        host.close()
    os.close(in_hand)
