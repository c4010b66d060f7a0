"""The ZeroMQ socket of a client in an event loop, which watches it."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable

from ..client_key import ClientKey
from .transport import Transport


class LoopTransport(Transport):
    """A transport whose socket the client's event loop watches."""

    def __init__(self, endpoint: str, key: ClientKey | None, receive: Callable[[], None]) -> None:
        super().__init__(endpoint, key)
        self.receive = weakref.WeakMethod(receive)
        self.loop: asyncio.AbstractEventLoop | None = None
        self.thread = 0
        """The thread in which the loop runs."""

    def is_here(self) -> bool:
        """Whether the caller may touch the transport: it runs in its loop, or in its thread while no loop runs."""
        if self.loop is None:
            return True
        try:
            return asyncio.get_running_loop() is self.loop
        except RuntimeError:
            return threading.get_ident() == self.thread

    def connect(self) -> None:
        super().connect()
        for watched in (self.socket, self.monitor):
            if self.loop is not None and watched is not None:
                self.loop.add_reader(watched.fileno(), self.arrived)

    def arrived(self) -> None:
        """The loop knows the transport and not the client, which can go while the loop lives."""
        receive = self.receive()
        if receive is not None:
            receive()

    def disconnect(self) -> None:
        for watched in (self.socket, self.monitor):
            if self.loop is not None and watched is not None and not self.loop.is_closed():
                self.loop.remove_reader(watched.fileno())
        super().disconnect()

    def close(self) -> None:
        """Close the transport; its loop does so if the client was collected in another thread."""
        if self.loop is None or self.loop.is_closed() or self.is_here() or not self.is_own_process():
            super().close()
        else:
            self.loop.call_soon_threadsafe(super().close)
