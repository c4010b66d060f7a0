"""The race checker: what in a recording no event orders.

**A race** is two accesses to one place, at least one of them a write, neither of which happens before
the other. Places are buffers, sequence slots and KV blocks, each taken whole. *Happens before* is the
smallest transitive order in which

- the operations of one stream, and those of the host, are in the order of the recording;
- an operation of a stream comes after all that the host did before it queued it;
- what a stream runs after ``wait(event)`` comes after whatever the latest ``record(event)`` before that
  call stands behind; an event never recorded orders nothing (these are CUDA's rules);
- what the host does after it saw an event passed comes after what its latest record stands behind.

**Reuse** needs no rule of its own. To hand out a sequence slot or a KV block, to allocate and to free
are writes by the host. So a block that is handed out before the last step of its old owner is known to
be over races with that step, and a graph's input that is written while an earlier replay may still read
it races with that launch. The one thing that order alone cannot show is the use of a place by an owner
that has lost it: such a use comes after the loss, and is wrong for that. It is told by the generation.

One vector clock per stream and one for the host, as in FastTrack (Flanagan and Freund, PLDI 2009): an
access is an *epoch*, its stream and its number, and a clock that has reached the number is ordered after
it. The accesses of one stream are ordered among themselves, so a new access is compared with the last
of each other stream, and with earlier ones only as long as they race too. Hence every racing pair is
reported, and the time is linear in the recording and in the report.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from recording import HOST, Operation, Place, Recording


@dataclass(frozen=True, slots=True)
class Race:
    """Two operations on one place that nothing orders, or whose order is wrong."""

    place: Place
    name: str
    what: str
    first: Operation
    second: Operation
    known: int
    """The last operation of the first one's stream that happens before the second."""

    def __str__(self) -> str:
        told = f"{self.name}: {self.what}: {self.first}, then {self.second}"
        if self.known >= self.first.number:
            return told
        seen = f"operation {self.known}" if self.known >= 0 else "nothing"
        return (
            f"{told}; missing: {self.second.stream} waits for no event recorded on {self.first.stream}"
            f" after operation {self.first.number}, it knows of {seen} there"
        )


def races(recording: Recording) -> Iterator[Race]:
    """Every race of the recording, in the order of its second operation."""
    operations = recording.operations
    streams = {HOST: 0}
    for operation in operations:
        streams.setdefault(operation.stream, len(streams))
    size = len(streams)
    clocks = [[-1] * size for _ in range(size)]
    events: dict[int, list[int]] = {}
    accesses: dict[Place, list[tuple[list[Operation], list[Operation]]]] = {}
    """The reads and the writes of each stream."""
    lives: dict[Place, tuple[int | None, Operation]] = {}
    """The generation that may use each place, none once it is freed; and the operation that said so."""

    for operation in operations:
        stream = streams[operation.stream]
        clock = clocks[stream]
        if stream:
            join(clock, clocks[0])
        kind = operation.kind
        if (kind == "wait" or kind == "synchronize") and operation.event in events:
            join(clock, events[operation.event])
        clock[stream] = operation.number
        if kind == "record":
            events[operation.event] = clock.copy()
        if not operation.reads and not operation.writes:
            continue

        if kind == "allocate" or kind == "free":
            for location in operation.writes:
                lives[location[:2]] = (location.generation if kind == "allocate" else None, operation)
        else:
            for location in dict.fromkeys(operation.reads + operation.writes):
                life = lives.get(location[:2])
                if life is not None and life[0] != location.generation:
                    place, since = location[:2], life[1]
                    what = "used by an owner that lost it"
                    yield Race(place, recording.name(place), what, since, operation, clock[0])

        touched = {location[:2]: False for location in operation.reads}
        touched |= {location[:2]: True for location in operation.writes}
        for place, writing in touched.items():
            by_stream = accesses.get(place)
            if by_stream is None:
                by_stream = accesses[place] = [([], []) for _ in range(size)]
            for other, (reads, writes) in enumerate(by_stream):
                if other == stream:
                    continue
                known = clock[other]
                for history in (writes, reads) if writing else (writes,):
                    for first in unordered(history, known):
                        what = explain(first, operation, place)
                        yield Race(place, recording.name(place), what, first, operation, known)
            by_stream[stream][writing].append(operation)


def join(clock: list[int], other: list[int]) -> None:
    """Whatever happened before ``other`` happened before what comes now."""
    for stream, number in enumerate(other):
        if number > clock[stream]:
            clock[stream] = number


def unordered(history: list[Operation], known: int) -> list[Operation]:
    """The operations of a stream after ``known``, latest first; most often none."""
    found: list[Operation] = []
    for operation in reversed(history):
        if operation.number <= known:
            break
        found.append(operation)
    return found


def explain(first: Operation, second: Operation, place: Place) -> str:
    """The race in the words of what is done."""
    if second.kind == "allocate":
        return "handed out before its last use is over"
    if second.kind == "free":
        return "freed before its last use is over"
    if not any(location.place == place for location in second.writes):
        return "read before it is written"
    if any(location.place == place for location in first.writes):
        return "written by two in no order"
    if first.kind == "launch":
        return "overwritten while a launch may still read it"
    return "overwritten before it is read"
