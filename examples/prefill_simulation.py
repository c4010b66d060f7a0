"""What the rule for prompts does to those who wait and to those who read, simulated with measured step times.

    python examples/prefill_simulation.py [--load NAME] [--requests N] [--json FILE|-]

The real scheduler plans, two steps ahead, for a device whose time is virtual: a step takes what its rows and its
prompt tokens, padded, were measured to take as a CUDA graph on one H200. Requests come at random (Poisson) or all at
once. TTFT counts from the arrival at the scheduler: HTTP, tokenizer and detokenizer come on top. Four rules are
compared: ``ours``; ``fill``, which takes whatever fits into ``max_num_batched_tokens``, first come, first served;
``early``, which is ours but plans each step when the one before it begins, and not shortly before that ends; and
``anywhere``, which is ours but cuts a prompt where the budget ends, whatever the step is padded to.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from slipstream.actors.executor.step.buckets import mixed_sizes, padded
from slipstream.actors.scheduler.config import SchedulerConfig
from slipstream.actors.scheduler.plan_timing import PlanTiming
from slipstream.actors.scheduler.prefill_budget import PrefillBudget
from slipstream.actors.scheduler.scheduler import Scheduler
from slipstream.protocol.internal import Capacity, Enqueue, Finished, Plan, Sampled, Tokens
from slipstream.protocol.sampling import SamplingParams

BLOCK_SIZE, LENGTH, ROWS = 16, 4096, 256
SIZES = mixed_sizes(8192)
"""Tokens that steps with prompts are padded to."""
MESSAGE_S = 0.0003
"""From the end of a step on the device until its result is with the scheduler, or from a plan to its launch."""


@dataclass(frozen=True)
class Device:
    """Milliseconds of a step: those of its decoding rows, and more for each prompt token or place that is padded."""

    rows: tuple[float, ...]
    rows_ms: tuple[float, ...]
    token_ms: float

    def step_s(self, rows: int, tokens: int) -> float:
        if tokens:
            tokens = padded(rows + tokens, SIZES) - rows
        return (float(np.interp(rows, self.rows, self.rows_ms)) + self.token_ms * tokens) * 1e-3


LARGE = Device((1, 32, 256), (4.6, 5.5, 11.0), 0.0193)
"""An 8B model: 14.3 ms with 8 rows and 512 tokens, which are padded to 576, 26.6 with 1,024, 42.5 with 2,040."""

SMALL = Device((1, 32, 256), (1.7, 2.0, 4.0), 0.0047)
"""A 1.5B model: 4.6 ms with 8 rows and 512 tokens, 10.5 with 2,040."""

TWO_GPUS = Device((1, 32, 256), (18.0, 19.5, 30.3), 0.115)
"""A 70B model on two H200s: steps as measured, and for each token an estimate, 140 GFLOP at 610 TFLOP/s a card."""


@dataclass(frozen=True)
class Load:
    """Requests of random lengths, each up to half above or below ``tokens_in`` and ``tokens_out``."""

    device: Device
    rate: float
    """Requests per second; 0: all at once."""
    tokens_in: int
    requests: int
    tokens_out: int = 128

    def arrivals(self, requests: int) -> list[tuple[float, int, int]]:
        """Time, prompt tokens and answer tokens of each request."""
        rng, now, found = random.Random(0), 0.0, []
        for _ in range(requests):
            now += rng.expovariate(self.rate) if self.rate else 0.0
            found.append((now, *(rng.randint(n // 2, n * 3 // 2) for n in (self.tokens_in, self.tokens_out))))
        return found


LOADS = {
    "8B, 10/s": Load(LARGE, 10, 1024, 2000),
    "8B, 25/s": Load(LARGE, 25, 1024, 2000),
    "8B, 500 at once": Load(LARGE, 0, 1024, 500),
    "70B, 2/s": Load(TWO_GPUS, 2, 1024, 400),
    "70B, 4/s": Load(TWO_GPUS, 4, 1024, 800),
    "70B, 256 at once": Load(TWO_GPUS, 0, 128, 256),
    "1.5B, 20/s": Load(SMALL, 20, 512, 2000),
    "1.5B, 60/s": Load(SMALL, 60, 512, 2000),
    "1.5B, 1500 at once": Load(SMALL, 0, 512, 1500),
}


class Fill(PrefillBudget):
    """Whatever fits."""

    def limit(self, budget: int, prompts: int, streams: int) -> int:
        return budget


class Early(PlanTiming):
    """A step is planned when the one before it begins."""

    def due(self, now: float, expected_s: float) -> float:
        return now


@dataclass(frozen=True)
class Rule:
    """How much prompt a step takes, and when it is planned."""

    budget: Callable[[], PrefillBudget] = PrefillBudget
    timing: Callable[[], PlanTiming] = PlanTiming
    sizes: tuple[int, ...] = SIZES
    """As ``Capacity.step_sizes``."""


RULES = {
    "early": Rule(timing=Early),
    "anywhere": Rule(sizes=()),
    "fill": Rule(budget=Fill),
    "ours": Rule(),
}


class Simulation:
    """One scheduler, one device, and the times at which tokens came."""

    def __init__(self, load: Load, rule: Rule, budget: int, requests: int) -> None:
        self.load, self.arrivals = load, load.arrivals(requests)
        self.scheduler = Scheduler(SchedulerConfig(ROWS, budget, LENGTH, 2, ()))
        self.scheduler.planner.prefill_budget = rule.budget()
        self.scheduler.timing = rule.timing()
        self.events: list[tuple[float, int, object]] = []
        """Time, number, and a message for the scheduler; None: it is woken."""
        self.count = 0
        self.prompts = [0] * ROWS
        """Prompt tokens of each sequence slot that have not run."""
        self.decoding = [False] * ROWS
        self.device_free = 0.0
        self.wakes_at: float | None = None
        self.times: list[list[float]] = [[] for _ in self.arrivals]
        steps = [(tokens, int(load.device.step_s(1, tokens) * 1e9)) for tokens in (16, 2047)]
        self.at(
            0.0,
            Capacity(
                1 + ROWS * LENGTH // BLOCK_SIZE, BLOCK_SIZE, step_times=steps, step_sizes=list(rule.sizes)
            ),
        )
        for number, (when, tokens_in, tokens_out) in enumerate(self.arrivals):
            params = SamplingParams(max_tokens=tokens_out, seed=number, ignore_eos=True)
            prompt = np.full(tokens_in, number + 1, np.int32)
            self.at(when, Enqueue(number, prompt.tobytes(), params, b""))

    def at(self, when: float, message: object) -> None:
        self.count += 1
        heapq.heappush(self.events, (when, self.count, message))

    def run(self) -> dict[str, float]:
        while self.events:
            now, _, message = heapq.heappop(self.events)
            scheduler = self.scheduler
            sends = scheduler.wake(now) if message is None else scheduler.receive("executor", message, now)
            if scheduler.wake_at is not None and scheduler.wake_at != self.wakes_at:
                self.wakes_at = max(now, scheduler.wake_at)
                self.at(self.wakes_at, None)
            for _, sent in sends:
                if isinstance(sent, Plan):
                    self.launch(sent, now)
                elif isinstance(sent, Tokens):
                    for request in np.frombuffer(sent.requests, np.int64).tolist():
                        self.times[request].append(now)
                    assert not any(isinstance(end, Finished) and end.message for end in sent.finished)
        return self.result()

    def launch(self, plan: Plan, now: float) -> None:
        """The step runs once the device is free; its rows all sample the same token."""
        for slot in np.frombuffer(plan.leaves, np.int32).tolist():
            self.decoding[slot] = False
        for join in plan.joins:
            self.prompts[join.slot] = len(join.tokens) // 4 - join.start
        chunks = np.frombuffer(plan.chunks, np.int32).reshape(-1, 2)
        rows, tokens = sum(self.decoding), int(chunks[:, 1].sum())
        for slot, count in chunks.tolist():
            self.prompts[slot] -= count
            self.decoding[slot] = not self.prompts[slot]
        begun = max(now + MESSAGE_S, self.device_free)
        took = self.load.device.step_s(rows, tokens)
        self.device_free = ended = begun + took
        sampled = np.ones(sum(self.decoding), np.int32).tobytes()
        self.at(ended + MESSAGE_S, Sampled(plan.step, sampled, int(begun * 1e9), int(ended * 1e9)))

    def result(self) -> dict[str, float]:
        """Times in ms, over all requests or all gaps; the first and last tenth of what comes at random is left out."""
        count = len(self.arrivals)
        part = slice(count // 10, count - count // 10) if self.load.rate else slice(None)
        times, arrivals = self.times[part], self.arrivals[part]
        ttft = [got[0] - when for got, (when, _, _) in zip(times, arrivals, strict=True)]
        tpot = [(got[-1] - got[0]) / (len(got) - 1) for got in times]
        itl = np.concatenate([np.diff(got) for got in times])
        values = {
            f"{name}_p{q}": round(float(np.percentile(series, q)) * 1e3, 1)
            for name, series, q in (
                ("ttft", ttft, 50),
                ("ttft", ttft, 99),
                ("tpot", tpot, 50),
                ("tpot", tpot, 99),
                ("itl", itl, 50),
                ("itl", itl, 99),
            )
        }
        tokens = sum(map(len, self.times))
        return values | {"tokens_per_s": round(tokens / (max(map(max, self.times)) - self.arrivals[0][0]))}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--load", choices=LOADS, help="one of them only")
    parser.add_argument("--requests", type=int, metavar="N", help="how many, instead of those of the load")
    parser.add_argument("--budget", type=int, nargs="+", default=[2048], metavar="N")
    parser.add_argument("--json", metavar="FILE", help="- for standard output")
    options = parser.parse_args()
    rows = [
        {"load": name, "rule": rule, "max_num_batched_tokens": budget}
        | Simulation(load, made, budget, options.requests or load.requests).run()
        for name, load in LOADS.items()
        if options.load in (None, name)
        for budget in options.budget
        for rule, made in RULES.items()
    ]
    if options.json:
        text = json.dumps(rows, indent=2)
        print(text) if options.json == "-" else Path(options.json).write_text(text + "\n")
        return
    for number, row in enumerate(rows):
        if not number:
            print("  ".join(f"{key:>{WIDTH.get(key, 8)}}" for key in row))
        print("  ".join(f"{value:>{WIDTH.get(key, 8)}}" for key, value in row.items()))


WIDTH = {"load": 18, "max_num_batched_tokens": 22, "tokens_per_s": 12}


if __name__ == "__main__":
    main()
