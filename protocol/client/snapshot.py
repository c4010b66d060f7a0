"""The content of a live view: a snapshot of a service, made of answers that any client can ask for.

``slipstream top`` and the dashboard take a reading now and then (``Actors``, ``Stats`` and the trace of the
time since the last one) and show the ``Snapshot`` that an ``Observer`` makes of it. Nothing is measured for them.
"""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from statistics import median_low, quantiles
from typing import NamedTuple

import msgspec

from ..messages import Actors, ActorState
from ..trace import Span
from .timeline import LANES, Timeline, Tracks, in_lane

FIRST_LOOK_S = 60.0
"""How far back the first reading looks, for the latencies."""

RECENT_S = 2.0
"""The stretch of time that rates and shares are of."""

LOAD_S = 0.5
"""The stretch of time that the loads of actors are of: short, since an actor may take thousands of turns a second."""

KEPT_REQUESTS = 1000
"""How many finished requests the latencies are of, at most."""

SHOWN_STEPS = 16
"""Steps in the lanes."""


class ShownLane(msgspec.Struct):
    """The spans of one lane in the last steps."""

    track: str
    title: str
    does: str
    spans: list[tuple[int, float, float]]
    """Step, begin and end in microseconds since ``Snapshot.lanes_begin``."""


class Latency(msgspec.Struct):
    """One kind of latency, in milliseconds, over the last requests."""

    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: list[float]) -> Latency | None:
        if not values:
            return None
        cuts = quantiles(values if len(values) > 1 else values * 2, n=100, method="inclusive")
        return cls(p50=cuts[49], p90=cuts[89], p99=cuts[98])


class Snapshot(msgspec.Struct, kw_only=True):
    """The state of a service at one moment. Shares are of 1; None: there is nothing to compute it from."""

    model: str
    ready: bool
    draining: bool
    actors: list[ActorState]
    loads: dict[str, float]
    """By actor: share of the last half second that it spent in its turns."""
    running: int
    waiting: int
    kv_usage: float
    prefix_hit_rate: float | None
    accepted: int
    finished: int
    refused: int
    failed: int
    aborted: int
    preemptions: int
    tokens_per_s: float
    prompt_tokens_per_s: float
    device_busy: float
    """Share of the last two seconds in which the device computed."""
    steps_per_s: float
    step_ms: float | None
    """From the end of a step to the end of the next: the time between two tokens of a request."""
    gap_us: float | None
    """From the end of a step to the begin of the next, while there was a next one to run: the device waits."""
    ahead: float | None
    """Share of the shown steps that were planned before the step before them had ended."""
    ttft: Latency | None
    """From the arrival of a request to its first token, as the gateway saw them."""
    itl: Latency | None
    """Between two steps, over the last two seconds."""
    e2el: Latency | None
    """From the arrival of a request to its end."""
    lanes: list[ShownLane]
    lanes_begin: float
    """Begin of the first shown step, in microseconds of the service's clock."""
    lanes_span: float
    """Microseconds from there to the end of the last shown step."""
    lanes_age_s: float | None
    """How long ago the last shown step ended."""
    first_step: int
    last_step: int


class Picture(NamedTuple):
    lanes: list[ShownLane]
    steps: list[Span]
    """The steps of the device that are shown."""
    ahead: float | None
    """Share of them that were planned ahead."""


