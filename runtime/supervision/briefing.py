"""What a child is told when it starts: who it is, its options, its peers, and how its last incarnation ended."""

from __future__ import annotations

import os
from pathlib import Path

from ..deaths import Deaths
from ..introductions import knows_at_once
from . import control
from .children import Child, ChildSpec, mailbox_of
from .status import Status


class Briefing:
    """Writes the first message to each child."""

    def __init__(
        self,
        specs: list[ChildSpec],
        children: dict[str, Child],
        status: Status,
        deaths: Deaths,
        directory: Path,
    ) -> None:
        """``specs`` and ``children`` are the supervisor's own, as they are at any time."""
        self.specs = specs
        self.children = children
        self.status = status
        self.deaths = deaths
        self.directory = directory
        self.frame_key = os.urandom(16)
        """What frames between the actors begin with, so that no frame of anybody else is accepted."""

    def begin_of(self, spec: ChildSpec, epoch: int) -> control.Begin:
        """The first message to the incarnation ``epoch`` of a child."""
        others = [other for other in self.children.values() if other.spec.name != spec.name]
        group = [other for other in others if spec.group is not None and other.spec.group == spec.group]
        peers = {
            other.spec.name: (other.epoch, other.mailbox)
            for other in others
            if other.spec.role == "actor"
            and knows_at_once(
                running=other.running, ready=other.ready_at is not None, same_group=other in group
            )
        }
        options = spec.options
        if spec.group is not None:
            life = min((other.epoch for other in group if other.running), default=epoch)
            options = options | {"rendezvous": f"{self.directory}/{spec.group}.group.{life}"}
        if spec.frontend_of is not None:
            server = next(other for other in self.specs if other.name == spec.frontend_of)
            peers, options = {}, options | {"service": server.options["endpoint"]}
        return control.Begin(
            spec.name,
            epoch,
            mailbox_of(spec, epoch, self.directory),
            peers,
            options,
            restarted=self.status.restart_counts[spec.name] > 0,
            crashed=self.deaths.crashed(spec.name),
            quarantined=self.deaths.quarantined,
            frame_key=self.frame_key if spec.role == "actor" else b"",
        )
