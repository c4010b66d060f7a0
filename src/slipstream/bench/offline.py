"""``slipstream bench``: how busy the device is kept, and how fast a whole service is.

Everything is measured from outside, through a real client of a service of five processes; how busy the
device was comes from the device's own records. The client shares the machine with the service and takes
in every token, so what it costs is in the figures.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import tempfile
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..observe.timeline import Panel, Span, Tracks, as_svg, host_ms, utilization
from ..options import ServeOptions
from ..protocol.client.blocking import Client
from ..protocol.errors import SlipstreamError
from ..protocol.messages import Delta
from ..protocol.sampling import SamplingParams
from ..runtime.config import add_arguments, resolve, table
from ..service import BUNDLED_MODEL
from ..sidecar import Sidecar

PROMPT_TOKENS = 4
"""Length of the prompts of ``overlap``: all of them fit in one step."""

WARM_UP_STEPS = 32

SEED = 0
"""Of the random prompts of ``throughput``."""

# --- overlap ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """How busy the device was at one pipeline depth.

    The timed steps are those in which every row decodes: they begin after the step in which the last
    request joined and end with the last step of the first. ``device_busy_s`` and ``device_utilization``
    are of them; ``wall_s`` and ``output_throughput`` are the client's, from its first request to its last
    token. A trace keeps 16,384 steps; of a longer run the newest are timed.
    """

    depth: int
    rows: int
    step_ms: float
    steps: int
    wall_s: float
    device_busy_s: float
    device_utilization: float
    output_throughput: float
    wasted_row_ratio: float


@dataclass(frozen=True)
class Measured:
    """A result and the trace that it is from."""

    result: Overlap
    tracks: Tracks
    timed: list[Span]
    cpu_ms: dict[str, float]
    """CPU time per step, of each actor's process and of the client's."""


def overlap(rows: int, step_ms: float, steps: int, depths: Sequence[int], rounds: int = 1) -> list[Measured]:
    """Run ``rows`` requests of ``steps`` tokens on an emulated device, at each depth.

    Of several rounds, in which the depths take turns, the one with the median utilisation counts.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(long_model(PROMPT_TOKENS + steps))
        services: list[tuple[Sidecar, Client]] = []
        for depth in depths:
            show_progress(f"starting a service of depth {depth}")
            sidecar = Sidecar(
                folder,
                device="emulated",
                emulated_step_ms=step_ms,
                max_num_seqs=rows,
                max_num_batched_tokens=max(2048, PROMPT_TOKENS * rows),
                max_queued_requests=max(1024, rows),
                max_model_len=PROMPT_TOKENS + max(steps, WARM_UP_STEPS),
                pipeline_depth=depth,
            )
            services.append((stack.enter_context(sidecar), stack.enter_context(sidecar.client())))
        found: list[list[Measured]] = [[] for _ in depths]
        for round_ in range(rounds):
            for depth, service, measured in zip(depths, services, found, strict=True):
                show_progress(
                    f"depth {depth}, round {round_ + 1} of {rounds}: {steps} steps of {step_ms:g} ms"
                )
                measured.append(run_overlap(*service, rows, step_ms, steps, depth))
        show_progress("")
    return [median_of(measured) for measured in found]


def run_overlap(
    sidecar: Sidecar, client: Client, rows: int, step_ms: float, steps: int, depth: int
) -> Measured:
    prompts = [[1 + (row + token) % 100 for token in range(PROMPT_TOKENS)] for row in range(rows)]
    client.generate_many(prompts, fixed_length(WARM_UP_STEPS))
    last_before = client.trace().tracks["compute"][-1].step
    before = client.stats()
    pids = {name: pid for name, pid in sidecar.pids.items() if name != "tokenizer"} | {"client": os.getpid()}
    cpu_before = cpu_seconds(pids)

    begun = time.perf_counter()
    client.generate_many(prompts, fixed_length(steps))
    wall_s = time.perf_counter() - begun

    cpu = cpu_seconds(pids)
    after, tracks = client.stats(), client.trace().tracks
    timed = full_steps(tracks["compute"], last_before + 1, steps)
    wasted, scheduled = (after[name] - before[name] for name in ("wasted_rows", "scheduled_rows"))
    result = Overlap(
        depth=depth,
        rows=rows,
        step_ms=step_ms,
        steps=steps,
        wall_s=round(wall_s, 4),
        device_busy_s=round(sum(end - start for _, _, start, end in timed) * 1e-9, 6),
        device_utilization=round(utilization(timed), 6),
        output_throughput=round(rows * steps / wall_s, 1),
        wasted_row_ratio=round(wasted / scheduled, 6),
    )
    cpu_ms = {name: (cpu[name] - cpu_before[name]) * 1e3 / steps for name in pids}
    return Measured(result, tracks, timed, cpu_ms)


