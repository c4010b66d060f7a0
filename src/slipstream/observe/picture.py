"""A trace as a picture, in text or in SVG: who did what while which step was on the device."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from xml.sax.saxutils import escape

from ..protocol.client.timeline import LANES, STREAMS, Tracks, in_lane, lanes_of, utilization
from ..protocol.trace import Span


def host_ms(tracks: Tracks, steps: list[Span]) -> dict[str, float]:
    """The time that each actor works on one of these steps, at the median; sockets and codec are not in it."""
    wanted = {step for _, step, _, _ in steps}
    found: dict[str, float] = {}
    for lane in LANES:
        spent = dict.fromkeys(wanted, 0)
        for step, start, end in in_lane(tracks, lane):
            if step in wanted:
                spent[step] += end - start
        if lane.track not in STREAMS:
            found[lane.track] = statistics.median(spent.values()) * 1e-6
    return found


# --- in text ------------------------------------------------------------------------------------


TEXT_WIDTH = 96
"""Characters of a lane, so that it fits a page with its title."""


def as_text(tracks: Tracks, first: int, last: int) -> str:
    """The steps ``first`` to ``last`` of the compute stream, and what the others did in that time."""
    compute = [span for span in tracks["compute"] if first <= span[1] <= last]
    begun, ended = compute[0][2], compute[-1][3]
    begun -= (ended - begun) // 12
    scale = TEXT_WIDTH / (ended - begun)
    lines = []
    for lane in lanes_of(tracks):
        line = [" "] * TEXT_WIDTH
        for step, start, end in in_lane(tracks, lane, begun, ended):
            left = int((start - begun) * scale)
            right = min(TEXT_WIDTH, max(left + 1, int((end - begun) * scale)))
            draw(line, left, right, f"{lane.label} {step}" if lane.label else "")
        lines.append(f"{lane.title:>12} │{''.join(line)}│")
    span_ms = (ended - begun) * 1e-6
    lines.append(f"{'':>12} └{f' {span_ms:.1f} ms ':─^{TEXT_WIDTH}}┘")
    return "\n".join(lines)


def draw(line: list[str], left: int, right: int, label: str) -> None:
    """A bar from ``left`` to ``right``; its label inside if there is room, else behind it if that is free."""
    for place in range(left, right):
        line[place] = "█"
    inside = right - left >= len(label) + 4
    written = f" {label} "
    start = left + (right - left - len(written)) // 2 if inside else right
    free = inside or all(place == " " for place in line[right : start + len(written)])
    if label and free and start + len(written) <= len(line):
        line[start : start + len(written)] = list(written)


# --- in SVG -------------------------------------------------------------------------------------

WIDTH, LEFT, RIGHT = 1080, 190, 1060
"""The width of the whole picture, and where its lanes begin and end."""

HEADER, LANE, BAR, AXIS = 48, 30, 18, 34
"""Heights: above the lanes of a panel, of a lane, of a bar, and below the lanes."""

STEP_COLOURS = ("#2f6fb5", "#d98200", "#1f8a5b", "#b0508c")
"""A step has one colour in every lane; the fifth has the first again."""

STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f }
.title { font-size: 16px; font-weight: 600 }
.quiet { fill: #656d76; font-size: 11px }
.name { text-anchor: end }
.step { fill: #ffffff; text-anchor: middle; font-size: 12px; font-weight: 600 }
.paper { fill: #ffffff }
.stream { fill: #eef2f6 }
.line { stroke: #d0d7de }
.idle { fill: url(#hatch); stroke: #cf222e; stroke-width: .6 }
.hatch { stroke: #cf222e; stroke-width: 1.4 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .quiet { fill: #9198a1 } .step { fill: #ffffff }
  .paper { fill: #0d1117 } .stream { fill: #1b222c } .line { stroke: #3d444d }
  .idle { stroke: #ff7b72 } .hatch { stroke: #ff7b72 }
}
"""


@dataclass(frozen=True)
class Panel:
    """One mode: its title, its trace, and the part of it whose utilisation is shown."""

    title: str
    tracks: Tracks
    steps: list[Span]
    """Compute spans: the picture shows the stretch of them that is the most typical."""


def as_svg(panels: list[Panel], steps: int = 4) -> str:
    """Panels below each other on one scale of time, wide enough for ``steps`` steps of the slowest."""
    duration = max(period(panel.steps) for panel in panels) * steps
    heights = [HEADER + len(lanes_of(panel.tracks)) * LANE + AXIS for panel in panels]
    total = sum(heights) + 30
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {total}" width="{WIDTH}" height="{total}">',
        f"<style>{STYLE}</style>",
        '<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse"'
        ' patternTransform="rotate(45)"><line class="hatch" y2="6"/></pattern></defs>',
        f'<rect class="paper" width="{WIDTH}" height="{total}" rx="8"/>',
    ]
    for index, panel in enumerate(panels):
        drawn += panel_lines(panel, duration, sum(heights[:index]))
    legend = "One colour is one step. Hatched: the device waits for the host."
    drawn += [f'<text class="quiet" x="{LEFT}" y="{total - 16}">{legend}</text>', "</svg>", ""]
    return "\n".join(drawn)


