"""What an actor did when: a bounded ring of spans, always on."""

from __future__ import annotations

from collections import deque

Span = tuple[str, int, int, int]
"""Name, step (-1: none), start and end in nanoseconds of the host's monotonic clock."""

RING = 8192


class Ring:
    """The newest spans of each track of one process; the oldest fall out."""

    def __init__(self) -> None:
        self.tracks: dict[str, deque[Span]] = {}

    def add(self, track: str, name: str, step: int, start_ns: int, end_ns: int) -> None:
        spans = self.tracks.get(track)
        if spans is None:
            spans = self.tracks[track] = deque(maxlen=RING)
        spans.append((name, step, start_ns, end_ns))

    def dump(self) -> dict[str, list[Span]]:
        return {track: list(spans) for track, spans in self.tracks.items()}
