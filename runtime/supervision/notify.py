"""Tells systemd about a service with ``Type=notify``: ready, alive, stopping. Elsewhere nothing is sent.

It is one datagram for each news, to the socket that the environment names. See sd_notify(3).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from ...protocol.errors import SlipstreamError
from ...protocol.printable import printable

READER_WAIT_S = 0.1
"""How long news may wait for a reader that is behind: the supervisor has other things to do."""

SELDOM_S = 3600.0
"""The longest time between two signs of life, whatever is asked for: no wait can be of any length."""


class Notify:
    """The socket of the process manager that started the service."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.address = environ.get("NOTIFY_SOCKET") or None
        watched = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        period = environ.get("WATCHDOG_USEC", "0") if self.address and watched else "0"
        every_s = float(period) * 1e-6 / 2 if period.isdecimal() else 0.0
        self.every_s: float | None = min(every_s, SELDOM_S) or None
        """How often to say that the service is alive: twice as often as is asked for. None: never."""
        self.due = 0.0

    def send(self, *news: str) -> None:
        """Send news such as ``READY=1``; ``SlipstreamError`` if nobody takes it."""
        if self.address is None:
            return
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(READER_WAIT_S)
            try:
                sender.sendto("\n".join(map(printable, news)).encode(), address)
            except OSError as error:
                raise SlipstreamError(
                    f"NOTIFY_SOCKET={self.address} does not take {news[0]}: {error}"
                ) from None

    def beat(self, now: float, alive: bool) -> float | None:
        """Feed the watchdog if it is time to and the service is alive; returns the seconds until the next time."""
        if self.every_s is None:
            return None
        if now >= self.due:
            self.due = now + self.every_s
            if alive:
                self.send("WATCHDOG=1")
        return self.due - now
