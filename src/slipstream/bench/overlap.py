"""``slipstream bench overlap``: how busy an emulated device is kept, at each pipeline depth.

It is measured from outside, through a real client of a service of five processes; how busy the device was comes from
its own records. The client shares the machine with the service and takes in every token, so what it costs is in the
figures.
"""

from __future__ import annotations

import os
import statistics
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from ..arguments import add_json, count, depth_list, milliseconds, output
from ..observe.picture import Panel, Span, Tracks, as_svg, host_ms, utilization
from ..protocol.client.blocking import Client
from ..protocol.errors import SlipstreamError
from ..results import show_progress, write_json
from ..sidecar import Sidecar
from .emulated import PROMPT_TOKENS, WARM_UP_STEPS, emulated_service, fixed_length, long_model, short_prompts


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """The utilisation of the device at one pipeline depth.

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
            sidecar = emulated_service(folder, rows, step_ms, steps, depth)
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
    """One round of a service, after a short one that warms it up."""
    prompts = short_prompts(rows)
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
    """The round whose utilisation is the median, the lower of two."""
    utilizations = [one.result.device_utilization for one in measured]
    return measured[utilizations.index(statistics.median_low(utilizations))]


# --- the command --------------------------------------------------------------------------------


def declare(parser: ArgumentParser) -> None:
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
    parser.add_argument(
        "--svg", type=output, metavar="FILE", help="draw a typical stretch of each depth's timeline"
    )


def measure(found: Namespace) -> None:
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
