"""``slipstream bench throughput``: how fast a service of its own answers random prompts that all come at once.

The client shares the machine with the service and takes in every token, so what it costs is in the figures.
"""

from __future__ import annotations

import random
import time
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from typing import Any

from ..arguments import add_json, count
from ..observe.picture import utilization
from ..options.serve import ServeOptions
from ..protocol.errors import InvalidRequest
from ..results import show_progress, write_json
from ..runtime.options.command_line import add_arguments
from ..runtime.options.sources import resolve
from ..runtime.options.table import table
from ..sidecar import Sidecar
from .emulated import WARM_UP_STEPS, fixed_length
from .latency import Arrivals

SEED = 0
"""The seed of the random prompts."""


def throughput(
    model: str | None, num_prompts: int, input_len: int, output_len: int, **options: Any
) -> dict[str, float]:
    """Random prompts, all sent at once, to a service of its own; ``options`` are those of ``serve``."""
    options.setdefault("max_queued_requests", max(1024, num_prompts))
    show_progress("starting a service")
    with Sidecar(model, **options) as sidecar, sidecar.client() as client:
        assert isinstance(sidecar.options, ServeOptions)
        rng = random.Random(SEED)
        limits = client.welcome.limits
        if input_len + output_len > limits.max_model_len:
            raise InvalidRequest(
                f"prompts of {input_len} tokens with answers of {output_len} are longer than the model's"
                f" {limits.max_model_len}; lower --input-len or --output-len"
            )
        highest = limits.vocab_size - 1

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


def declare(parser: ArgumentParser) -> None:
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


def measure(found: Namespace) -> None:
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
