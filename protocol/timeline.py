"""A trace, unpacked: who did what when, with the names and lanes by which every view of it shows it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from .messages import Trace
from .trace import MARK, SPAN, Mark, Span

STREAMS = ("h2d", "compute", "d2h")
"""The device's tracks."""

Tracks = dict[str, list[Span]]
"""Spans by track: one for each actor and for each stream of the device, in the order of their ends."""


class Lane(NamedTuple):
    """One line of the picture: the spans of a track that have one of these names."""

    track: str
    title: str
    shows: tuple[str, ...]
    does: str
    """What the work is for, in a few words."""
    label: str = ""
    """What the text picture writes into a span before the step's number."""

    @property
    def named(self) -> bool:
        """Its spans are far enough apart to carry the names of their steps."""
        return self.track not in ("executor", *STREAMS)


LANES = (
    Lane("scheduler", "scheduler", ("Plan",), "update N−1, prepare N+1", "plan"),
    Lane("executor", "executor", ("Plan", "Sampled"), "stage, launch, hand over"),
    Lane("h2d", "H2D", ("step",), "inputs"),
    Lane("compute", "compute", ("step",), "the step", "step"),
    Lane("d2h", "D2H", ("step",), "tokens"),
    Lane("detokenizer", "detokenizer", ("Texts",), "tokens to text", "text"),
    Lane("gateway", "gateway", ("Texts", "Deltas"), "text to clients"),
)
"""From the plan of a step down to its text, as the work flows."""


@dataclass
class Timeline:
    """What every actor and the device did in a stretch of time; all times in ns of one monotonic clock."""

    since: int
    until: int
    tracks: Tracks
    marks: dict[str, list[Mark]]
    """By the actor that made them, in the order of time."""
    owners: dict[str, str]
    """The actor that each track is from."""
    pids: dict[str, int]
    """By actor."""
    reach: dict[str, int]
    """Of tracks that do not go back to ``since``: when the oldest span that they have ended."""

    @classmethod
    def of(cls, trace: Trace, seconds: float | None = None) -> Timeline:
        """The last ``seconds`` of a trace, or all of it."""
        until = trace.until_ns
        since = trace.since_ns if seconds is None else round(max(trace.since_ns, until - seconds * 1e9))
        found = cls(since, until, {}, {}, {}, {}, {})
        for actor, recorded in trace.actors.items():
            names = recorded.names
            found.pids[actor] = recorded.pid
            found.reach |= {track: ended for track, ended in recorded.reach.items() if ended > since}
            found.marks[actor] = [
                Mark(names[name], request, at)
                for at, request, name in MARK.iter_unpack(recorded.marks)
                if at >= since
            ]
            for track, records in recorded.spans.items():
                found.owners[track] = actor
                found.tracks[track] = [
                    Span(names[name], step, start, end)
                    for end, start, step, name in SPAN.iter_unpack(records)
                    if end >= since
                ]
        return found


def utilization(steps: list[Span]) -> float:
    """Share of the time, from the start of the first of these steps to the end of the last, that they take."""
    if not steps:
        return 0.0
    return sum(span.end - span.start for span in steps) / (steps[-1].end - steps[0].start)


def in_lane(
    tracks: Tracks, lane: Lane, begun: int = 0, ended: int = 1 << 63
) -> Iterator[tuple[int, int, int]]:
    """Step, start and end of what a lane shows of a stretch of time, cut at its edges.

    What names no step belongs to the step before it in its track.
    """
    last = -1
    for name, step, start, end in tracks.get(lane.track, []):
        if name in lane.shows:
            last = step if step >= 0 else last
            if end > begun and start < ended:
                yield last, max(start, begun), min(end, ended)