def cpu_seconds(pids: dict[str, int]) -> dict[str, float]:
    """CPU time that each process has used, all its threads together."""
    found: dict[str, float] = {}
    for name, pid in pids.items():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        user, system = fields[11:13]
        found[name] = (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return found


def full_steps(compute: list[Span], first: int, steps: int) -> list[Span]:
    """The steps in which every row decodes, of a run that began with step ``first``.

    A request runs in ``steps`` steps without a pause. So the one that joined last did so ``steps`` before
    the end, and the one that joined first leaves ``steps`` after the beginning.
    """
    last_joined = compute[-1][1] - steps + 1
    timed = [span for span in compute if last_joined < span[1] < first + steps]
    if not timed:
        raise SlipstreamError(
            f"the rows joined over {last_joined - first + 1} steps, so in no step did all of them decode:"
            f" steps={steps} is too few"
        )
    return timed


def median_of(measured: list[Measured]) -> Measured:
    utilizations = [one.result.device_utilization for one in measured]
    return measured[utilizations.index(statistics.median_low(utilizations))]


def fixed_length(tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, ignore_eos=True, temperature=0.0)


@contextmanager
def long_model(length: int) -> Iterator[Path]:
    """The bundled model's tokenizer with room for ``length`` tokens: an emulated device reads no weights."""
    with tempfile.TemporaryDirectory(prefix="slipstream-bench-") as name:
        folder = Path(name)
        for file in BUNDLED_MODEL.glob("*token*"):
            (folder / file.name).symlink_to(file)
        config = json.loads((BUNDLED_MODEL / "config.json").read_text())
        config["max_position_embeddings"] = max(length, config["max_position_embeddings"])
        (folder / "config.json").write_text(json.dumps(config))
        yield folder


# --- throughput ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Of one kind, over all requests."""

    mean: float
    p50: float
    p99: float

    @classmethod
    def of(cls, seconds: list[float]) -> Latency:
        ordered = sorted(seconds) or [0.0]
        return cls(
            mean=1e3 * statistics.fmean(ordered),
            p50=1e3 * percentile(ordered, 0.50),
            p99=1e3 * percentile(ordered, 0.99),
        )


def percentile(ordered: list[float], share: float) -> float:
    """Between the two nearest values, in proportion."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


class Arrivals:
    """When the deltas of each request came; every request was sent at ``begun``."""

    def __init__(self, requests: int) -> None:
        self.times: list[list[float]] = [[] for _ in range(requests)]
        self.tokens = [0] * requests
        self.begun = time.perf_counter()

    def add(self, number: int, delta: Delta) -> None:
        if delta.token_ids:
            self.times[number].append(time.perf_counter())
            self.tokens[number] += len(delta.token_ids)

    def latencies(self) -> dict[str, Latency]:
        """The field's four: to the first token, per output token after it, between two arrivals, to the end."""
        ttft = [times[0] - self.begun for times in self.times]
        e2el = [times[-1] - self.begun for times in self.times]
        tpot = [
            (times[-1] - times[0]) / (tokens - 1)
            for times, tokens in zip(self.times, self.tokens, strict=True)
            if tokens > 1
        ]
        itl = [later - earlier for times in self.times for earlier, later in pairwise(times)]
        kinds = {"ttft": ttft, "tpot": tpot, "itl": itl, "e2el": e2el}
        return {name: Latency.of(times) for name, times in kinds.items()}


def throughput(
    model: str | None, num_prompts: int, input_len: int, output_len: int, **options: Any
) -> dict[str, float]:
    """Random prompts, all sent at once, to a service of its own; ``options`` are those of ``serve``."""
    options.setdefault("max_queued_requests", max(1024, num_prompts))
    show_progress("starting a service")
    with Sidecar(model, **options) as sidecar, sidecar.client() as client:
        rng = random.Random(SEED)
        highest = client.welcome.limits.vocab_size - 1

        def random_prompts(count: int) -> list[list[int]]:
            return [[rng.randint(1, highest) for _ in range(input_len)] for _ in range(count)]

        show_progress("warming up")
        warm_up = random_prompts(min(num_prompts, sidecar.options.max_num_seqs))
        client.generate_many(warm_up, fixed_length(min(output_len, WARM_UP_STEPS)))
        last_before = client.trace().tracks["compute"][-1].step

        show_progress(f"{num_prompts} prompts of {input_len} tokens, {output_len} new ones for each")
        prompts = random_prompts(num_prompts)
        arrivals = Arrivals(num_prompts)
        client.generate_many(prompts, fixed_length(output_len), on_delta=arrivals.add)
        seconds = time.perf_counter() - arrivals.begun
        steps = [span for span in client.trace().tracks["compute"] if span[1] > last_before]
    show_progress("")
    output_tokens = sum(arrivals.tokens)
    rates = {
        "request_throughput": num_prompts / seconds,
        "output_throughput": output_tokens / seconds,
        "total_token_throughput": (num_prompts * input_len + output_tokens) / seconds,
    }
    latencies = {
        f"{statistic}_{name}_ms": value
        for name, latency in arrivals.latencies().items()
        for statistic, value in asdict(latency).items()
    }
    busy = {"device_utilization": utilization(steps)}
    return {name: round(value, 6) for name, value in (rates | latencies | busy).items()}


# --- the command --------------------------------------------------------------------------------


def add_overlap(parser: ArgumentParser) -> None:
    parser.description = "How busy an emulated device is kept, at each pipeline depth."
    parser.add_argument("--rows", type=count, required=True, metavar="N", help="requests that run at once")
    parser.add_argument(
        "--step-ms", type=milliseconds, required=True, metavar="T", help="time of one step on the device"
    )
    parser.add_argument("--steps", type=count, required=True, metavar="N", help="tokens of each request")
    parser.add_argument(
        "--depth", type=depth_list, default=[1, 2], metavar="D,…", help="pipeline depths (default 1,2)"
    )
    parser.add_argument(
        "--rounds",
        type=count,
        default=1,
        metavar="N",
        help="rounds, of which the median is shown (default 1)",
    )
    add_json(parser)
    parser.add_argument("--svg", metavar="FILE", help="draw a typical stretch of each depth's timeline")


def run_overlap_command(found: Namespace) -> None:
    measured = overlap(found.rows, found.step_ms, found.steps, found.depth, found.rounds)
    results = [one.result for one in measured]
    if found.svg is not None:
        Path(found.svg).write_text(as_svg([panel_of(one) for one in measured]), encoding="utf-8")
    if found.json is not None:
        write_json(found.json, [asdict(result) for result in results])
        return
    print(f"{found.rows} rows, {found.step_ms:g} ms a step, {found.steps} steps, emulated device\n")
    print(f"{'depth':>5}  {'device busy':>11}  {'tokens/s':>10}  {'wall s':>8}  {'wasted rows':>11}")
    for result in results:
        print(
            f"{result.depth:>5}  {result.device_utilization:>11.2%}  {result.output_throughput:>10,.0f}"
            f"  {result.wall_s:>8.2f}  {result.wasted_row_ratio:>11.2%}"
        )
    names = list(measured[0].cpu_ms)
    print(f"\n{'ms per step':>28}" + "".join(f"{name:>13}" for name in names))
    for one in measured:
        working = host_ms(one.tracks, one.timed)
        for title, ms in (("in the actor, median", working), ("CPU of its process", one.cpu_ms)):
            row = "".join(f"{ms[name]:>13.3f}" if name in ms else f"{'-':>13}" for name in names)
            print(f"{one.result.depth:>5}  {title:>21}{row}")


def panel_of(measured: Measured) -> Panel:
    depth = measured.result.depth
    return Panel(
        f"depth {depth}: {'synchronous' if depth == 1 else 'asynchronous'} batching",
        measured.tracks,
        measured.timed,
    )


def add_throughput(parser: ArgumentParser) -> None:
    parser.description = "How fast a service of its own answers random prompts that all come at once."
    parser.usage = (
        "slipstream bench throughput [MODEL] --num-prompts N --input-len N --output-len N"
        " [--json FILE|-] [options of serve]"
    )
    for flag, meaning in (
        ("--num-prompts", "prompts, all sent at once"),
        ("--input-len", "tokens of each prompt"),
        ("--output-len", "tokens of each answer"),
    ):
        parser.add_argument(flag, type=count, required=True, metavar="N", help=meaning)
    add_json(parser)
    add_arguments(parser, ServeOptions)


def run_throughput_command(found: Namespace) -> None:
    given = {name: value for name in table(ServeOptions) if (value := getattr(found, name)) is not None}
    resolve(ServeOptions, arguments=given)  # complains of an option as it is spelt here
    model = given.pop("model", None)
    result = throughput(model, found.num_prompts, found.input_len, found.output_len, **given)
    if found.json is not None:
        write_json(found.json, result)
        return
    print(
        f"{result['request_throughput']:.2f} requests/s, {result['output_throughput']:,.0f} output tokens/s,"
        f" {result['total_token_throughput']:,.0f} tokens/s in all,"
        f" device busy {result['device_utilization']:.2%}\n"
    )
    print(f"{'ms':>6}  {'mean':>10}  {'p50':>10}  {'p99':>10}")
    for name in ("ttft", "tpot", "itl", "e2el"):
        row = "  ".join(f"{result[f'{statistic}_{name}_ms']:>10.3f}" for statistic in ("mean", "p50", "p99"))
        print(f"{name.upper():>6}  {row}")


COMMANDS = {
    "overlap": (add_overlap, run_overlap_command),
    "throughput": (add_throughput, run_throughput_command),
}


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def milliseconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 60_000:
        raise ArgumentTypeError(f"{text!r} is not a number of milliseconds above 0 and at most 60,000")
    return value


def depth_list(text: str) -> list[int]:
    return [count(part) for part in text.split(",")]


def add_json(parser: ArgumentParser) -> None:
    parser.add_argument("--json", metavar="FILE|-", help="write the result as JSON; -: to stdout")


def write_json(target: str, result: Any) -> None:
    text = json.dumps(result, indent=2) + "\n"
    if target == "-":
        sys.stdout.write(text)
    else:
        Path(target).write_text(text)


def show_progress(text: str) -> None:
    """What is being done, on a terminal, in one line that is written over."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
