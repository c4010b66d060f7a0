"""The socket at which an actor hears strangers: where it is bound, who may come in, and how many.

ZeroMQ ends the process when a listener on an ipc path runs out of file descriptors, so connections are counted,
and those beyond a quarter of what the process may open, or ``MAX_CONNECTIONS``, are closed at once. ZeroMQ connects
again by itself. It accepts in a thread of its own, so they are counted in one too: what comes before that thread has
its turn of the interpreter, some milliseconds, must be fewer than the rest.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import stat
import threading
from typing import Any, Literal

import zmq
from zmq.utils.monitor import parse_monitor_message

from ...protocol import limits
from ...protocol.codec import encode
from ...protocol.errors import SlipstreamError
from ..guard import AllowedClients, guard
from ..machine.socket_file import has_listener, path_of

CLIENT_MESSAGES = 64
"""Most messages waiting in the socket for one client, and most that wait from it.

Beyond the first its deltas wait, merged, in the gateway; beyond the second its requests wait in its own socket.
"""

MAX_CONNECTIONS = 16_384
"""Most connections, however many descriptors there are, as many as any service needs."""

LAST_WORDS_MS = 500
"""How long the last messages to clients may take to leave when the host ends."""

OPTIONS = {
    zmq.LINGER: 0,
    zmq.MAXMSGSIZE: limits.MAX_FRAME_BYTES,
    zmq.ROUTER_MANDATORY: 1,
    zmq.SNDHWM: CLIENT_MESSAGES,
    zmq.RCVHWM: CLIENT_MESSAGES,
    zmq.HANDSHAKE_IVL: 2000,
    zmq.HEARTBEAT_IVL: 2000,
    zmq.HEARTBEAT_TIMEOUT: 8000,
}


def most_connections(descriptors: int) -> int:
    """The number of connections that a process with this limit of descriptors accepts."""
    return min(descriptors // 4, MAX_CONNECTIONS)


class PublicSocket:
    """A bound ROUTER socket."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, clients: AllowedClients | None
    ) -> None:
        refuse_endpoint_in_use(endpoint)
        self.socket = context.socket(zmq.ROUTER)
        for option, value in OPTIONS.items():
            self.socket.set(option, value)
        if clients is not None:
            guard(context, self.socket, clients)
        self.monitor = self.socket.get_monitor_socket(
            zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_MONITOR_STOPPED
        )
        self.connected: set[int] = set()
        """The file descriptors of the connections that there are."""
        self.most_connections = most_connections(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        try:
            self.socket.bind(endpoint)
        except zmq.ZMQError as error:
            raise SlipstreamError(
                f"cannot bind {endpoint}: {error.strerror}; choose another endpoint"
            ) from None
        self.endpoint = self.socket.get_string(zmq.LAST_ENDPOINT)
        """Where it really is: port 0 takes a free one."""
        self.watcher = threading.Thread(target=self.watch_connections, name="connections", daemon=True)
        self.watcher.start()

    def receive(self) -> tuple[bytes, list[bytes]] | None:
        """A client and the frames of its next message; None if there is none yet."""
        try:
            client, *frames = self.socket.recv_multipart(zmq.DONTWAIT)
        except zmq.Again:
            return None
        if frames and not frames[0]:
            frames = frames[1:]  # a REQ socket sends an empty delimiter
        return client, frames

    def send(self, client: bytes, message: Any) -> Literal["sent", "blocked", "gone"]:
        """``blocked``: the client does not read, and the message was not sent; ``gone``: it is not there."""
        try:
            self.socket.send_multipart((client, encode(message)), zmq.DONTWAIT)
        except zmq.Again:
            return "blocked"
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return "gone"
        return "sent"

    def watch_connections(self) -> None:
        """Count who comes and goes, and close what is beyond the limit, until the socket is closed."""
        while True:
            event = parse_monitor_message(self.monitor.recv_multipart())
            descriptor = event["value"]
            if event["event"] == zmq.EVENT_MONITOR_STOPPED:
                break
            if event["event"] == zmq.EVENT_DISCONNECTED:
                self.connected.discard(descriptor)
                continue
            self.connected.add(descriptor)
            if len(self.connected) > self.most_connections:
                # Shut down, not closed: ZeroMQ sees its end, as if the client had left, and closes it.
                with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
                    connection.shutdown(socket.SHUT_RDWR)
        self.monitor.close()

    def close(self) -> None:
        """After the last messages have left, or have had the time to."""
        self.socket.disable_monitor()
        self.watcher.join()
        self.socket.close(linger=LAST_WORDS_MS)


def refuse_endpoint_in_use(endpoint: str) -> None:
    """ZeroMQ takes an ipc path away from the process that is bound to it, without a word: look first."""
    path = path_of(endpoint)
    if path is None or not os.path.exists(path):
        return
    if not stat.S_ISSOCK(os.stat(path).st_mode):
        raise SlipstreamError(
            f"cannot bind {endpoint}: the path is there and is no socket; choose another endpoint"
        )
    try:
        in_use = has_listener(path)  # otherwise binding replaces it
    except OSError as error:
        raise SlipstreamError(f"cannot bind {endpoint}: {error.strerror}; choose another endpoint") from None
    if in_use:
        raise SlipstreamError(
            f"cannot bind {endpoint}: another process is listening there; choose another endpoint"
        )
