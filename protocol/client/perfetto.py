"""A timeline as a file for https://ui.perfetto.dev, in Chrome's trace format.

A process for each actor, with its real pid; the streams of the device are tracks of the executor. Two kinds
of arrows: ``step`` leads from the plan of a step over its launch, its copies and its computation to its
tokens and their text; ``request`` leads from the arrival of a request through the actors to its first token
and its end. What a request waited for stands in a track of its own below the gateway.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from ..actors import ACTORS
from ..trace import Span
from .timeline import STREAMS, Timeline

TITLES = {"h2d": "H2D stream", "compute": "compute stream", "d2h": "D2H stream"}

STEP_PATH = (
    ("scheduler", "Plan"),
    ("executor", "Plan"),
    ("h2d", "step"),
    ("compute", "step"),
    ("d2h", "step"),
    ("executor", "Sampled"),
    ("detokenizer", "Texts"),
    ("gateway", "Texts"),
)
"""Where a step is, one after the other: track and name of the span."""

SHARED = {("scheduler", "Plan"), ("executor", "Sampled")}
"""Turns that may do this for several steps at once; they bear the number of the first."""

PHASES = (("arrived", "tokenize"), ("tokenized", "wait"), ("planned", "prefill"), ("first token", "decode"))
"""What follows on each moment of a request."""

PASSED = {"planned": (("executor", "Plan"), ("compute", "step")), "first token": (("detokenizer", "Texts"),)}
"""What a request passes in the step of a moment, besides the turn in which the moment was noted."""

CLOCK_SLACK_NS = 1000
"""A moment's time has passed through a float of seconds."""


class SpanOnTrack(NamedTuple):
    """A span, and the track that it is on."""

    track: str
    span: Span


Event = dict[str, Any]


