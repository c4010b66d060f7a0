"""Many requests of one client, of which as many are open as the service holds answers. No socket and no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import Overloaded
from ..messages import Delta
from ..sampling import SamplingParams
from .outputs import Collector, RequestOutput
from .pending import Stream
from .session import Session

OnDelta = Callable[[int, Delta], None]
"""Called with the number of the prompt and what has come for it."""


class ManyRequests:
    """Requests that are asked together; their numbers are those of their prompts, from 0."""

    def __init__(
        self,
        session: Session,
        asked: Sequence[dict[str, Any]],
        params: Sequence[SamplingParams | None],
        on_delta: OnDelta | None,
        room: int,
    ) -> None:
        """``asked``: what ``Session.ask`` is given for each, but for its ``params``; ``room``: most open answers."""
        self.session = session
        self.asked = asked
        self.params = params
        self.on_delta = on_delta
        self.room = room
        self.results: list[RequestOutput | None] = [None] * len(asked)
        self.waiting = deque(range(len(asked)))
        self.running: dict[Stream, tuple[int, Collector]] = {}
        self.news: deque[Stream] = deque()
        """Streams of which something has come; it is their ``waiter``."""
        self.open_answers = 0
        self.not_before = 0.0
        """When the next one may be asked, after the service had no room for one."""
        self.number = 0
        """The request that was dealt with last: of an error that is raised, its own."""

    @property
    def left(self) -> bool:
        """Whether some are not finished."""
        return bool(self.waiting or self.running)

    def ask(self, now: float) -> float | None:
        """Open as many as there is room for; returns when more may be opened, None if that is no question of time."""
        while self.waiting and now >= self.not_before and self.has_room_for(self.waiting[0]):
            self.number = self.waiting.popleft()
            request = {
                **self.asked[self.number],
                "params": self.params[self.number],
                "return_prompt_ids": True,
            }
            stream = self.session.ask(now, **request)
            stream.waiter = self.news
            self.running[stream] = (self.number, Collector(stream.request.id, request.get("prompt")))
            self.open_answers += self.answers_of(self.number)
        return self.not_before if self.waiting and now < self.not_before else None

    def answers_of(self, number: int) -> int:
        params = self.params[number]
        return 1 if params is None else params.n

    def has_room_for(self, number: int) -> bool:
        """Whether the service would hold it too; one that it never can is asked alone, and refused by the service."""
        return not self.running or self.open_answers + self.answers_of(number) <= self.room

    def take_in(self, now: float) -> None:
        """Take in what has come; raises the error of the first that failed."""
        while self.news:
            stream = self.news.popleft()
            if stream not in self.running:
                continue  # two deltas of one message: the first look took both
            self.number, collector = self.running[stream]
            while stream.deltas:
                delta = stream.deltas.popleft()
                collector.add(delta)
                if self.on_delta is not None:
                    self.on_delta(self.number, delta)
            if isinstance(stream.error, Overloaded) and len(self.asked) > 1:
                # Others use the service too. Nothing of this request has begun: it waits.
                self.waiting.append(self.number)
                self.not_before = now + stream.error.retry_after_s
            elif stream.error is not None:
                raise stream.error
            elif stream.unfinished:
                continue
            else:
                self.results[self.number] = collector.output()
            del self.running[stream]
            self.open_answers -= self.answers_of(self.number)

    def leave(self) -> None:
        """End those that are open."""
        for stream in self.running:
            self.session.leave(stream)
