"""The services behind a router: those that it was told of, and those that still finish what they have."""

from __future__ import annotations

from collections.abc import Iterable

from ...protocol.client.session import Session
from ...protocol.limits import Limits
from .prefixes import Holders
from .replica import POLL_S, Replica


class Services:
    """A replica for each endpoint, and its session."""

    def __init__(self, model: str, bounds: Limits) -> None:
        """Each service serves ``model`` with ``bounds``, or is not used."""
        self.model = model
        self.bounds = bounds
        self.replicas: dict[str, Replica] = {}
        """By endpoint, as ``sessions``."""
        self.sessions: dict[str, Session] = {}
        self.holders: Holders = {}

    def set(self, endpoints: Iterable[str], now: float) -> None:
        """From now on these are behind the router; a service that is not among them finishes what it has."""
        wanted = dict.fromkeys(endpoints)
        for endpoint in wanted:
            if endpoint not in self.replicas:
                replica = Replica(endpoint, self.model, self.bounds, self.holders)
                self.replicas[endpoint], self.sessions[endpoint] = replica, replica.session
                replica.polled_at = now - POLL_S  # asked at once
        for endpoint, replica in self.replicas.items():
            replica.leaving = endpoint not in wanted

    def forget_those_that_left(self) -> None:
        """Drop those that are to leave and have nothing open any more."""
        for endpoint, replica in list(self.replicas.items()):
            if replica.leaving and not replica.session.streams:
                replica.session.close()
                replica.prefixes.forget()
                replica.check_at = float("-inf")  # never again
                del self.replicas[endpoint], self.sessions[endpoint]