def panel_lines(panel: Panel, duration: int, top: int) -> Iterator[str]:
    begun = typical(panel.steps, duration)
    ended = begun + duration
    scale = (RIGHT - LEFT) / duration
    first = next(step for _, step, start, _ in panel.steps if start >= begun)
    busy = f"device busy {utilization(panel.steps):.1%} of the time"

    def x(time: int) -> float:
        return LEFT + (time - begun) * scale

    yield f'<g transform="translate(0 {top})">'
    yield f'<text class="title" x="{LEFT}" y="30">{escape(panel.title)}</text>'
    yield f'<text class="title name" x="{RIGHT}" y="30">{busy}</text>'
    lanes = lanes_of(panel.tracks)
    for row, lane in enumerate(lanes):
        y = HEADER + row * LANE
        bar = y + (LANE - BAR) / 2
        yield f'<g class="lane" id="{lane.track}-{top}">'
        if lane.stream:
            yield f'<rect class="stream" x="8" y="{y}" width="{RIGHT - 8}" height="{LANE}"/>'
        yield f'<text class="name" x="{LEFT - 12}" y="{y + 14}">{lane.title}</text>'
        yield f'<text class="quiet name" x="{LEFT - 12}" y="{y + 26}">{escape(lane.does)}</text>'
        spans = list(in_lane(panel.tracks, lane, begun, ended))
        if lane.track.startswith("compute"):
            for start, end in gaps(spans, begun, ended):
                yield rectangle("idle", x(start), x(end), bar)
        following = [step for step, _, _ in spans[1:]]
        for (step, start, end), then in zip_longest(spans, following):
            colour = STEP_COLOURS[(step - first) % len(STEP_COLOURS)]
            name = f"N{step - first:+d}".replace("-", "−") if step != first else "N"
            yield rectangle("", x(start), x(end), bar, f' fill="{colour}"')
            if x(end) - x(start) > 40:
                yield f'<text class="step" x="{x((start + end) // 2):.1f}" y="{bar + 13}">{name}</text>'
            elif lane.named and step != then and x(end) < RIGHT - 30:
                yield f'<text class="quiet" x="{x(end) + 3:.1f}" y="{bar + 13}">{name}</text>'
        yield "</g>"
    yield from axis(duration, HEADER + len(lanes) * LANE)
    yield "</g>"


def rectangle(kind: str, left: float, right: float, top: float, more: str = "") -> str:
    """A bar that is wide enough to be seen."""
    named = f' class="{kind}"' if kind else ""
    width = max(right - left, 1.5)
    return f'<rect{named} x="{left:.1f}" y="{top}" width="{width:.1f}" height="{BAR}"{more}/>'


def axis(duration: int, y: int) -> Iterator[str]:
    """Ticks at round numbers of milliseconds."""
    each = next(ms for ms in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 1000) if duration * 1e-6 / ms <= 12)
    yield f'<line class="line" x1="{LEFT}" x2="{RIGHT}" y1="{y}" y2="{y}"/>'
    for tick in range(int(duration * 1e-6 / each) + 1):
        x = LEFT + tick * each * 1e6 / duration * (RIGHT - LEFT)
        yield f'<line class="line" x1="{x:.1f}" x2="{x:.1f}" y1="{y}" y2="{y + 5}"/>'
        yield f'<text class="quiet" text-anchor="middle" x="{x:.1f}" y="{y + 17}">{tick * each:g} ms</text>'


def period(steps: list[Span]) -> int:
    """Time from one step to the next, at the median."""
    starts = [start for _, _, start, _ in steps]
    between = sorted(later - earlier for earlier, later in pairwise(starts))
    return between[len(between) // 2] if between else steps[0][3] - steps[0][2]


def typical(steps: list[Span], duration: int) -> int:
    """The beginning of a stretch whose share of busy time is the closest to that of the whole."""
    whole = utilization(steps)
    lead = duration // 40

    def difference(begun: int) -> float:
        busy = sum(
            max(0, min(end, begun + duration) - max(start, begun))
            for _, _, start, end in steps
            if start < begun + duration and end > begun
        )
        return abs(busy / duration - whole)

    starts = [start - lead for _, _, start, _ in steps if start - lead + duration <= steps[-1][3]]
    middle = starts[len(starts) // 4 : len(starts) * 3 // 4 + 1][:200]
    return min(middle or [steps[0][2] - lead], key=difference)


def gaps(spans: list[tuple[int, int, int]], begun: int, ended: int) -> Iterator[tuple[int, int]]:
    """The times between ``begun`` and ``ended`` that no span covers."""
    free = begun
    for _, start, end in spans:
        if start > free:
            yield free, start
        free = max(free, end)
    if free < ended:
        yield free, ended
