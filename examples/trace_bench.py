"""What the timeline costs: to add a span, and to be asked for all of them.

    python examples/trace_bench.py [--step-ms 1]

An executor adds five spans in a step, more than any other actor: two turns and three streams. Asked for its
trace, it sends one slice between two turns; how long it takes to cut, to pack and to hand to the socket is the
longest that a step can be held up.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import zmq
from slipstream.protocol.messages import Spans
from slipstream.runtime.links import Links
from slipstream.runtime.trace import RING, Ring

SPANS_PER_STEP = 5


def best_ns(work: Callable[[int], None], count: int = 20_000, rounds: int = 20) -> float:
    """Nanoseconds of CPU time for one, in the round that nothing disturbed."""
    found: list[float] = []
    for _ in range(rounds):
        begun = time.thread_time_ns()
        work(count)
        found.append((time.thread_time_ns() - begun) / count)
    return min(found)


def slices_us(ring: Ring) -> list[float]:
    """Microseconds of CPU time for each slice of a whole trace, from the ring to the socket."""
    links = Links("executor", 1)
    links.peer_up("gateway", 1)
    context = zmq.Context()
    out, mailbox = context.socket(zmq.PUSH), context.socket(zmq.PULL)
    mailbox.bind("inproc://gateway")
    out.connect("inproc://gateway")
    found: list[float] = []
    begun = time.thread_time_ns()
    for part in ring.dump(0):
        out.send(links.seal("gateway", Spans("executor", part, 0)))
        found.append((time.thread_time_ns() - begun) * 1e-3)
        mailbox.recv()
        begun = time.thread_time_ns()
    context.destroy(linger=0)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--step-ms", type=float, default=1.0, metavar="T", help="time of a step (default 1)")
    step_ms = parser.parse_args().step_ms
    ring = Ring()

    def spans(count: int) -> None:
        for step in range(count):
            ring.add("executor", "Sampled", step, step * 1000, step * 1000 + 500)

    def marks(count: int) -> None:
        for request in range(count):
            ring.mark("planned", request, request * 1e-6)

    span, mark = best_ns(spans), best_ns(marks)
    share = SPANS_PER_STEP * span * 1e-6 / step_ms
    print(f"add a span      {span:8.0f} ns;  {SPANS_PER_STEP} in a step of {step_ms:g} ms: {share:.2%} of it")
    print(f"add a mark      {mark:8.0f} ns;  one for each of five moments in the life of a request")
    for track in ("h2d", "compute", "d2h"):
        for step in range(RING):
            ring.add(track, "step", step, step * 1000, step * 1000 + 500)
    slices_us(ring)
    found = slices_us(ring)
    print(
        f"send all        {sum(found) * 1e-3:8.2f} ms;  in {len(found)} slices of {statistics.median(found):.0f} µs,"
        f" the longest {max(found):.0f} µs"
    )


if __name__ == "__main__":
    main()
