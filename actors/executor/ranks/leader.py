"""Rank 0: the executor that the scheduler knows, which hands every plan on to the other ranks."""

from __future__ import annotations

from collections import deque
from typing import Any

from ....protocol.events import Completed, HandedOn, PeerUp
from ....protocol.internal import CaptureNext, ClearBatch, Plan
from ..executor import Executor


def name_of(rank: int) -> str:
    """The actor of a rank."""
    return "executor" if rank == 0 else f"executor.{rank}"


class Leader(Executor):
    """A plan is complete for any rank: each stages and launches it by itself, in the order in which they are sent.

    The others have a plan before it is launched here. A step that is launched kernel by kernel can fill the queue of
    the device, behind sums that wait for the other ranks: the launch returns when those begin, and they never would.
    """

    def __init__(self, *given: Any, followers: tuple[str, ...], **named: Any) -> None:
        """``followers`` are the actors of the other ranks; the rest as in `Executor`."""
        super().__init__(*given, **named)
        self.followers = followers
        self.missing = set(followers)
        """The other ranks that are not ready."""
        self.captures_next = False
        """The others were told to capture a graph, which comes before any further plan here too."""
        self.handed_on: deque[Plan] = deque()
        """Sent to the others, and to be launched here."""
        self.handlers[HandedOn] = self.on_handed_on

    def send_to_followers(self, message: Plan | ClearBatch | CaptureNext) -> None:
        """RuntimeError while one is not ready: the others would wait for it in what all do together."""
        if self.missing:
            raise RuntimeError(
                f"{type(message).__name__} is for all ranks, and {', '.join(sorted(self.missing))} cannot hear it yet"
            )
        for follower in self.followers:
            self.send(follower, message)

    def on_plan(self, plan: Plan, now: float) -> None:
        if self.captures_next:
            self.do_background_work(now)
        self.send_to_followers(plan)
        self.handed_on.append(plan)
        self.send(self.name, HandedOn())

    def on_handed_on(self, message: HandedOn, now: float) -> None:
        super().on_plan(self.handed_on.popleft(), now)

    def on_wake(self, now: float) -> None:
        """As an executor does, but the other ranks are told of a capture before it begins here: all compute it
        together.

        The others capture once they have launched all plans that were sent before. So this rank captures only when it
        has launched these too: graphs that steps have missed come first, and must be the same on all ranks.
        """
        self.fill_masks()
        if self.captures_next:
            self.do_background_work(now)
        elif self.background_work is not None and not (self.missing or self.handed_on) and self.has_time(now):
            self.send_to_followers(CaptureNext())
            self.captures_next = True
            self.wake_at = now
        elif not (self.missing or self.handed_on):  # what it waits for then comes as a message
            self.look_again()

    def on_completed(self, message: Completed, now: float) -> None:
        super().on_completed(message, now)
        if self.captures_next:
            self.wake_at = now  # the others wait in what they have begun

    def do_background_work(self, now: float) -> None:
        self.captures_next = False
        super().do_background_work(now)

    def on_peer_up(self, peer: PeerUp, now: float) -> None:
        self.missing.discard(peer.name)
        super().on_peer_up(peer, now)
        self.welcome_scheduler()
        if self.background_work is not None and not self.missing:
            self.wake_at = now

    def welcome_scheduler(self) -> None:
        """Once all ranks are there."""
        if self.scheduler_is_new and self.pipeline.idle and not self.missing:
            self.send_to_followers(ClearBatch())
            super().welcome_scheduler()
