"""A replica: one of the services behind the router, as its client sees it."""

from __future__ import annotations

from hashlib import blake2b
from typing import Literal

from ...protocol.client.questions import Question
from ...protocol.client.session import Session
from ...protocol.limits import Limits
from ...protocol.messages import ActorState, Stats, Welcome
from .prefixes import Holders, Prefixes

MOVE_AFTER_S = 0.5
"""Time that a service whose connection broke has to be back before its streams move: a gateway alone is started again
within it, and goes on with all that is cached."""

LOST_AFTER_S = 4.0
"""Silence after a ping, which is sent after a second of silence, until a service counts as gone: a stream goes on
elsewhere within six seconds, connecting and computing its prompt included."""

POLL_S = 1.0
"""Between two questions after a service's counters, by which it also shows that it is there."""

BLOCKS_PER_ANSWER = 32
"""Blocks of prompts that a service still has to compute, about 500 tokens, which weigh as much as an open answer."""

FAR_LESS = 0.75
"""Share of the answers that ran when requests had to wait, below which a service counts as having room again. Well
below 1, since a service at its limit varies by some."""

SILENT_S = 2.0
"""A service that is silent for this long after a question gets nothing new until it speaks."""


class Replica:
    """One service as the router knows it, and the session with it."""

    def __init__(self, endpoint: str, model: str, bounds: Limits, holders: Holders) -> None:
        """``holders``: for each block of a prompt, the replicas of the router that have it cached."""
        self.endpoint = endpoint
        self.identity = int.from_bytes(blake2b(endpoint.encode(), digest_size=7).digest())
        """A number that follows from the endpoint, the same at every router."""
        self.model = model
        self.bounds = bounds
        self.refusal: str | None = None
        """Why what answers there is of no use; None: it is, or nothing has answered."""
        self.session = Session(
            endpoint, client="slipstream-router", refuses=self.refuse, lost_after_s=LOST_AFTER_S
        )
        self.move_at: float | None = None
        """When its streams move, unless it is back before."""
        self.draining = False
        """It has said that it takes nothing new."""
        self.leaving = False
        """It is to get nothing new; it is forgotten when nothing is open there."""
        self.full_until = 0.0
        """It has said that it has no room."""
        self.losses = 0
        """How often it went while something was open there."""
        self.prefixes = Prefixes(self, holders)
        self.logged_as_reliable = True
        """``Prefixes.reliable``, as the log was told."""
        self.open_answers = 0
        """Answers that this router has sent there."""
        self.uncomputed = 0
        """Blocks of prompts that were sent there and have to be computed, as no token of their answers has come."""
        self.others = 0
        """Requests that others have open there, as it last said."""
        self.load = 0.0
        """Answers that are open there, and prompts that have to be computed before others, in the same measure."""
        self.slots = float("inf")
        """Answers that it can run at once, as it says."""
        self.capacity = float("inf")
        """Answers that it runs at once: as many as it has slots, or fewer if it was seen to let requests wait."""
        self.counters: dict[str, float] = {}
        self.question: Question | None = None
        self.polled_at = float("-inf")
        self.check_at = float("inf")
        """When the router checks on it next; infinite while it has no timer (``ReplicaTimers``)."""
        self.last_error = ""
        """Why nothing answers there, as the log was told."""

    def refuse(self, welcome: Welcome) -> str | None:
        """Why the service that answers cannot stand behind this router: a stream could not go on there as it was."""
        wanted = (self.model, self.bounds.vocab_size, self.bounds.max_model_len)
        limits = welcome.limits
        self.refusal = None
        if (welcome.model, limits.vocab_size, limits.max_model_len) != wanted:
            self.refusal = (
                f"the service at {self.endpoint} serves {welcome.model!r} with a vocabulary of {limits.vocab_size} and"
                f" max_model_len={limits.max_model_len}; this router is for {self.model!r} with"
                f" {self.bounds.vocab_size} and {self.bounds.max_model_len}: start it with the same model and options"
            )
        return self.refusal

    @property
    def ready(self) -> bool:
        return self.session.state == "ready"

    def carry(self, answers: int, blocks: int) -> None:
        """Add ``answers`` to those that are open there, and ``blocks`` to those it has to compute; negative numbers
        subtract."""
        self.open_answers += answers
        self.uncomputed += blocks
        self.weigh()

    def weigh(self) -> None:
        self.load = self.open_answers + self.others + self.uncomputed / BLOCKS_PER_ANSWER

    def takes(self, now: float) -> bool:
        """Whether it may be sent something."""
        ready = self.session.state == "ready"
        return ready and not self.draining and not self.leaving and now >= self.full_until

    def is_answering(self, now: float) -> bool:
        """Whether it has answered what it was asked last, or may still be about to."""
        question = self.question
        return question is None or question.answer is not None or now < self.polled_at + SILENT_S

    # --- what happens -----------------------------------------------------------------------------

    def poll(self, now: float) -> None:
        """Ask after its counters, if it is time; this also connects where there is no connection."""
        if now >= self.poll_at:
            self.polled_at = now
            self.question = self.session.inquire(now, Stats)

    @property
    def poll_at(self) -> float:
        """When to ask next; never while a question is open, which the session sees to."""
        return float("inf") if self.session.questions else self.polled_at + POLL_S

    @property
    def due(self) -> float:
        """When there is next something to do for it: a poll, a timer of its session, or moving its streams."""
        due = self.poll_at
        for other in (self.session.wake_at, self.move_at):
            if other is not None and other < due:
                due = other
        return due

    def take_counters(self) -> None:
        """Take in what it has answered."""
        question = self.question
        if question is not None and question.answer is not None:
            self.counters = question.answer.counters
            self.others = max(0, int(self.counters.get("requests_open", 0)) - len(self.session.streams))
            self.weigh()
            self.learn_capacity()
            self.question = None

    def learn_capacity(self) -> None:
        """One that lets requests wait runs no more than it runs now; one that runs far less has room again."""
        self.slots = self.counters.get("max_num_seqs") or float("inf")
        running = self.counters.get("num_requests_running", 0.0)
        if self.counters.get("num_requests_waiting", 0.0) > 0:
            self.capacity = min(running, self.slots)
        elif running < FAR_LESS * self.capacity:
            self.capacity = self.slots

    @property
    def crowded(self) -> bool:
        """Whether a new request would wait there until another answer ends."""
        return self.open_answers + self.others >= self.capacity

    def on_ready(self) -> None:
        self.move_at, self.draining, self.full_until, self.last_error = None, False, 0.0, ""
        self.capacity = self.slots = float("inf")

    def on_lost(self) -> None:
        """Forget what was open there: whatever answers next may be another incarnation."""
        self.losses += bool(self.open_answers)
        self.move_at, self.open_answers, self.uncomputed, self.others = None, 0, 0, 0
        self.weigh()
        self.prefixes.forget()

    @property
    def state(self) -> Literal["starting", "ready", "draining", "dead"]:
        if self.ready:
            return "draining" if self.draining or self.leaving else "ready"
        return "starting" if self.session.welcome is None else "dead"

    def as_actor(self, now: float) -> ActorState:
        """For ``Actors``: what the router can tell of it, which has no process here."""
        return ActorState(
            name=self.endpoint,
            role="service",
            state=self.state,
            pid=0,
            epoch=self.session.connection,
            restarts=self.losses,
            last_progress_s=round(max(0.0, now - self.session.heard_at), 3),
            working=bool(self.open_answers),
        )
