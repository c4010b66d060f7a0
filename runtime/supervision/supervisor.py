"""The supervisor: starts the actors in order, watches them, restarts them, stops them in reverse order.

It handles no bytes of a user. For each child it has a process file descriptor, which shows
its death within a millisecond, and a control channel, over which the child answers probes
(``probes``). A child that dies or hangs is started again (``restarts``): alone, then with all others, and
when that does not help the service ends, after every open request was answered.
"""

from __future__ import annotations

import time
from pathlib import Path

import zmq

from ...protocol.actors import HELPERS
from ...protocol.errors import InvalidRequest, SlipstreamError
from ..deaths import Deaths
from ..log import logger
from ..machine.run_directory import restore
from . import control
from .briefing import Briefing
from .children import CannotStart, Child, ChildFailed, ChildSpec
from .due import DueRestarts
from .groups import end_together, members_of
from .helpers import Helpers
from .notify import Notify
from .probes import Probes
from .restarts import INTENSITY, TRIES, Restarts
from .status import Status
from .stop_requests import StopRequests

START_TIMEOUT_S = 600.0
"""Time in which all children must be ready. The weights of a large model may come from a slow disk. After
that the user is told which actor is not ready."""

AWAY_S = 1.0
"""A supervisor that returns from a wait this much too late was itself stopped."""


