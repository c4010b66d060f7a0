"""Children beside the actors, which no stream needs: a spare, of which incarnations are forked, and a keeper.

Nobody waits for them, and their deaths are no deaths of the service. One that ends is started again, after a pause
that grows where it does not last.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from ..keeping import Keeper
from ..log import logger
from . import control
from .children import CannotStart, Child, ChildFailed, ChildSpec
from .helper_restarts import HelperRestarts
from .spares import Spares
from .status import Status


class Helpers:
    """The helpers of one service."""

    def __init__(
        self, specs: Sequence[ChildSpec], status: Status, directory: Path, *, collect_output: bool
    ) -> None:
        self.spare = next((spec for spec in specs if spec.role == "spare"), None)
        self.keeper = next((spec for spec in specs if spec.role == "keeper"), None)
        self.status = status
        self.children = status.children
        self.directory = directory
        self.collect_output = collect_output
        self.begin_anew()

    def begin_anew(self) -> None:
        """Begin anew, as all children are gone and start again."""
        self.spares = Spares(from_the_first=self.spare is not None and self.spare.from_the_first)
        self.keepers = HelperRestarts()

    # --- starting ---------------------------------------------------------------------------------

    def start(self, *, serving: bool, whole: bool, has_served: bool) -> float | None:
        """Start those whose time it is; returns how long until that of the next. ``whole``: every actor is ready.

        ``CannotStart`` if the machine has no room for one and the service has never served."""
        now = time.monotonic()
        waits: list[float] = []
        for spec, state, due in (
            (self.keeper, self.keepers, self.keepers.next_due()),
            (self.spare, self.spares, self.spares.due(serving=serving, whole=whole)),
        ):
            if spec is None or due is None:
                continue
            if due > now:
                waits.append(due - now)
            else:
                first = control.Prepare(spec.options, background=serving)
                self.spawn(spec, state, first, has_served=has_served)
        return min(waits, default=None)

    def spawn(
        self, spec: ChildSpec, state: HelperRestarts, first: control.Prepare, *, has_served: bool
    ) -> None:
        state.on_start()
        try:
            child = Child.spawn(spec, state.number, self.directory, first, collect_output=self.collect_output)
        except CannotStart as error:
            if not has_served:
                raise
            state.on_death(time.monotonic())
            logger.warning("%s; it is tried again later", error)
            return
        self.status.restart_counts[spec.name] += state.number > 1
        self.children[spec.name] = child

    def on_ready(self, child: Child, now: float, *, serving: bool) -> None:
        self.state_of(child).on_ready(now)
        if serving:
            logger.info("%s (pid %d) waits: %s", child.spec.name, child.process.pid, child.memory())

    def state_of(self, child: Child) -> HelperRestarts:
        return self.spares if child.spec.role == "spare" else self.keepers

    # --- death ------------------------------------------------------------------------------------

    def on_death(self, child: Child) -> None:
        """A helper has ended, and what it said was heard."""
        failed = ChildFailed(child, child.process.wait())
        child.reap()
        self.state_of(child).on_death(time.monotonic())
        then = (
            "another is started when all actors are ready"
            if child.spec.role == "spare"
            else "who has what it kept goes on with it; another keeper is started"
        )
        logger.warning("%s (pid %d) ended: %s; %s", child.spec.name, child.process.pid, failed.cause, then)

    def silent_keeper(self) -> Child | None:
        """The keeper if it is ready and does not answer: it has to end, or the weights would be in memory twice,
        there and loaded anew."""
        if self.keeper is None or self.keeper.keeps_at is None or self.keepers.ready_at is None:
            return None
        child = self.children[self.keeper.name]
        if Keeper(self.keeper.keeps_at, "-").answers():
            return None
        logger.warning("%s (pid %d) does not answer: ending it", child.spec.name, child.process.pid)
        return child

    # --- what incarnations are made of ------------------------------------------------------------

    def source(self, spec: ChildSpec, *, first: bool) -> str:
        """As in `Spares`, for the next incarnation of a child."""
        if self.spare is None or spec.factory != self.spare.factory:
            return "nothing"
        return self.spares.source(first=first)

    def spare_for(self, spec: ChildSpec) -> Child | None:
        """The spare that the next incarnation of a child is forked from, if any."""
        return self.waiting_spare() if self.source(spec, first=False) == "spare" else None

    def waiting_spare(self) -> Child:
        """The spare, which is specified and runs."""
        assert self.spare is not None
        return self.children[self.spare.name]
