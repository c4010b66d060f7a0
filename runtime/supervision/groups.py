"""A group: children that start and end together, because none of them can work without the others.

When one of them dies or hangs, the others are ended and all start again: that is one death, and what is said of it
is said of the member that caused it. A member that only met the end of another says so (``control.Failed.of_another``).
"""

from __future__ import annotations

import select
from collections.abc import Callable

from .children import FROM_OUTSIDE, Child

CAUSE_WITHIN_S = 1.0
"""How long the death of a member may stay unknown while another has met it already."""


def members_of(child: Child, children: dict[str, Child]) -> list[Child]:
    """All of its group that are there, in the order of their start; itself alone if it is in none."""
    group = child.spec.group
    return [
        other
        for other in children.values()
        if other is child or (group is not None and other.spec.group == group and other.running)
    ]


def end_together(first: Child, members: list[Child], hear: Callable[[Child], None]) -> tuple[Child, int]:
    """End all since ``first`` has ended; returns the member that caused it, and its status. None is reaped yet.

    ``hear`` takes in the last words of a child.
    """
    if len(members) > 1:
        if only_met_another(first):
            wait_for_end([member for member in members if member is not first])
        ended = [member for member in members if member.process.poll() is not None]
        for member in ended:
            hear(member)
        cause = min(ended, key=lambda member: (not member.hung, blamed(member), member is not first))
    else:
        cause = first
    status = cause.process.wait()
    for member in members:
        if member.process.poll() is None:
            member.process.kill()
    return cause, status


def only_met_another(child: Child) -> bool:
    return child.failure is not None and child.failure.of_another


def blamed(child: Child) -> int:
    """The less, the likelier it is that it has ended by itself and the others because of it."""
    status = child.process.poll()
    if status is not None and -status in FROM_OUTSIDE:
        return 0
    return 2 if only_met_another(child) else 1


def wait_for_end(children: list[Child]) -> None:
    """Until one of them has ended, or for as long as that can take to become known."""
    poll = select.poll()
    for child in children:
        poll.register(child.pidfd, select.POLLIN)
    poll.poll(CAUSE_WITHIN_S * 1000)


def hanging(child: Child, members: list[Child], now: float) -> Child:
    """The member to blame of a group in which ``child`` makes no progress: one that does not even answer, if any."""
    silent = {member.spec.name: silent_s(member, now) for member in members}
    longest = max(members, key=lambda member: silent[member.spec.name])
    liveness = child.liveness
    if liveness is None or silent[longest.spec.name] <= silent[child.spec.name] + liveness.every_s:
        return child
    return longest


def silent_s(child: Child, now: float) -> float:
    """Seconds for which it has owed an answer."""
    liveness = child.liveness
    return now - liveness.heard_at if liveness is not None and liveness.asked else 0.0
