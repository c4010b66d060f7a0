"""The screen of ``slipstream top``, drawn with rich: numbers, the last steps as lanes, and the actors."""

from __future__ import annotations

from collections import deque
from itertools import groupby
from operator import itemgetter

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..protocol.client.snapshot import Latency, ShownLane, Snapshot
from ..protocol.client.timeline import STREAMS
from ..protocol.printable import printable

STEP_COLOURS = ("#4a8fdc", "#dc8f1f", "#33a877", "#c96ba8")
"""A step has one colour in every lane; the fifth has the first again."""

STATE_COLOURS = {"ready": "green", "dead": "red", "hung": "red"}

LEVELS = "▁▂▃▄▅▆▇█"

STEPS_IN_VIEW = 4.4
"""Steps that the lanes show: four whole ones, with one colour each, and some of the next."""

LABELS = {"scheduler": "plan", "compute": "step", "detokenizer": "text"}

POINTS = 18
"""Points of the little curves."""

IDLE_S = 2.0
"""Without a step for this long the view says that nothing runs: a few pictures, so that it does not flicker."""


class View:
    """The screen, with the little curves that it remembers."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.curves: dict[str, deque[float]] = {}

    def of(self, snapshot: Snapshot) -> RenderableType:
        return Group(
            self.title(snapshot),
            Text(),
            self.numbers(snapshot),
            Text(),
            Lanes(snapshot),
            in_words(snapshot),
            Text(),
            Tables(snapshot),
        )

    def title(self, snapshot: Snapshot) -> RenderableType:
        state, colour = ("ready", "green") if snapshot.ready else ("recovering", "yellow")
        if snapshot.draining:
            state, colour = "draining", "yellow"
        row = Table.grid(expand=True)
        row.add_column(no_wrap=True, overflow="ellipsis")
        row.add_column(justify="right", no_wrap=True)
        row.add_row(
            Text.assemble(("slipstream", "bold"), f"  {printable(snapshot.model)}  ", (self.endpoint, "dim")),
            Text.assemble(("● ", colour), state),
        )
        return row

    def numbers(self, snapshot: Snapshot) -> RenderableType:
        step = "no steps" if snapshot.step_ms is None else f"{milliseconds(snapshot.step_ms)} ms a step"
        hits = (
            "no prompts yet"
            if snapshot.prefix_hit_rate is None
            else f"{snapshot.prefix_hit_rate:.1%} prefix hits"
        )
        row = Table.grid(expand=True, padding=(0, 1))
        for _ in range(4):
            row.add_column(ratio=1)
        row.add_row(
            self.number("device busy", snapshot.device_busy, f"{snapshot.device_busy:.1%}", step, 1.0),
            self.number(
                "tokens per second",
                snapshot.tokens_per_s,
                f"{snapshot.tokens_per_s:,.0f}",
                f"and {snapshot.prompt_tokens_per_s:,.0f} of prompts",
            ),
            self.number("running", snapshot.running, f"{snapshot.running}", f"{snapshot.waiting} waiting"),
            self.number("KV cache", snapshot.kv_usage, f"{snapshot.kv_usage:.1%}", hits, 1.0),
        )
        return row

    def number(
        self, name: str, value: float, shown: str, more: str, top: float | None = None
    ) -> RenderableType:
        curve = self.curves.setdefault(name, deque(maxlen=POINTS))
        curve.append(value)
        highest = max(*curve, 1e-9) if top is None else top
        levels = [LEVELS[min(7, int(point / highest * 7.99))] for point in curve]
        return Group(
            Text(name, style="dim"),
            Text.assemble((f"{shown:<8}", "bold"), ("".join(levels), STEP_COLOURS[0])),
            Text(more, style="dim"),
        )


class Lanes:
    """The newest steps of a snapshot: what each actor and each stream did, over the whole width."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        snapshot, names = self.snapshot, 13
        width = options.max_width - names - 1
        if snapshot.last_step < 0 or width < 20:
            return
        count = snapshot.last_step - snapshot.first_step + 1
        span = min(snapshot.lanes_span, snapshot.lanes_span / count * STEPS_IN_VIEW)
        begun = snapshot.lanes_span - span
        for lane in snapshot.lanes:
            yield Text.assemble(f"{lane.title:>{names - 1}} ", draw(lane, begun, span, width))


