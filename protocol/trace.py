"""A trace: who did what when, as records that cost next to nothing to keep and to send.

A *span* is a stretch of work of an actor or of a stream of the device, for one step of the batch; a *moment* is one in
the life of a request, such as its first token. In a message both are packed little-endian records, one after the
other and oldest first, whose names are numbers of the list ``names``. All times are nanoseconds of one
monotonic clock, that of the machine on which the service runs.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import msgspec

SPAN = struct.Struct("<qqqi")
"""``end_ns``, ``start_ns``, ``step`` (-1: none), ``name``: 28 bytes."""

MOMENT = struct.Struct("<qqi")
"""``at_ns``, ``request``, ``name``: 20 bytes."""


class Span(NamedTuple):
    """Work of an actor or of a stream of the device."""

    name: str
    step: int
    """-1: of no step."""
    start: int
    end: int


class Moment(NamedTuple):
    """A moment in the life of a request."""

    name: str
    request: int
    """The number that all actors know it by."""
    at: int


class Recorded(msgspec.Struct, kw_only=True):
    """The records in one actor's rings, or a slice of them: little-endian, one after the other, oldest first."""

    pid: int
    names: list[str]
    spans: dict[str, bytes] = {}
    """By track: records of 28 bytes, ``end_ns``, ``start_ns`` and ``step`` (-1: none) as int64, and as int32 the
    place of the name in ``names``."""
    marks: bytes = b""
    """Moments in the lives of requests: records of 20 bytes, ``at_ns`` and ``request`` as int64, and as int32 the
    place of the name."""
    reach: dict[str, int] = {}
    """For tracks that do not go back as far as was asked for: when the oldest span that they have ended."""

    def add(self, more: Recorded) -> None:
        """Another part of the same; its ``names`` go on where these end."""
        self.names = max(self.names, more.names, key=len)
        for track, records in more.spans.items():
            self.spans[track] = self.spans.get(track, b"") + records
        self.marks += more.marks
        self.reach |= more.reach
