"""Records what an actor does and when: bounded rings of packed records, always on.

To add a record is to write a few bytes into memory that is there already. To send what is there is to
copy those bytes, a slice at a time, so that an actor that is asked for its trace goes on with its work in
between: ``examples/trace_bench.py`` measures both.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

from ..protocol.trace import MOMENT, SPAN, Recorded

RING = 16_384
"""Records that a ring holds; then the oldest are overwritten. At two records a millisecond eight seconds, in 440 kB."""

SLICE = 4096
"""Most records of one slice: about 110 kB."""


class Records:
    """A ring of packed records that begin with the time they are ordered by."""

    def __init__(self, layout: struct.Struct) -> None:
        self.layout = layout
        self.size = layout.size
        self.pack = layout.pack_into
        self.memory = bytearray(RING * layout.size)
        self.written = 0
        """How many there have ever been; the newest is number ``written - 1``."""

    def add(self, time: int, *rest: int) -> None:
        self.pack(self.memory, self.written % RING * self.size, time, *rest)
        self.written += 1

    def first_since(self, time: int) -> int:
        """The number of the oldest record at or after ``time``."""
        low, high = max(0, self.written - RING), self.written
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self.time_of(middle) < time else (low, middle)
        return low

    def time_of(self, number: int) -> int:
        return self.layout.unpack_from(self.memory, number % RING * self.size)[0]

    def oldest_if_full(self) -> int | None:
        """The time of the oldest record, if some before it have fallen out."""
        return self.time_of(self.written - RING) if self.written > RING else None

    def slices(self, since: int) -> Iterator[bytes]:
        """The records at or after ``since`` that are there now, oldest first.

        What is overwritten while the slices are taken is left out.
        """
        size = self.size
        at, end = self.first_since(since), self.written
        while (at := max(at, self.written - RING)) < end:
            place = at % RING
            count = min(SLICE, end - at, RING - place)
            yield bytes(memoryview(self.memory)[place * size : (place + count) * size])
            at += count


class Ring:
    """The newest spans of each track of one process, and the newest moments of requests."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.tracks: dict[str, Records] = {}
        self.moments: Records | None = None

    def add(self, track: str, name: str, step: int, start_ns: int, end_ns: int) -> None:
        """A span, when it has ended; ``step`` is -1 for one that is of no step."""
        records = self.tracks.get(track)
        if records is None:
            records = self.tracks[track] = Records(SPAN)
        records.add(end_ns, start_ns, step, self.number(name))

    def add_moment(self, name: str, request: int, now: float) -> None:
        """A moment in the life of a request, in seconds of the host's clock."""
        if self.moments is None:
            self.moments = Records(MOMENT)
        self.moments.add(round(now * 1e9), request, self.number(name))

    def number(self, name: str) -> int:
        number = self.names.get(name)
        if number is None:
            number = self.names[name] = len(self.names)
        return number

    def dump(self, since_ns: int) -> Iterator[Recorded]:
        """The records since then, a slice at a time."""
        for track, records in list(self.tracks.items()):
            for part in records.slices(since_ns):
                yield self.recorded({track: part})
        if self.moments is not None:
            for part in self.moments.slices(since_ns):
                yield self.recorded(marks=part)

    def outline(self, since_ns: int) -> Recorded:
        """Every track, without a span, and which of them do not go back that far."""
        outline = self.recorded(dict.fromkeys(self.tracks, b""))
        for track, records in self.tracks.items():
            oldest = records.oldest_if_full()
            if oldest is not None and oldest > since_ns:
                outline.reach[track] = oldest
        return outline

    def recorded(self, spans: dict[str, bytes] | None = None, marks: bytes = b"") -> Recorded:
        return Recorded(pid=os.getpid(), names=list(self.names), spans=spans or {}, marks=marks)
