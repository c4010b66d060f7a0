"""What a race is, said twice more in ways that share nothing with the checker; and programs to ask about.

``by_reachability``: neither operation reaches the other in the graph of direct orders.
``by_execution``: an abstract machine with queues runs the program in every possible way; two operations
race when in some run the first is done and the second is not, and in some run it is the other way round.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from recording import HOST, Location, Operation, Recording

Pair = tuple[int, int, tuple[str, int]]
"""First and second operation by number, and the place."""

STREAMS = ("h2d", "compute", "d2h")


def random_program(rng: random.Random, most: int) -> Recording:
    """Up to ``most`` operations of a host and 2 or 3 streams on 3 events and 1 to 4 places."""
    recording = Recording()
    pick = rng.random
    streams, places = 2 + int(pick() * 2), 1 + int(pick() * 4)
    life = [0] * places
    for number in range(3 + int(pick() * (most - 2))):
        choice = pick()
        event, place = -1, int(pick() * places)
        here = [Location("buffer", place, life[place] - (pick() < 0.1))]  # now and then an old owner
        other = int(pick() * places)
        there = [Location("buffer", other, life[other])]
        reads: list[Location] = []
        writes: list[Location] = []
        stream = STREAMS[int(pick() * streams)]
        if choice < 0.2:
            kind, event = "record", int(pick() * 3)
        elif choice < 0.38:
            kind, event = "wait", int(pick() * 3)
        elif choice < 0.5:
            kind, stream, event = "synchronize", HOST, int(pick() * 3)
        elif choice < 0.7:
            kind, reads, writes = "copy", here, there
        elif choice < 0.8:
            kind, reads = "launch", here
        elif choice < 0.86:
            kind, writes = "launch", here
        elif choice < 0.91:
            kind, stream, reads = "read", HOST, here
        elif choice < 0.96:
            kind, stream, writes = "write", HOST, here
        else:
            kind, stream = ("free" if choice < 0.98 else "allocate"), HOST
            life[place] += kind == "allocate"
            writes = [Location("buffer", place, life[place])]
        recording.operations.append(Operation(number, stream, kind, reads, writes, event))
    return recording


def conflicts(operations: list[Operation]) -> Iterator[Pair]:
    """All pairs of two streams that touch one place, and one of them writes it."""
    accesses: list[tuple[int, str, tuple[str, int], bool]] = []
    for operation in operations:
        written = {location.place for location in operation.writes}
        accesses += [(operation.number, operation.stream, place, True) for place in written]
        read = {location.place for location in operation.reads} - written
        accesses += [(operation.number, operation.stream, place, False) for place in read]
    for index, (second, stream, place, writes) in enumerate(accesses):
        for first, other, theirs, wrote in accesses[:index]:
            if place == theirs and stream != other and (writes or wrote):
                yield first, second, place


def by_reachability(operations: list[Operation]) -> set[Pair]:
    before: list[int] = []
    """The operations from which each can be reached, as bits."""
    last: dict[str, int] = {}
    records: dict[int, int] = {}
    for operation in operations:
        orders = [last.get(operation.stream), last.get(HOST)]
        if operation.kind in ("wait", "synchronize"):
            orders.append(records.get(operation.event))
        reached = 0
        for earlier in orders:
            if earlier is not None:
                reached |= before[earlier] | 1 << earlier
        before.append(reached)
        last[operation.stream] = operation.number
        if operation.kind == "record":
            records[operation.event] = operation.number
    return {pair for pair in conflicts(operations) if not before[pair[1]] >> pair[0] & 1}


def by_execution(operations: list[Operation]) -> set[Pair]:
    """Every state that the machine can reach: how far the host is, and what each stream has done.

    The host queues and goes on; it stops only at ``synchronize`` until the event's record is done. A
    stream does its queue in order, and stops at ``wait`` until the record that the event had when the
    wait was queued is done.
    """
    queues: dict[str, list[int]] = {stream: [] for stream in STREAMS}
    needs: dict[int, int] = {}
    records: dict[int, int] = {}
    for operation in operations:
        if operation.kind in ("wait", "synchronize") and operation.event in records:
            needs[operation.number] = records[operation.event]
        if operation.kind == "record":
            records[operation.event] = operation.number
        if operation.stream != HOST:
            queues[operation.stream].append(operation.number)

    everything = (1 << len(operations)) - 1
    while_open = [0] * len(operations)
    """For each operation, which others are done in some state where it is not."""
    todo: list[tuple[int, int]] = [(0, 0)]
    """States: how many operations the host is past, and what is done, as bits."""
    seen = set(todo)
    while todo:
        passed, done = todo.pop()
        left = everything & ~done
        while left:
            bit = left & -left
            left ^= bit
            while_open[bit.bit_length() - 1] |= done
        following: list[tuple[int, int]] = []
        if passed < len(operations):
            if operations[passed].stream != HOST:
                following.append((passed + 1, done))
            elif passed not in needs or done >> needs[passed] & 1:
                following.append((passed + 1, done | 1 << passed))
        for queue in queues.values():
            head = next((number for number in queue if not done >> number & 1), None)
            if head is not None and head < passed and (head not in needs or done >> needs[head] & 1):
                following.append((passed, done | 1 << head))
        for state in following:
            if state not in seen:
                seen.add(state)
                todo.append(state)
    return {
        (first, second, place)
        for first, second, place in conflicts(operations)
        if while_open[first] >> second & 1 and while_open[second] >> first & 1
    }


def used_after_loss(operations: list[Operation]) -> set[Pair]:
    """Uses of a place by an owner from whom a free or a hand-out took it."""
    found: set[Pair] = set()
    for use in operations:
        if use.kind in ("allocate", "free"):
            continue
        for location in {*use.reads, *use.writes}:
            changes = [
                (o.number, o.kind, life.generation)
                for o in operations[: use.number]
                if o.kind in ("allocate", "free")
                for life in o.writes
                if life.place == location.place
            ]
            if changes:
                number, kind, generation = changes[-1]
                if kind == "free" or generation != location.generation:
                    found.add((number, use.number, location.place))
    return found
