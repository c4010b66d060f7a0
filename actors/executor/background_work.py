"""Decides when an executor does its background work, such as the capture of graphs: a piece at a time, so that no plan
waits long."""

from __future__ import annotations

from collections.abc import Callable

from .pipeline import Pipeline

IDLE_S = 0.1
"""Pause after which the executor counts as idle: between the requests of one client there is less."""

CATCHING_UP_SHARE = 0.6
"""Share of the time that captures of graphs get while steps run: captures of 3 s take 5 s then. Graphs that steps have
missed come first, so that most steps are fast long before the last capture."""

FIRST_TOKENS_S = 1.0
"""Time after a pause in which nothing is captured, though steps are slower without graphs: after a death all streams
wait for their next token, and after a start the first requests for their first."""


class BackgroundWork:
    """The pieces of work, and the times at which they may be done."""

    def __init__(
        self,
        do_piece: Callable[[], float | None],
        pipeline: Pipeline,
        *,
        catching_up: bool = False,
        missed_twice: Callable[[], bool] | None = None,
    ) -> None:
        """``do_piece`` does one piece, and returns the seconds that it took; None: nothing was left. ``catching_up``:
        steps are slower until all pieces are done, so they are done between steps too, and at once where
        ``missed_twice`` says that two steps have missed the same piece."""
        self.do_piece = do_piece
        self.pipeline = pipeline
        self.catching_up = catching_up
        self.missed_twice = missed_twice
        self.busy_at = -IDLE_S
        """When there was last something to run."""
        self.rest_until = 0.0
        """When the next piece may be done between steps."""

    def on_plan(self, now: float) -> None:
        """A step is about to be launched."""
        if self.catching_up and now - self.busy_at >= IDLE_S and self.pipeline.idle:
            self.expect_first_tokens(now)
        self.busy_at = now

    def expect_first_tokens(self, now: float) -> None:
        """Leave the time to steps for a while."""
        self.busy_at = now
        self.rest_until = max(self.rest_until, now + FIRST_TOKENS_S)

    def do(self, now: float) -> bool:
        """Do one piece; False if there was none left."""
        took_s = self.do_piece()
        if took_s is None:
            self.catching_up = False
            return False
        self.rest_until = now + took_s / CATCHING_UP_SHARE
        return True

    def has_time(self, now: float) -> bool:
        """Whether a piece may be done now. It is not enough that no step is under way: between two steps that follow
        each other there may be such a moment too."""
        return (self.pipeline.idle and now >= self.busy_at + IDLE_S) or self.may_catch_up(now)

    def may_catch_up(self, now: float) -> bool:
        """Whether a piece may be done between steps.

        Not while a step waits for its masks: its forward pass is over, and its logits are where a graph's would be.
        """
        if not self.catching_up or self.pipeline.awaiting_masks is not None:
            return False
        return now >= self.rest_until or (self.missed_twice is not None and self.missed_twice())
