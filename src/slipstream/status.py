"""Questions to the supervisor of a service, at its status socket: for who runs it, on the same machine."""

from __future__ import annotations

from typing import Any

import msgpack
import zmq

from .protocol.endpoints import check_endpoint, own_sockets
from .protocol.errors import InvalidRequest, ServiceUnavailable

TIMEOUT_S = 5.0
"""How long the supervisor may take to answer."""

OTHERS_TIMEOUT_S = 1.0
"""For each service among which one is looked for."""


def ask(socket_endpoint: str, restart: str | None = None, *, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """``endpoint``, where clients connect, and ``actors``, how each of them is by its name; with ``restart`` that
    one is ended and started again.

    ``InvalidRequest`` if that cannot be, ``ServiceUnavailable`` if nobody answers.
    """
    with zmq.Context() as context, context.socket(zmq.REQ) as socket:
        socket.set(zmq.LINGER, 0)
        socket.connect(socket_endpoint)
        socket.send(b"" if restart is None else msgpack.packb({"restart": restart}) or b"")
        if not socket.poll(int(timeout_s * 1000)):
            raise ServiceUnavailable(f"the supervisor does not answer for {timeout_s:g} s")
        answer: dict[str, Any] = msgpack.unpackb(socket.recv())
    if "error" in answer:
        raise InvalidRequest(answer["error"])
    return answer


def find(endpoint: str) -> str:
    """The status socket of this user's service at ``endpoint``; ``ServiceUnavailable`` if it is not on this
    machine, ``InvalidRequest`` if it is no endpoint."""
    endpoint = check_endpoint(endpoint, insecure=True)
    others: list[str] = []
    for socket_endpoint in own_sockets("control"):
        try:
            found = ask(socket_endpoint, timeout_s=OTHERS_TIMEOUT_S).get("endpoint", "one of another version")
        except ServiceUnavailable:
            found = "one that does not answer"
        if found == endpoint:
            return socket_endpoint
        others.append(found)
    running = f"there are {', '.join(others)}" if others else "there is none"
    raise ServiceUnavailable(f"no service of yours at {endpoint} runs on this machine: {running}")
