"""What the timeline costs: to add a span, to be asked for all of them, and what a running service feels of it.

    python examples/trace_bench.py [--step-ms 1]

An executor adds five spans in a step, more than any other actor: two turns and three streams. Asked for its
trace, it sends one slice between two turns; how long it takes to cut, to pack and to hand to the socket is the
longest that a step can be held up. At last a service on an emulated device runs while nobody asks and
while its whole trace is asked for five times a second.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise

import zmq
from slipstream.protocol.client.timeline import utilization
from slipstream.protocol.internal import Spans
from slipstream.runtime.links import Links
from slipstream.runtime.trace import RING, Ring

from slipstream import SamplingParams, Sidecar
from slipstream.bench.emulated import long_model

SPANS_PER_STEP = 5

ROWS, STEPS = 8, 4000
EVERY_S = 0.2


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


def micro(step_ms: float) -> None:
    ring = Ring()

    def spans(count: int) -> None:
        for step in range(count):
            ring.add("executor", "Sampled", step, step * 1000, step * 1000 + 500)

    def moments(count: int) -> None:
        for request in range(count):
            ring.add_moment("planned", request, request * 1e-6)

    span, moment = best_ns(spans), best_ns(moments)
    share = SPANS_PER_STEP * span * 1e-6 / step_ms
    print(f"add a span      {span:8.0f} ns;  {SPANS_PER_STEP} in a step of {step_ms:g} ms: {share:.2%} of it")
    print(f"add a moment    {moment:8.0f} ns;  one for each of five moments in the life of a request")
    for track in ("h2d", "compute", "d2h"):
        for step in range(RING):
            ring.add(track, "step", step, step * 1000, step * 1000 + 500)
    slices_us(ring)
    found = slices_us(ring)
    print(
        f"send all        {sum(found) * 1e-3:8.2f} ms;  in {len(found)} slices of {statistics.median(found):.0f} µs,"
        f" the longest {max(found):.0f} µs"
    )


def service(step_ms: float) -> None:
    params = SamplingParams(max_tokens=STEPS, ignore_eos=True, temperature=0.0)
    asked, ended = [0], threading.Event()

    def ask() -> None:
        with sidecar.client() as client:
            while not ended.wait(EVERY_S):
                client.trace()
                asked[0] += 1

    with ExitStack() as stack:
        folder = stack.enter_context(long_model(4 + STEPS))
        options = {"device": "emulated", "emulated_step_ms": step_ms, "max_num_seqs": ROWS}
        sidecar = stack.enter_context(Sidecar(folder, **options))
        with sidecar.client() as client:
            for title, others in (("nobody asks", []), ("asked", [threading.Thread(target=ask)])):
                first = client.stats().get("steps", 0.0)
                ended.clear()
                for thread in others:
                    thread.start()
                client.generate_many([[5, 6, 7, 8]] * ROWS, params)
                ended.set()
                for thread in others:
                    thread.join()
                steps = [span for span in client.trace().spans("compute") if span.step >= first][20:-20]
                gaps = sorted(later.start - span.end for span, later in pairwise(steps))
                times = f" {asked[0]} times" if others else ""
                median, p99 = (gaps[len(gaps) * share // 100] * 1e-3 for share in (50, 99))
                print(
                    f"{title + times:<16}{utilization(steps):8.2%} of the time the device is busy, over {len(steps)}"
                    f" steps; between two it waits {median:.0f} µs, at p99 {p99:.0f} µs"
                )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--step-ms", type=float, default=1.0, metavar="T", help="time of a step (default 1)")
    step_ms = parser.parse_args().step_ms
    micro(step_ms)
    service(step_ms)


if __name__ == "__main__":
    main()