def draw(lane: ShownLane, begun: float, span: float, width: int) -> Text:
    """One lane: bars in the colours of their steps, each with its step's number in it, or behind it if that is free."""
    cells: list[tuple[str, str]] = [(" ", "on grey15" if lane.track in STREAMS else "")] * width
    bars: list[tuple[int, int, int]] = []
    for step, start, end in lane.spans:
        left = int((start - begun) / span * width)
        right = max(left + 1, int((end - begun) / span * width))
        if right > 0 and left < width:
            bars.append((step, max(left, 0), min(right, width)))
    for step, left, right in bars:
        colour = STEP_COLOURS[step % len(STEP_COLOURS)]
        cells[left:right] = [("█", colour)] * (right - left)
    for step, left, right in bars if lane.track in LABELS else ():
        label = f" {LABELS[lane.track]} {step} "
        if right - left >= len(label) + 2:
            start, style = (
                left + (right - left - len(label)) // 2,
                f"bold white on {STEP_COLOURS[step % len(STEP_COLOURS)]}",
            )
        elif right + len(label) <= width and all(
            char == " " for char, _ in cells[right : right + len(label)]
        ):
            start, style = right, "dim"
        else:
            continue
        cells[start : start + len(label)] = [(char, style) for char in label]
    runs = groupby(cells, key=itemgetter(1))
    return Text.assemble(*(("".join(char for char, _ in run), style) for style, run in runs))


def in_words(snapshot: Snapshot) -> RenderableType:
    """Describes the lanes in words."""
    if snapshot.lanes_age_s is None:
        return Text("Nothing has run lately.", style="dim")
    words: list[str] = []
    if snapshot.lanes_age_s > IDLE_S:
        words.append(f"Nothing to do; the last step ended {snapshot.lanes_age_s:.0f} s ago.")
    if snapshot.ahead is not None:
        words.append(
            f"{snapshot.ahead:.0%} of these steps were planned before the step before them had ended."
        )
    if snapshot.gap_us is not None and snapshot.lanes_age_s <= IDLE_S:
        gap = snapshot.gap_us
        waited = (
            "did not wait"
            if gap < 1
            else f"waited {gap:.0f} µs"
            if gap < 1000
            else f"waited {gap / 1000:.1f} ms"
        )
        words.append(f"Between two steps the device {waited} (median).")
    return Padding(Text(" ".join(words), style="dim"), (0, 0, 0, 13))


class Tables:
    """Actors, latencies and requests side by side, as far as the width allows."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        whole = options.max_width >= 106
        parts = [actors(self.snapshot, whole), latencies(self.snapshot)]
        if options.max_width >= 128:
            parts.append(requests(self.snapshot))
        row = Table.grid(padding=(0, 4 if whole else 2))
        for _ in parts:
            row.add_column()
        row.add_row(*parts)
        yield row


def actors(snapshot: Snapshot, whole: bool) -> RenderableType:
    table = plain_table()
    table.add_column("actor")
    table.add_column("state")
    for name in ("load", "queue", "restarts", "up", "pid") if whole else ("queue", "restarts"):
        table.add_column(name, justify="right")
    for actor in snapshot.actors:
        state = Text.assemble(("● ", STATE_COLOURS.get(actor.state, "yellow")), actor.state)
        row = [str(actor.mailbox_depth), str(actor.restarts)]
        if whole:
            load = snapshot.loads.get(actor.name)
            row.insert(0, "–" if load is None else f"{load:.0%}")
            row += ["–" if actor.state == "dead" else duration(actor.uptime_s), str(actor.pid)]
        table.add_row(actor.name, state, *row)
    return table


def latencies(snapshot: Snapshot) -> RenderableType:
    table = plain_table()
    table.add_column("latency, ms")
    for name in ("p50", "p90", "p99"):
        table.add_column(name, justify="right")
    for name, latency in (
        ("first token", snapshot.ttft),
        ("between tokens", snapshot.itl),
        ("whole answer", snapshot.e2el),
    ):
        table.add_row(name, *percentiles(latency))
    return table


def percentiles(latency: Latency | None) -> tuple[str, str, str]:
    if latency is None:
        return "–", "–", "–"
    return milliseconds(latency.p50), milliseconds(latency.p90), milliseconds(latency.p99)


def requests(snapshot: Snapshot) -> RenderableType:
    table = plain_table()
    table.add_column("requests")
    table.add_column("", justify="right")
    for name in ("accepted", "finished", "aborted", "failed", "refused", "preemptions"):
        table.add_row(name, f"{getattr(snapshot, name):,}")
    return table


def plain_table() -> Table:
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1), header_style="dim")


def milliseconds(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def duration(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
