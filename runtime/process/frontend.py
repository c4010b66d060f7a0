"""A frontend: a child of the supervisor that is no actor, but a client of the service, such as an HTTP server.

It has an event loop and sockets of its own, where an actor has none. What it shares with the actors is how
it starts, is watched, drains and ends; no actor knows of it.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Any, Protocol

from ..supervision import control


class Frontend(Protocol):
    """The interface of a frontend that ``FrontendHost`` runs. Where it listens is bound when it is built, so that a
    failure shows at start."""

    facts: dict[str, Any]
    """For the banner and the supervisor; ``endpoint`` is taken again by a later incarnation."""
    on_busy: Callable[[], None]
    """To be called when something comes after a pause."""

    @property
    def busy(self) -> bool:
        """Something is under way."""
        ...

    async def serve(self) -> None:
        """Serve until ``stop``."""
        ...

    async def drain(self) -> None:
        """Accept nothing new; returns when nothing is under way."""
        ...

    def stop(self) -> None:
        """Let ``serve`` return, soon."""
        ...


class FrontendHost:
    """Runs a frontend in uvloop until the supervisor says stop, or is gone."""

    def __init__(self, frontend: Frontend, channel: socket.socket) -> None:
        self.frontend = frontend
        self.channel = channel
        self.draining: asyncio.Task[None] | None = None
        self.reported_idle = False
        """Nothing was under way when the supervisor last asked: it does not ask again until ``Awake``."""
        self.turns = 0
        frontend.on_busy = self.on_busy

    def run(self) -> None:
        import uvloop

        uvloop.run(self.serve())

    def close(self) -> None:
        """Its sockets went with its loop."""

    async def serve(self) -> None:
        asyncio.get_running_loop().add_reader(self.channel.fileno(), self.receive_from_supervisor)
        await self.frontend.serve()

    def receive_from_supervisor(self) -> None:
        """Take in what the supervisor says; its death ends the frontend."""
        try:
            message = control.receive(self.channel)
        except BlockingIOError:
            return
        if isinstance(message, control.Probe):
            self.reported_idle = not self.frontend.busy
            self.turns += 1
            control.send(
                self.channel,
                control.Report(
                    turns=self.turns,
                    progress=0,
                    working=False,
                    idle=self.reported_idle,
                    sent={},
                    received={},
                    busy_s=time.process_time(),  # all that it does is handling what comes
                ),
            )
        elif isinstance(message, control.Stop) and message.drain:
            self.draining = self.draining or asyncio.get_running_loop().create_task(self.drain())
        elif message is None or isinstance(message, control.Stop):
            asyncio.get_running_loop().remove_reader(self.channel.fileno())
            self.frontend.stop()

    def on_busy(self) -> None:
        if self.reported_idle:
            self.reported_idle = False
            control.send(self.channel, control.Awake())

    async def drain(self) -> None:
        await self.frontend.drain()
        control.send(self.channel, control.Drained())
