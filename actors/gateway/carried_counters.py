"""Counters of another actor that never fall, whichever of its incarnations counts."""

from __future__ import annotations

from ...protocol.messages import is_gauge


class CarriedCounters:
    """Another actor's counters over all its incarnations: a new one begins at 0, and counters never fall.

    With a new gateway all counters begin at 0 together. What the actor had counted before would look like new to
    Prometheus, for which a counter that falls has begun anew.
    """

    def __init__(self, *, anew: bool = False) -> None:
        """``anew``: what its first counters say was counted before this gateway, and is left out."""
        self.anew = anew
        self.before: dict[str, float] = {}
        """The counters of all incarnations that are gone, less what was counted before."""
        self.newest: dict[str, float] = {}
        self.succeeded = False
        """Whether counters of a new incarnation have come since the last death, before it was known to be there."""

    def take(self, counters: dict[str, float]) -> None:
        if self.anew:
            self.anew = False
            self.before = {name: -value for name, value in counters.items() if not is_gauge(name)}
        elif any(
            counters.get(name, 0.0) < value for name, value in self.newest.items() if not is_gauge(name)
        ):
            self.add_up()
            self.succeeded = True
        self.newest = counters

    def on_death(self) -> None:
        """The incarnation has ended: its gauges are 0 from now on."""
        self.newest |= {name: 0.0 for name in self.newest if is_gauge(name)}
        self.succeeded = False

    def restart(self) -> None:
        """A new incarnation is there, whose counters, by way of another actor, may have come already."""
        if not self.succeeded:
            self.add_up()

    def add_up(self) -> None:
        """Keep what an incarnation has counted."""
        self.before = {name: value for name, value in self.totals().items() if not is_gauge(name)}
        self.newest = {name: value for name, value in self.newest.items() if is_gauge(name)}

    def totals(self) -> dict[str, float]:
        return self.before | {name: value + self.before.get(name, 0.0) for name, value in self.newest.items()}