class Drawing:
    """The events of one file."""

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        self.spans = {
            track: [clipped for span in spans if (clipped := self.clip(span))]
            for track, spans in timeline.tracks.items()
        }
        self.starts = {track: [span.start for span in spans] for track, spans in self.spans.items()}
        self.steps: dict[tuple[str, str], list[Span]] = {}
        """Spans of a step, by track and name, in the order of steps."""
        for track, spans in self.spans.items():
            for span in spans:
                if span.step >= 0:
                    self.steps.setdefault((track, span.name), []).append(span)

    def clip(self, span: Span) -> Span | None:
        """The part of a span within the time that was asked for."""
        start, end = max(span.start, self.timeline.since), min(span.end, self.timeline.until)
        return Span(span.name, span.step, start, end) if start < end else None

    def us(self, ns: int) -> float:
        """Microseconds since the begin of the file."""
        return (ns - self.timeline.since) / 1000

    def events(self) -> Iterator[Event]:
        yield from self.names()
        for track in self.spans:
            yield from self.track(track)
        for step in sorted({span.step for spans in self.steps.values() for span in spans}):
            yield from self.arrows("step", step, self.path_of_step(step))
        for request, moments in self.requests().items():
            yield from self.arrows("request", request, self.path_of_request(moments))
            yield from self.phases(request, moments)

    # --- tracks -----------------------------------------------------------------------------------

    def thread(self, track: str) -> Event:
        """Process and thread of a track. The streams have numbers that no process has."""
        pid = self.timeline.pids[self.timeline.owners[track]]
        stream = stream_of(track)
        return {"pid": pid, "tid": pid if stream is None else STREAMS.index(stream) + 1}

    def names(self) -> Iterator[Event]:
        for order, actor in enumerate(sorted(self.timeline.pids, key=sort_key)):
            pid = self.timeline.pids[actor]
            base = {"ph": "M", "pid": pid, "tid": pid}
            yield base | {"name": "process_name", "args": {"name": f"slipstream {actor}"}}
            yield base | {"name": "process_sort_index", "args": {"sort_index": order}}
        for track in self.spans:
            stream = stream_of(track)
            title = "turns" if stream is None else TITLES[stream]
            base = {"ph": "M"} | self.thread(track)
            yield base | {"name": "thread_name", "args": {"name": title}}
            order = 0 if stream is None else STREAMS.index(stream) + 1
            yield base | {"name": "thread_sort_index", "args": {"sort_index": order}}

    def track(self, track: str) -> Iterator[Event]:
        base = {"ph": "X", "cat": "stream" if stream_of(track) else "turn"} | self.thread(track)
        for span in self.spans[track]:
            of_step = span.step >= 0
            event = base | {
                "name": f"{span.name} {span.step}" if of_step else span.name,
                "ts": self.us(span.start),
                "dur": (span.end - span.start) / 1000,
            }
            yield event | {"args": {"step": span.step}} if of_step else event

    # --- arrows -----------------------------------------------------------------------------------

    def path_of_step(self, step: int) -> list[SpanOnTrack]:
        found = [
            SpanOnTrack(track, span)
            for track, name in STEP_PATH
            if (span := self.span_of_step(track, name, step)) is not None
        ]
        return found if any(each.track == "compute" for each in found) else []

    def span_of_step(self, track: str, name: str, step: int) -> Span | None:
        spans = self.steps.get((track, name), [])
        at = bisect_right(spans, step, key=lambda span: span.step) - 1
        if at < 0 or not (spans[at].step == step or (track, name) in SHARED):
            return None
        return spans[at]

    def requests(self) -> dict[int, dict[str, tuple[str, int]]]:
        """By request and moment: the first actor and time of it."""
        found: dict[int, dict[str, tuple[str, int]]] = {}
        for actor in self.timeline.actors:
            for moment in self.timeline.moments(actor):
                found.setdefault(moment.request, {}).setdefault(moment.name, (actor, moment.at))
        return found

    def path_of_request(self, moments: dict[str, tuple[str, int]]) -> list[SpanOnTrack]:
        """The turns in which its moments were noted, and between them what its first step and token passed."""
        found: list[SpanOnTrack] = []
        for name, (actor, at) in moments.items():
            span = self.span_at(actor, at)
            if span is None:
                continue
            found.append(SpanOnTrack(actor, span))
            for track, work in PASSED.get(name, ()):
                passed = self.span_of_step(track, work, span.step)
                if passed is not None:
                    found.append(SpanOnTrack(track, passed))
        return found

    def span_at(self, track: str, time: int) -> Span | None:
        at = bisect_right(self.starts.get(track, []), time + CLOCK_SLACK_NS) - 1
        if at < 0:
            return None
        span = self.spans[track][at]
        return span if span.end >= time else None

    def arrows(self, kind: str, number: int, path: list[SpanOnTrack]) -> Iterator[Event]:
        """One flow through the beginnings of these spans; none if it has but one end in the file."""
        path = sorted(path, key=lambda each: each.span.start)
        for index, (track, span) in enumerate(path if len(path) > 1 else ()):
            phase = "s" if index == 0 else "f" if index == len(path) - 1 else "t"
            event = {"ph": phase, "cat": kind, "name": kind, "id": number, "ts": self.us(span.start)}
            yield event | self.thread(track) | ({} if phase == "s" else {"bp": "e"})

    # --- requests ---------------------------------------------------------------------------------

    def phases(self, request: int, moments: dict[str, tuple[str, int]]) -> Iterator[Event]:
        """The phases of a request, as far as the file goes."""
        pid = self.timeline.pids["gateway"]
        base = {"cat": "request", "id": request, "pid": pid, "tid": pid}
        since, until = self.timeline.since, self.timeline.until
        times = {name: at for name, (_, at) in moments.items()}
        end = times.get("finished", until)
        begin = times.get("arrived", since)
        yield base | {"ph": "b", "name": f"request {request}", "ts": self.us(begin)}
        known = [(name, phase) for name, phase in PHASES if name in times]
        for index, (name, phase) in enumerate(known):
            later = [times[other] for other, _ in known[index + 1 :]]
            yield base | {"ph": "b", "name": phase, "ts": self.us(times[name])}
            yield base | {"ph": "e", "name": phase, "ts": self.us(min([*later, end]))}
        yield base | {"ph": "e", "name": f"request {request}", "ts": self.us(end)}


def stream_of(track: str) -> str | None:
    """The stream of the device that a track is of: of rank 1 it is called ``compute.1``. None for that of an actor."""
    name = track.partition(".")[0]
    return name if name in STREAMS else None


def sort_key(actor: str) -> tuple[int, str]:
    """Orders the actors as in `ACTORS`, with the ranks of an executor beside it."""
    name = actor.partition(".")[0]
    return ACTORS.index(name) if name in ACTORS else len(ACTORS), actor


def write(timeline: Timeline, file: IO[str]) -> int:
    """Write the file, one event a line; returns the number of events."""
    count = 0
    file.write('{"displayTimeUnit": "ms", "traceEvents": [\n')
    for event in Drawing(timeline).events():
        file.write((",\n" if count else "") + json.dumps(event, separators=(",", ":")))
        count += 1
    about = {"since_ns": timeline.since, "until_ns": timeline.until, "clock": "CLOCK_MONOTONIC"}
    file.write('\n], "otherData": ' + json.dumps(about) + "}\n")
    return count
