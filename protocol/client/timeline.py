"""A trace, unpacked: who did what when, with the names and lanes by which every view of it shows it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from struct import Struct
from typing import NamedTuple

from ..messages import Trace
from ..trace import MOMENT, SPAN, Moment, Recorded, Span

STREAMS = ("h2d", "compute", "d2h")
"""The device's tracks."""

Tracks = dict[str, list[Span]]
"""Spans by track: one for each actor and for each stream of the device, in the order of their ends."""


class LaneDefinition(NamedTuple):
    """One line of the picture: the spans of a track that have one of these names."""

    track: str
    title: str
    shows: tuple[str, ...]
    does: str
    """What the work is for, in a few words."""
    label: str = ""
    """What the text picture writes into a span before the step's number."""

    @property
    def stream(self) -> bool:
        """Whether it is a stream of a device, of whichever rank."""
        return self.track.partition(".")[0] in STREAMS

    @property
    def named(self) -> bool:
        """Its spans are far enough apart to carry the names of their steps."""
        return not self.stream and self.track.partition(".")[0] != "executor"


LANES = (
    LaneDefinition("scheduler", "scheduler", ("Plan",), "update N−1, prepare N+1", "plan"),
    LaneDefinition("executor", "executor", ("Plan", "HandedOn", "Sampled"), "stage, launch, hand over"),
    LaneDefinition("h2d", "H2D", ("step",), "inputs"),
    LaneDefinition("compute", "compute", ("step",), "the step", "step"),
    LaneDefinition("d2h", "D2H", ("step",), "tokens"),
    LaneDefinition("detokenizer", "detokenizer", ("Texts",), "tokens to text", "text"),
    LaneDefinition("gateway", "gateway", ("Texts", "Deltas"), "text to clients"),
)
"""From the plan of a step down to its text, as the work flows."""

RANK_TRACKS = ("executor", *STREAMS)
"""Which every rank has; of further ones the track's name ends with the number."""


def lanes_of(tracks: Collection[str]) -> list[LaneDefinition]:
    """All lanes, with those of further ranks behind those of rank 0."""
    of_rank_0 = [lane for lane in LANES if lane.track in RANK_TRACKS]
    place = LANES.index(of_rank_0[-1]) + 1
    lanes = list(LANES)
    rank = 1
    while f"compute.{rank}" in tracks:
        further = [
            lane._replace(track=f"{lane.track}.{rank}", title=f"{lane.title} {rank}") for lane in of_rank_0
        ]
        lanes[place:place] = further
        place += len(further)
        rank += 1
    return lanes


@dataclass(frozen=True)
class Timeline:
    """The spans of every actor and of the device in a stretch of time; all times in ns of one monotonic clock.

    The records are unpacked when they are asked for: a ring holds many, and a view shows few.
    """

    since: int
    until: int
    actors: dict[str, Recorded]

    @classmethod
    def of(cls, trace: Trace, seconds: float | None = None) -> Timeline:
        """The last ``seconds`` of a trace, or all of it."""
        whole = cls(trace.since_ns, trace.until_ns, trace.actors)
        return whole if seconds is None else whole.last(seconds)

    def last(self, seconds: float) -> Timeline:
        return self.after(round(max(0.0, self.until - seconds * 1e9)))

    def after(self, time: int) -> Timeline:
        """The spans that ended at ``time`` or later."""
        return replace(self, since=max(self.since, time))

    @property
    def tracks(self) -> Tracks:
        return {track: self.spans(track) for track in self.owners}

    @property
    def owners(self) -> dict[str, str]:
        """The actor that each track is from."""
        return {track: actor for actor, recorded in self.actors.items() for track in recorded.spans}

    @property
    def pids(self) -> dict[str, int]:
        """By actor."""
        return {actor: recorded.pid for actor, recorded in self.actors.items()}

    @property
    def reach(self) -> dict[str, int]:
        """For tracks that do not go back to ``since``: when the oldest span that they have ended."""
        reached = [item for recorded in self.actors.values() for item in recorded.reach.items()]
        return {track: ended for track, ended in reached if ended > self.since}

    def spans(self, track: str) -> list[Span]:
        """The spans of a track, in the order of their ends; none of a track that is not there."""
        for recorded in self.actors.values():
            if track in recorded.spans:
                names, records = recorded.names, newest(SPAN, recorded.spans[track], self.since)
                return [
                    Span(names[name], step, start, end)
                    for end, start, step, name in SPAN.iter_unpack(records)
                ]
        return []

    def moments(self, actor: str) -> list[Moment]:
        """The moments that an actor has noted in the lives of requests, in the order of time."""
        recorded = self.actors.get(actor)
        if recorded is None:
            return []
        records = newest(MOMENT, recorded.marks, self.since)
        return [
            Moment(recorded.names[name], request, at) for at, request, name in MOMENT.iter_unpack(records)
        ]


def newest(layout: Struct, records: bytes, since: int) -> memoryview:
    """The records that begin with ``since`` or a later time, of such as are in the order of their times."""
    places = range(len(records) // layout.size)
    first = bisect_left(places, since, key=lambda place: layout.unpack_from(records, place * layout.size)[0])
    return memoryview(records)[first * layout.size :]


def utilization(steps: list[Span]) -> float:
    """Share of the time, from the start of the first of these steps to the end of the last, that they take."""
    if not steps:
        return 0.0
    return sum(span.end - span.start for span in steps) / (steps[-1].end - steps[0].start)


def in_lane(
    tracks: Tracks, lane: LaneDefinition, begun: int = 0, ended: int = 1 << 63
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