class Observer:
    """Makes snapshots of readings, and remembers from one to the next what they need."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.looked_until = 0
        """Until when requests have been taken in, in ns."""
        self.arrived: dict[int, int] = {}
        self.first_tokens: dict[int, int] = {}
        self.ttft: deque[float] = deque(maxlen=KEPT_REQUESTS)
        self.e2el: deque[float] = deque(maxlen=KEPT_REQUESTS)
        self.totals: deque[tuple[int, float, float]] = deque()
        """When, and the tokens generated and of prompts by then."""
        self.picture = Picture([], [], None)

    @property
    def seconds(self) -> float:
        """The seconds that the trace of the next reading has to go back."""
        return RECENT_S if self.looked_until else FIRST_LOOK_S

    def snapshot(self, actors: Actors, counters: dict[str, float], timeline: Timeline) -> Snapshot:
        self.take_in_requests(timeline)
        recent = timeline.last(RECENT_S).spans("compute")
        steps = recent if self.picture.steps else timeline.spans("compute")
        if steps:
            shown = last_run(steps)
            tracks = timeline.after(shown[0].start - (shown[0].end - shown[0].start)).tracks
            ended = min(timeline.until, 2 * shown[-1].end - shown[-1].start)
            self.picture = Picture(
                shown_lanes(tracks, shown[0].start, ended), shown, planned_ahead(tracks, shown)
            )
        periods = [(later.end - span.end) * 1e-6 for span, later in pairwise(recent) if next_to(span, later)]
        gaps = [(later.start - span.end) * 1e-3 for span, later in pairwise(recent) if next_to(span, later)]
        lanes, shown, ahead = self.picture
        generated, prompts = self.rates(counters, timeline.until)

        def count(name: str) -> int:
            return int(counters.get(name, 0))

        queries = counters.get("prefix_cache_queries", 0.0)
        return Snapshot(
            model=self.model,
            ready=actors.ready,
            draining=actors.draining,
            actors=actors.actors,
            loads=loads(timeline),
            running=count("num_requests_running"),
            waiting=count("num_requests_waiting"),
            kv_usage=counters.get("kv_cache_usage_perc", 0.0),
            prefix_hit_rate=counters.get("prefix_cache_hits", 0.0) / queries if queries else None,
            accepted=count("requests_accepted"),
            finished=count("requests_finished"),
            refused=count("requests_refused"),
            failed=count("requests_failed"),
            aborted=count("requests_aborted"),
            preemptions=count("num_preemptions"),
            tokens_per_s=generated,
            prompt_tokens_per_s=prompts,
            device_busy=busy(recent, timeline.until),
            steps_per_s=len(recent) / RECENT_S,
            step_ms=median_low(periods) if periods else None,
            gap_us=median_low(gaps) if gaps else None,
            ahead=ahead,
            ttft=Latency.of(list(self.ttft)),
            itl=Latency.of(periods),
            e2el=Latency.of(list(self.e2el)),
            lanes=lanes,
            lanes_begin=shown[0].start * 1e-3 if shown else 0.0,
            lanes_span=(shown[-1].end - shown[0].start) * 1e-3 if shown else 0.0,
            lanes_age_s=(timeline.until - shown[-1].end) * 1e-9 if shown else None,
            first_step=shown[0].step if shown else -1,
            last_step=shown[-1].step if shown else -1,
        )

    def take_in_requests(self, timeline: Timeline) -> None:
        """The latencies of requests whose moments have come since the last reading."""
        moments = timeline.after(self.looked_until + 1).moments("gateway")
        for name, request, at in moments:
            if name == "arrived":
                self.arrived[request] = at
            elif name == "first token" and request in self.arrived and request not in self.first_tokens:
                self.first_tokens[request] = at
                self.ttft.append((at - self.arrived[request]) * 1e-6)
            elif name == "finished":
                arrived = self.arrived.pop(request, None)
                if arrived is not None and self.first_tokens.pop(request, None) is not None:
                    self.e2el.append((at - arrived) * 1e-6)
        self.looked_until = max([self.looked_until, timeline.since, *(moment.at for moment in moments)])

    def rates(self, counters: dict[str, float], now: int) -> tuple[float, float]:
        """Tokens per second, generated and of prompts, over the recent readings."""
        generated, prompts = counters.get("generation_tokens", 0.0), counters.get("prompt_tokens", 0.0)
        totals = self.totals
        if totals and generated < totals[-1][1]:
            totals.clear()  # a new scheduler counts from zero
        totals.append((now, generated, prompts))
        while len(totals) > 2 and totals[1][0] <= now - RECENT_S * 1e9:
            totals.popleft()
        begun, generated_then, prompts_then = totals[0]
        seconds = (now - begun) * 1e-9
        if seconds <= 0:
            return 0.0, 0.0
        return (generated - generated_then) / seconds, (prompts - prompts_then) / seconds


def loads(timeline: Timeline) -> dict[str, float]:
    latest = timeline.last(LOAD_S)
    begun = timeline.until - round(LOAD_S * 1e9)
    return {
        actor: sum(span.end - max(span.start, begun) for span in latest.spans(actor)) / (LOAD_S * 1e9)
        for actor in timeline.actors
    }


def next_to(span: Span, later: Span) -> bool:
    """The later step follows on the other; in between the device did not idle for want of work."""
    return later.step == span.step + 1 and later.start - span.end < 3 * (span.end - span.start) + 1_000_000


def last_run(steps: list[Span]) -> list[Span]:
    """The last steps that followed on one another, if they are enough to show, or else the last of an earlier run."""
    runs: list[list[Span]] = [[steps[0]]]
    for span, later in pairwise(steps):
        if next_to(span, later):
            runs[-1].append(later)
        else:
            runs.append([later])
    run = next((run for run in reversed(runs) if len(run) >= SHOWN_STEPS // 2), max(runs, key=len))
    return run[-SHOWN_STEPS:]


def busy(steps: list[Span], until: int) -> float:
    """Share of the recent time that the device computed. The span of a step comes when
    the step is over, so the time after the last one counts only once it is longer than a step."""
    if not steps:
        return 0.0
    begun = until - round(RECENT_S * 1e9)
    longest = max(span.end - span.start for span in steps)
    ended = steps[-1].end if until - steps[-1].end < 2 * longest + 50_000_000 else until
    return sum(span.end - max(span.start, begun) for span in steps) / max(1, ended - begun)


def planned_ahead(tracks: Tracks, steps: list[Span]) -> float | None:
    """The share of the steps that followed on another whose plan was sent before that one had ended."""
    plans = {span.step: span.end for span in tracks.get("scheduler", []) if span.name == "Plan"}
    early = [plans[later.step] <= span.end for span, later in pairwise(steps) if later.step in plans]
    return sum(early) / len(early) if early else None


def shown_lanes(tracks: Tracks, begun: int, ended: int) -> list[ShownLane]:
    """The spans of each actor and of each stream of the device in a stretch of time."""
    return [
        ShownLane(
            lane.track,
            lane.title,
            lane.does,
            [
                (step, round((start - begun) * 1e-3, 1), round((end - begun) * 1e-3, 1))
                for step, start, end in in_lane(tracks, lane, begun, ended)
            ],
        )
        for lane in LANES
    ]
