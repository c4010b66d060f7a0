"""The ZeroMQ socket of a client, for the connection that its session speaks of."""

from __future__ import annotations

import os
import threading
from typing import NoReturn

import zmq

from ..client_key import ClientKey
from ..errors import InvalidRequest
from ..limits import MAX_FRAME_BYTES
from .session import Session

RECONNECT_MS = 10
"""Between two tries to connect: a service that was restarted is found at once."""


class Transport:
    """The socket under a session: always for the connection that the session speaks of, and of one process."""

    def __init__(self, endpoint: str, key: ClientKey | None = None) -> None:
        self.endpoint = endpoint
        self.key = key
        self.context: zmq.Context[zmq.Socket[bytes]] | None = None
        self.process = os.getpid()
        """The process whose connection it is: that of the context, or of none yet."""
        self.socket: zmq.Socket[bytes] | None = None
        self.monitor: zmq.Socket[bytes] | None = None
        """Where ZeroMQ reports that the connection under the socket is gone."""
        self.poller = zmq.Poller()
        self.connection = 0

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a client cannot be pickled or copied: send its endpoint, {self.endpoint!r}, and make a new client there"
        )

    def is_own_process(self) -> bool:
        """Whether this process may touch the connection: ZeroMQ's sockets do not survive a fork."""
        return self.context is None or self.process == os.getpid()

    def check_process(self) -> None:
        if not self.is_own_process():
            raise RuntimeError(
                f"this client belongs to process {self.process}, of which this one ({os.getpid()}) is a fork; a"
                f" connection cannot be shared: make a new client of {self.endpoint} here"
            )

    def flush(self, session: Session) -> None:
        """Send what is in the outbox, on a new socket if the session has begun another connection.

        A new socket, because what still waits in the old one would reach the gateway before the hello.
        """
        if self.connection != session.connection or session.state == "lost":
            self.disconnect()
            self.connection = session.connection
            if session.state != "lost":
                self.connect()
        if self.socket is not None:
            while session.outbox:
                self.socket.send(session.outbox.popleft())

    def connect(self) -> None:
        if self.context is None:
            self.context, self.process = zmq.Context(), os.getpid()
        self.socket = self.context.socket(zmq.DEALER)
        try:
            self.set_up(self.socket)
        except zmq.ZMQError as error:
            self.disconnect()
            raise InvalidRequest(
                f"cannot connect to {self.endpoint}: {error.strerror}", param="endpoint"
            ) from None
        except BaseException:
            self.disconnect()  # the end of the context would wait for a socket that is left open
            raise

    def set_up(self, socket: zmq.Socket[bytes]) -> None:
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.SNDHWM, 0)  # so a send never blocks; what waits are the user's own open requests
        socket.set(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        if self.key is not None:
            self.key.apply(socket)
        socket.set(zmq.RECONNECT_IVL, RECONNECT_MS)
        self.monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self.poller.register(socket, zmq.POLLIN)
        self.poller.register(self.monitor, zmq.POLLIN)
        socket.connect(self.endpoint)

    def poll(self, seconds: float | None) -> None:
        """Wait until something arrives, the connection breaks, or time is up."""
        self.poller.poll(None if seconds is None else int(seconds * 1000) + 1)

    def is_broken(self) -> bool:
        """Whether the connection has ended since the last look. Take in everything that has arrived first."""
        broken = False
        while self.monitor is not None and self.monitor.poll(0):
            self.monitor.recv_multipart(zmq.DONTWAIT)
            broken = True
        return broken

    def disconnect(self) -> None:
        for one in (self.socket, self.monitor):
            if one is not None and one in self.poller:
                self.poller.unregister(one)
        if self.monitor is not None:
            if self.socket is not None:
                self.socket.disable_monitor()
            self.monitor.close()
            self.monitor = None
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    def close(self) -> None:
        """Nothing happens in a forked child: the connection is its parent's."""
        if self.context is not None and self.is_own_process():
            self.disconnect()
            self.context.term()


def close_unused(transport: Transport, busy: threading.RLock) -> None:
    """Unless a thread still waits on the transport at the end of a program: then it goes with the process."""
    if busy.acquire(blocking=False):
        try:
            transport.close()
        finally:
            busy.release()