class Supervisor:
    """Owns the child processes of one service."""

    def __init__(
        self,
        specs: list[ChildSpec],
        directory: Path,
        notify: Notify,
        *,
        collect_output: bool = False,
    ) -> None:
        """``collect_output``: the output of children goes through the log instead of straight to standard error."""
        self.specs = [spec for spec in specs if spec.role not in HELPERS]
        self.waiting_for_spare: list[ChildSpec] = []
        """Children whose first incarnation will be forked from the spare, when that is ready."""
        self.directory = directory
        self.locks: list[int] = []
        """Locks on the run directory, held until the end; one for each time that it had to be made again."""
        self.collect_output = collect_output
        self.notify = notify
        self.children: dict[str, Child] = {}
        self.epoch = 0
        self.serving = False
        """Whether all children have been ready, so that one that dies is restarted."""
        self.has_served = False
        """Whether it has ever been serving, even if all children are starting again now."""
        self.restarts = Restarts()
        self.deaths = Deaths()
        self.died_at: dict[str, float] = {}
        """The times of death of the children that are not back yet."""
        self.due = DueRestarts()
        self.all_due: ChildFailed | None = None
        """The death because of which all children have to start again; None: they have not."""
        self.status = Status(self.children, f"ipc://{directory}/control")
        self.briefing = Briefing(self.specs, self.children, self.status, self.deaths, directory)
        self.helpers = Helpers(specs, self.status, directory, collect_output=collect_output)
        self.probes = Probes(self.children, self.status)
        self.stop_requests = StopRequests()
        self.cut_off = ""
        """Why, in a drain, answers cannot be finished any more; empty: they can."""

    @property
    def stopping(self) -> bool:
        """Whether the service has been told to stop."""
        return self.stop_requests.pending

    # --- starting ---------------------------------------------------------------------------------

    def start(self) -> bool:
        """Start all children; ``ChildFailed`` if one cannot start. Returns False if told to stop before all were
        ready."""
        deadline = time.monotonic() + START_TIMEOUT_S
        self.start_helpers()
        for spec in self.specs:
            if spec.waits and not self.wait_ready(deadline):
                return False
            if spec.name in self.children:
                # A frontend that has stayed: move it to the end, since it is to be stopped before the gateway.
                self.children[spec.name] = self.children.pop(spec.name)
            elif self.helpers.source(spec, first=True) == "later":
                self.waiting_for_spare.append(spec)
            else:
                self.spawn_first(spec)
        self.serving = self.wait_ready(deadline)
        self.has_served |= self.serving
        return self.serving

    def spawn_first(self, spec: ChildSpec) -> None:
        """Start a child together with all others; if all start again and the machine has no room for it, retry
        later."""
        try:
            self.spawn(spec)
        except CannotStart as error:
            if not self.has_served:
                raise
            self.due.put_off(spec, time.monotonic(), error)

    def spawn(self, spec: ChildSpec) -> None:
        if spec.options.get("keeper") and self.has_served and (silent := self.helpers.silent_keeper()):
            self.end_helper(silent)
        self.epoch += 1
        self.children[spec.name] = Child.spawn(
            spec,
            self.epoch,
            self.directory,
            self.briefing.begin_of(spec, self.epoch),
            collect_output=self.collect_output,
            spare=self.helpers.spare_for(spec),
        )

    def wait_ready(self, deadline: float) -> bool:
        while self.starting():
            left = deadline - time.monotonic()
            if left <= 0:
                slow = self.starting()
                raise SlipstreamError(
                    f"not ready within {START_TIMEOUT_S:g} s: {', '.join(slow)}; a large model may need longer"
                )
            self.run_once(left)
            if self.stopping:
                return False
        return True

    def starting(self) -> list[str]:
        """The names of the children that have to be ready and are not."""
        waiting = [spec.name for spec in (*self.waiting_for_spare, *(spec for _, spec in self.due.waiting))]
        return waiting + [
            child.spec.name
            for child in self.children.values()
            if child.state == "starting" and child.spec.role not in HELPERS
        ]

    def on_ready(self, child: Child, ready: control.Ready) -> None:
        name, now = child.spec.name, time.monotonic()
        child.state, child.facts, child.phases, child.ready_at = "ready", ready.facts, ready.phases, now
        if child.spec.role in HELPERS:
            self.helpers.on_ready(child, now, serving=self.serving)
            return
        self.probes.begin(child, now)
        if "endpoint" in ready.facts:
            # A later incarnation uses the same endpoint.
            child.spec.options["endpoint"] = ready.facts["endpoint"]
        child.spec.options.update(ready.facts.get("settled", {}))
        news = control.Peer(name, child.epoch, child.mailbox)
        # In the order of the list: the gateway is last, and submits its requests again when it hears the news. By then
        # the news has to be in the channels of all others.
        for spec in self.specs:
            other = self.children.get(spec.name)
            if other is not None and other is not child and spec.role == child.spec.role == "actor":
                other.send(news)
        self.status.reported.clear()  # the actor that answers questions may be new and know no counters
        if name in self.died_at:
            logger.info(
                "%s (pid %d) is back after %.2f s%s",
                name,
                child.process.pid,
                now - self.died_at.pop(name),
                f" ({longest_phases(child)})" if longest_phases(child) else "",
            )

    # --- watching ---------------------------------------------------------------------------------

    def run(self) -> None:
        """Watch the children until told to stop; ``ChildFailed`` if one cannot be restarted."""
        while not self.stopping:
            self.run_once(None)
            if self.all_due is not None:
                self.restart_all()

    def run_once(self, timeout_s: float | None) -> None:
        """Wait for something to happen and handle it; ``ChildFailed`` if a child cannot be restarted."""
        waits = [
            *(
                self.restart_due(),
                self.start_helpers(),
                self.probes.check(serving=self.serving),
                self.status.report_actors(self.serving, self.stopping),
                self.feed_watchdog(),
            ),
            timeout_s,
        ]
        timeout_s = min((wait for wait in waits if wait is not None), default=None)
        poller = zmq.Poller()
        poller.register(self.status.socket, zmq.POLLIN)
        self.stop_requests.register(poller)
        for child in self.children.values():
            if child.running:
                poller.register(child.channel.fileno(), zmq.POLLIN)
                poller.register(child.pidfd, zmq.POLLIN)
            if child.output is not None and child.output.open:
                poller.register(child.output.reader, zmq.POLLIN)
        begun = time.monotonic()
        ready = dict(poller.poll(None if timeout_s is None else max(0, int(timeout_s * 1000 + 0.999))))
        now = time.monotonic()
        if timeout_s is not None and now - begun > timeout_s + AWAY_S:
            self.probes.reset_timers(now)
        if self.stop_requests.take_in(ready):
            self.probes.look_for_stopped(now)
        if self.status.socket in ready:
            self.status.answer_program(self.restart)
        for child in list(self.children.values()):
            if child.output is not None and child.output.reader in ready:
                child.output.read()
            if child.running and child.channel.fileno() in ready:
                self.receive_from(child)
            if child.running and child.pidfd in ready:
                if child.spec.role in HELPERS:
                    self.on_helper_death(child)
                else:
                    self.on_death(child)

    def receive_from(self, child: Child) -> None:
        """Handle everything that a child has said."""
        while True:
            try:
                message = control.receive(child.channel)
            except (BlockingIOError, ConnectionResetError):
                return
            now = time.monotonic()
            if isinstance(message, control.Ready):
                self.on_ready(child, message)
            elif isinstance(message, control.Failed):
                child.failure = message
            elif isinstance(message, control.Drained):
                child.drained = True
            elif isinstance(message, control.Awake) and child.liveness is not None:
                child.liveness.wake(now)
            elif isinstance(message, control.Report) and child.liveness is not None:
                child.liveness.take(message, now)
                self.status.report_counters()
            elif isinstance(message, control.AskActors):
                self.status.on_ask_actors(child)
            elif message is None:
                return

    def restart(self, name: str) -> None:
        """Restart a child: it is killed, and then started again as after any death."""
        child = self.children.get(name)
        if child is None:
            raise InvalidRequest(f"there is no actor {name!r}; there are {', '.join(self.children)}")
        if not self.serving or self.stopping or child.state != "ready":
            state = "stopping" if self.stopping else child.state
            raise InvalidRequest(f"{name} is not ready to be restarted: it is {state}; try again later")
        child.asked_for = True
        child.process.kill()

    # --- death ------------------------------------------------------------------------------------

    def on_death(self, child: Child) -> None:
        """Have a dead child, or all children, start again; ``ChildFailed`` if it never was ready or no restart
        helps."""
        self.receive_from(child)  # its last words, if any
        if child.spec.frontend_of is not None and self.stopping and child.has_work and not child.drained:
            self.cut_off = (
                f"{child.spec.name} ended in the middle of answers"  # its connections ended with it
            )
        members = members_of(child, self.children)
        child, status = end_together(child, members, self.receive_from)
        now, name = time.monotonic(), child.spec.name
        failed = ChildFailed(child, status)
        in_hand, own_fault = child.in_hand.read(), child.crashed(status)
        for member in members:
            self.probes.end_watch(member)
            member.reap()
        frontend = child.spec.frontend_of is not None
        if not self.serving and not (frontend and self.has_served):
            raise failed
        were_ready = all(member.liveness is not None for member in members)
        was_ready = child.liveness is not None
        if child.forked and self.helpers.spares.is_to_blame(was_ready=was_ready, own_fault=own_fault):
            self.end_helper(self.helpers.waiting_spare())
        for member in members:
            self.died_at[member.spec.name] = now
            self.status.keep_counters(member)
            if were_ready:  # a child that was never ready has had no request in hand
                self.note_death(member, own_fault, in_hand if member is child else b"")
        if child.asked_for:
            logger.info("%s (pid %d) is restarted, as was asked", name, child.process.pid)
            for member in members:
                self.due.add(member.spec, now)
            return
        self.schedule_restart(child, members, failed, now)

    def schedule_restart(self, child: Child, members: list[Child], failed: ChildFailed, now: float) -> None:
        """Have the children that died together start again when `Restarts` says; raises ``failed`` if it says never."""
        name, frontend = child.spec.name, child.spec.frontend_of is not None
        lived_s = min(member.lived_s(now) for member in members)
        for_good = child.failure is not None and child.failure.for_good
        decision = self.restarts.on_death(
            child.spec.group or name, lived_s, frontend=frontend, for_good=for_good
        )
        if decision.restart == "none":
            raise failed
        ended = f"{name} (pid {child.process.pid}) ended: {failed.cause}; restarting"
        if decision.restart == "all":
            self.all_due = failed
            logger.warning("%s all, since it did not heal alone", ended)
            return
        for member in members:
            self.due.add(member.spec, now + decision.pause_s)
        most = "" if frontend else f" of {TRIES if for_good else INTENSITY}"
        what = "it" if len(members) == 1 else f"all of its group of {len(members)}"
        logger.warning("%s %s (%d%s in a row)", ended, what, decision.in_a_row, most)

    def note_death(self, child: Child, own_fault: bool, in_hand: bytes) -> None:
        """Tell all other actors how one has ended, and keep for its next incarnation what it had in hand."""
        self.deaths.note_death(child.spec.name, own_fault, in_hand)
        if child.spec.role == "actor":
            for other in self.children.values():
                if other.running and other.spec.role == "actor":
                    other.send(control.PeerDied(child.spec.name, own_fault))

    def restart_due(self) -> float | None:
        """Start the children whose pause is over; returns the seconds until the next is due."""
        now = time.monotonic()
        if self.waiting_for_spare and self.helpers.source(self.waiting_for_spare[0], first=True) != "later":
            waiting, self.waiting_for_spare = self.waiting_for_spare, []
            for spec in waiting:
                self.spawn_first(spec)
        for spec in self.due.take(now):
            self.status.restart_counts[spec.name] += 1
            try:
                self.spawn(spec)
            except CannotStart as error:
                self.status.restart_counts[spec.name] -= 1
                self.due.put_off(spec, now, error)
            else:
                self.due.on_started(spec)
        return None if self.due.next is None else self.due.next - now

    def restart_all(self) -> None:
        """End all children and start them again; ``ChildFailed`` if one cannot start. A frontend stays, with the
        streams of its clients; for it, this is like a death of the gateway.

        ``SlipstreamError`` if told to stop meanwhile, as nothing can finish the requests that are under way.
        """
        self.all_due, self.serving = None, False
        self.due.clear()
        made_again = restore(self.directory)
        if made_again is not None:
            self.locks.append(made_again)
            self.status.bind_again()
        for name, child in reversed(list(self.children.items())):
            if child.spec.frontend_of is not None and child.state == "ready":
                continue
            if child.running:
                self.status.keep_counters(child)
                child.process.kill()
                child.reap()
            del self.children[name]
        self.status.restart_counts.update(spec.name for spec in self.specs if spec.name not in self.children)
        self.helpers.begin_anew()
        self.status.asking.clear()
        if not self.start() and not self.stop_requests.parent_gone:
            raise SlipstreamError(
                "told to stop while all actors were starting again: what was under way could not be finished"
            )

    # --- beside the actors --------------------------------------------------------------------------

    def start_helpers(self) -> float | None:
        """Start the spare and the keeper if it is time; returns the seconds until it is."""
        if self.stopping:
            return None
        whole = all(child.state == "ready" for child in self.children.values() if child.spec.role == "actor")
        whole = whole and not self.due.waiting
        return self.helpers.start(serving=self.serving, whole=whole, has_served=self.has_served)

    def end_helper(self, child: Child) -> None:
        child.process.kill()
        self.on_helper_death(child)

    def on_helper_death(self, child: Child) -> None:
        """Handle the death of a helper. Of a spare that the first incarnations wait for, its reason is why they cannot
        start."""
        self.receive_from(child)
        if child.spec.role == "spare" and child.failure is not None and self.waiting_for_spare:
            raise ChildFailed(child, child.process.wait())
        self.helpers.on_death(child)

    def feed_watchdog(self) -> float | None:
        """Tell systemd that the service is alive, unless an actor hangs and cannot even be ended."""
        if not self.has_served:
            return None  # until the service is ready, TimeoutStartSec of systemd applies
        try:
            return self.notify.beat(time.monotonic(), not any(c.hung for c in self.children.values()))
        except SlipstreamError as error:
            logger.warning("%s", error)
            return self.notify.every_s

    # --- stopping ---------------------------------------------------------------------------------

    def stop(self, reason: str = "the service has stopped") -> None:
        """End all children in the reverse order of their start; open requests are answered with ``reason``."""
        for child in reversed(self.children.values()):
            if child.running:
                child.end(reason)
        self.children.clear()
        self.status.close()


def longest_phases(child: Child) -> str:
    """The phases of its start that took at least 50 ms, as a text."""
    return ", ".join(f"{name} {seconds:.2f} s" for name, seconds in child.phases.items() if seconds >= 0.05)
