"""``slipstream bench grammar``: what requests with a grammar cost those without one in the same batch.

On an emulated device, whose step takes the same time whatever is in it. Two runs of as many rows: in the
first nobody has a grammar, in the second every other row has. The figures are of the rows without one.
"""

from __future__ import annotations

import statistics
from argparse import ArgumentParser, Namespace
from dataclasses import asdict, dataclass
from itertools import pairwise

from ..arguments import add_json, count, milliseconds
from ..protocol.client.blocking import Client
from ..protocol.sampling import SamplingParams
from ..results import show_progress, write_json
from .emulated import PROMPT_TOKENS, WARM_UP_STEPS, emulated_service, fixed_length, long_model, short_prompts
from .latency import Arrivals, percentile

ENDLESS = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 20},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    "minItems": 100_000,
}
"""A schema that no run is long enough to satisfy: its rows stay to the end."""


@dataclass(frozen=True)
class TokenGaps:
    """Time from one token to the next of the rows without a grammar, in ms."""

    mean_itl_ms: float
    p50_itl_ms: float
    p99_itl_ms: float


@dataclass(frozen=True)
class GrammarCost:
    """The results of two runs of ``rows`` requests of ``steps`` tokens, with steps of ``step_ms`` milliseconds."""

    rows: int
    step_ms: float
    steps: int
    without: TokenGaps
    """Nobody has a grammar."""
    beside: TokenGaps
    """Every other row has one."""
    slowed: float
    """The mean of ``beside`` over that of ``without``, less 1."""


def grammar_cost(rows: int, step_ms: float, steps: int, rounds: int) -> GrammarCost:
    """The runs take turns; each figure is the median of its rounds."""
    with long_model(PROMPT_TOKENS + steps) as folder:
        show_progress("starting a service")
        with (
            emulated_service(folder, rows, step_ms, steps) as sidecar,
            sidecar.client() as client,
        ):
            run(client, mixed(rows, WARM_UP_STEPS))
            without: list[TokenGaps] = []
            beside: list[TokenGaps] = []
            for round_ in range(rounds):
                show_progress(f"round {round_ + 1} of {rounds}: {steps} steps of {step_ms:g} ms")
                without.append(run(client, [fixed_length(steps)] * rows))
                beside.append(run(client, mixed(rows, steps)))
    show_progress("")
    alone, mixed_in = median_of(without), median_of(beside)
    slowed = round(mixed_in.mean_itl_ms / alone.mean_itl_ms - 1, 4)
    return GrammarCost(rows, step_ms, steps, alone, mixed_in, slowed)


def mixed(rows: int, steps: int) -> list[SamplingParams]:
    """Parameters of ``rows`` requests of ``steps`` tokens, every other one with a grammar."""
    bound = SamplingParams(max_tokens=steps, temperature=0.0, json_schema=ENDLESS)
    return [bound if row % 2 else fixed_length(steps) for row in range(rows)]


def run(client: Client, mixture: list[SamplingParams]) -> TokenGaps:
    """Answer a request for each of ``mixture`` at once, and measure those that have no grammar."""
    prompts = short_prompts(len(mixture))
    arrivals = Arrivals(len(prompts))
    client.generate_many(prompts, mixture, on_delta=arrivals.add)
    gaps: list[float] = []
    for params, times in zip(mixture, arrivals.times, strict=True):
        if params.grammar is None:
            gaps += [1e3 * (later - earlier) for earlier, later in pairwise(times)]
    gaps.sort()
    mean, median, last = statistics.fmean(gaps), percentile(gaps, 0.5), percentile(gaps, 0.99)
    return TokenGaps(round(mean, 4), round(median, 4), round(last, 4))


def median_of(rounds: list[TokenGaps]) -> TokenGaps:
    """The round whose mean is the median."""
    return sorted(rounds, key=lambda gaps: gaps.mean_itl_ms)[len(rounds) // 2]


def declare(parser: ArgumentParser) -> None:
    parser.description = "How much rows with a grammar slow down the other rows of their batch."
    parser.add_argument("--rows", type=count, required=True, metavar="N", help="requests that run at once")
    parser.add_argument("--step-ms", type=milliseconds, required=True, metavar="T", help="time of one step")
    parser.add_argument("--steps", type=count, required=True, metavar="N", help="tokens of each request")
    parser.add_argument(
        "--rounds",
        type=count,
        default=3,
        metavar="N",
        help="rounds, of which the median is shown (default 3)",
    )
    add_json(parser)


def measure(found: Namespace) -> None:
    result = grammar_cost(found.rows, found.step_ms, found.steps, found.rounds)
    if found.json is not None:
        write_json(found.json, asdict(result))
        return
    print(f"{result.rows} rows, {result.step_ms:g} ms a step, {result.steps} steps, emulated device")
    print("ms from token to token of the rows without a grammar:\n")
    print(f"{'':>28}  {'mean':>8}  {'p50':>8}  {'p99':>8}")
    for title, gaps in (
        ("no row has one", result.without),
        ("every other row has one", result.beside),
    ):
        row = "  ".join(f"{value:>8.3f}" for value in (gaps.mean_itl_ms, gaps.p50_itl_ms, gaps.p99_itl_ms))
        print(f"{title:>28}  {row}")
    print(f"\nslowed by {result.slowed:.2%}")
