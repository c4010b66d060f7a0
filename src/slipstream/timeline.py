"""A trace as a picture in text: who did what while which step was on the device."""

from __future__ import annotations

Tracks = dict[str, list[tuple[str, int, int, int]]]
"""Spans by track: name, step, start and end in nanoseconds."""

LANES = (
    ("scheduler", "scheduler", "Plan", "plan"),
    ("h2d", "H2D", "step", ""),
    ("compute", "compute", "step", "step"),
    ("d2h", "D2H", "step", ""),
    ("detokenizer", "detokenizer", "Texts", "text"),
)
"""Track, title, name of the spans to show, and what to write into a span before the step's number."""


def utilization(tracks: Tracks) -> float:
    """Share of the time, from the start of the first step to the end of the last, that the device computed."""
    spans = tracks.get("compute", [])
    if not spans:
        return 0.0
    busy = sum(end - start for _, _, start, end in spans)
    return busy / (spans[-1][3] - spans[0][2])


def as_text(tracks: Tracks, first: int, last: int, width: int = 96) -> str:
    """The steps ``first`` to ``last`` of the compute stream, and what the others did in that time."""
    compute = [span for span in tracks["compute"] if first <= span[1] <= last]
    begun, ended = compute[0][2], compute[-1][3]
    begun -= (ended - begun) // 12
    scale = width / (ended - begun)
    lines = []
    for track, title, name, label in LANES:
        lane = [" "] * width
        for span_name, step, start, end in tracks.get(track, []):
            if span_name != name or end < begun or start > ended:
                continue
            left = max(0, int((start - begun) * scale))
            right = min(width, max(left + 1, int((end - begun) * scale)))
            draw(lane, left, right, f"{label} {step}" if label else "")
        lines.append(f"{title:>12} │{''.join(lane)}│")
    span_ms = (ended - begun) * 1e-6
    lines.append(f"{'':>12} └{f' {span_ms:.1f} ms ':─^{width}}┘")
    return "\n".join(lines)


def draw(lane: list[str], left: int, right: int, label: str) -> None:
    """A bar from ``left`` to ``right``; its label inside if there is room, else behind it if that is free."""
    for place in range(left, right):
        lane[place] = "█"
    inside = right - left >= len(label) + 4
    written = f" {label} "
    start = left + (right - left - len(written)) // 2 if inside else right
    free = inside or all(place == " " for place in lane[right : start + len(written)])
    if label and free and start + len(written) <= len(lane):
        lane[start : start + len(written)] = list(written)
