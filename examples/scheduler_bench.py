"""What the scheduler alone costs: its time per step, and its memory over very many requests.

    python examples/scheduler_bench.py [--steps N] [--requests N] [--json FILE|-]

The real scheduler plans for a device that answers at once, two plans ahead. A step's time is that of all that
the scheduler does between two results: it takes the result, ends what ends, plans the next step and, where
there is a crowd, takes in the requests that have come. ``decode`` is 256 sequences that decode and nothing
else. ``crowd`` keeps 256 running and 10,000 waiting, of 20 clients; prompts of 64 to 512 tokens, half of them
with a prefix that is in the prefix cache; each end is an arrival. ``memory`` is the growth of the process
from a tenth of the requests to the last of them.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import numpy as np
from slipstream.actors.scheduler.config import SchedulerConfig
from slipstream.actors.scheduler.scheduler import Scheduler
from slipstream.protocol.internal import Capacity, Enqueue, Sampled
from slipstream.protocol.sampling import SamplingParams

ROWS, WAITING, CLIENTS = 256, 10_000, 20
BLOCK_SIZE, LENGTH = 16, 2048


class Bench:
    """A scheduler whose steps are answered as fast as it plans them."""

    def __init__(self, rows: int, blocks: int) -> None:
        self.scheduler = Scheduler(SchedulerConfig(rows, 2048, LENGTH, 2, (0,)))
        self.rng = random.Random(0)
        self.asked = 0
        self.now = 1.0
        self.tokens = np.arange(1, rows + 1, dtype=np.int32)
        prefixes = [self.some_tokens(256) for _ in range(32)]
        self.prompts = [
            np.concatenate([self.rng.choice(prefixes), self.some_tokens(self.rng.randrange(16, 256))])
            if number % 2
            else self.some_tokens(self.rng.randrange(64, 512))
            for number in range(2000)
        ]
        self.scheduler.receive("executor", Capacity(blocks, BLOCK_SIZE), self.now)

    def some_tokens(self, count: int) -> np.ndarray:
        return np.array([self.rng.randrange(1, 30_000) for _ in range(count)], np.int32)

    def arrival(self, tokens: int, prompt: np.ndarray | None = None) -> Enqueue:
        if prompt is None:
            prompt = self.rng.choice(self.prompts)
        params = SamplingParams(max_tokens=tokens, seed=self.asked, ignore_eos=True)
        self.asked += 1
        return Enqueue(self.asked, prompt.tobytes(), params, b"", self.asked % CLIENTS)

    def ask(self, message: Enqueue) -> None:
        self.scheduler.receive("tokenizer", message, self.now)

    def result(self) -> Sampled:
        step, rows, *_ = self.scheduler.outstanding[0]
        self.now += 0.01
        return Sampled(step, self.tokens[: len(rows)].tobytes(), step * 10**7, step * 10**7 + 10**7)

    def step(self) -> None:
        self.scheduler.receive("executor", self.result(), self.now)


def decode(steps: int) -> list[float]:
    """Seconds of each step of a batch that only decodes."""
    bench = Bench(ROWS, ROWS * LENGTH // BLOCK_SIZE + 1)
    for _ in range(ROWS):
        bench.ask(bench.arrival(LENGTH, bench.some_tokens(16)))
    while bench.scheduler.holdings.waiting or bench.scheduler.holdings.prefilling:
        bench.step()
    times = []
    for _ in range(min(steps, LENGTH - 200)):
        result = bench.result()
        begun = time.perf_counter()
        bench.scheduler.receive("executor", result, bench.now)
        times.append(time.perf_counter() - begun)
    return times


def crowd(steps: int) -> list[float]:
    """Seconds of each step with arrivals, ends, prefix lookups and a long queue."""
    bench = Bench(ROWS, 20_000)

    def fill() -> float:
        spent = 0.0
        while len(bench.scheduler.sequences) < ROWS + WAITING:
            arrival = bench.arrival(bench.rng.randrange(50, 200))
            begun = time.perf_counter()
            bench.ask(arrival)
            spent += time.perf_counter() - begun
        return spent

    fill()
    for _ in range(500):
        bench.step()
        fill()
    times = []
    for _ in range(steps):
        result = bench.result()
        begun = time.perf_counter()
        bench.scheduler.receive("executor", result, bench.now)
        times.append(time.perf_counter() - begun + fill())
    assert len(bench.scheduler.holdings.waiting) > WAITING - ROWS
    return times


def memory(requests: int) -> dict[str, float]:
    """Resident memory after a tenth of the requests, and after all of them."""
    bench = Bench(ROWS, 5000)
    seen = {}
    while bench.asked < requests:
        while len(bench.scheduler.sequences) < 2 * ROWS:
            bench.ask(bench.arrival(2, bench.some_tokens(20)))
        bench.step()
        if "first_tenth_mb" not in seen and bench.asked >= requests // 10:
            seen["first_tenth_mb"] = resident_mb()
    return seen | {"all_mb": resident_mb()}


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def summary(times: list[float]) -> dict[str, float]:
    milliseconds = np.array(times) * 1e3
    return {
        "steps": len(times),
        **{f"{name}_ms": round(float(np.percentile(milliseconds, q)), 4) for name, q in PERCENTILES},
        "max_ms": round(float(milliseconds.max()), 4),
    }


PERCENTILES = (("p50", 50), ("p99", 99), ("p99.9", 99.9))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20_000, metavar="N")
    parser.add_argument("--requests", type=int, default=1_000_000, metavar="N", help="0: no test of memory")
    parser.add_argument("--json", metavar="FILE", help="- for standard output")
    options = parser.parse_args()
    results: dict[str, object] = {
        "decode": summary(decode(options.steps)),
        "crowd": summary(crowd(options.steps)),
    }
    if options.requests:
        results["memory"] = {"requests": options.requests, **memory(options.requests)}
    if options.json:
        text = json.dumps(results, indent=2)
        print(text) if options.json == "-" else Path(options.json).write_text(text + "\n")
        return
    for name, values in results.items():
        print(f"{name:8s}", ", ".join(f"{key} {value}" for key, value in values.items()))  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
