"""Drains a service: has its children finish what is under way and accept nothing new."""

from __future__ import annotations

import time

from . import control
from .children import Child
from .supervisor import Supervisor

RETURN_S = 2.0
"""Time that clients have, in a drain, to resend their requests to the successor of an actor that has died."""

LAST_REPORT_S = 0.1
"""Time after a second signal in which children that have just finished can still say so."""


def drain(supervisor: Supervisor, names: list[str], timeout_s: float) -> bool:
    """Have these children finish what is under way and accept nothing new; True if all did so in time."""
    asked_to_drain: set[int] = set()
    shortened = False
    deadline = time.monotonic() + timeout_s
    while busy := [child for name in names if not is_drained(child := supervisor.children[name])]:
        for child in busy:
            if child.state == "ready" and child.epoch not in asked_to_drain:
                asked_to_drain.add(child.epoch)
                child.state = "draining"
                child.send(control.Stop(drain=True, returning_s=returning_s(supervisor, child)))
        if supervisor.stop_requests.at_once and not shortened:
            # A child that has finished may be about to say so: give it a little time.
            deadline = min(deadline, time.monotonic() + LAST_REPORT_S)
            shortened = True
        left = deadline - time.monotonic()
        if left <= 0 or supervisor.stop_requests.parent_gone:
            return False
        supervisor.run_once(left)
        if supervisor.all_due is not None:
            raise supervisor.all_due
    return True


def returning_s(supervisor: Supervisor, child: Child) -> float:
    """Seconds for which the clients of the last incarnation of a child may still resend their requests to it."""
    again = supervisor.status.restart_counts[child.spec.name] > 0
    return max(0.0, RETURN_S - child.lived_s(time.monotonic())) if again else 0.0


def is_drained(child: Child) -> bool:
    """Whether nothing is under way in a child: it has said so, or it is a frontend that is not running."""
    return child.drained or (child.spec.frontend_of is not None and not child.running)
