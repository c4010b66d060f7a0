"""``slipstream bench serve``: how a running server answers a load that comes as users do.

The result has vLLM's keys. Arrivals follow a gamma distribution: with burstiness 1 they are those of a Poisson
process, below 1 they come in bursts, above 1 more evenly.
"""

from __future__ import annotations

import asyncio
import math
import random
import statistics
import sys
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Coroutine
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ..arguments import above_0, add_json, count, ratio
from ..protocol.errors import InvalidRequest, SlipstreamError
from ..results import show_progress, write_json
from .latency import percentile
from .targets import HttpTarget, Record, Target, ZmqTarget

TOKEN_IDS = (1, 255)
"""Range of the random prompts' token ids: every vocabulary has these."""

LATENCIES = ("ttft", "tpot", "itl", "e2el")

BAR = 24
"""Characters of the bar of progress: with the figures behind it, a line of 80 characters."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """The load that is sent."""

    num_prompts: int
    input_len: int
    output_len: int
    range_ratio: float = 0.0
    """By how much the lengths spread: at 0.5 they are even between half and one and a half times the given ones."""
    request_rate: float = math.inf
    """Requests per second on average; infinite: all at once."""
    burstiness: float = 1.0
    max_concurrency: int | None = None
    percentiles: tuple[float, ...] = (50.0, 99.0)
    goodput: dict[str, float] | None = None
    """By kind of latency: most milliseconds of a request that counts as good."""
    seed: int = 0


def arrivals(load: Load) -> list[float]:
    """When each request is sent, in seconds from the beginning."""
    if math.isinf(load.request_rate):
        return [0.0] * load.num_prompts
    rng = random.Random(load.seed)
    scale = 1.0 / (load.request_rate * load.burstiness)
    times = [0.0]
    for _ in range(load.num_prompts - 1):
        times.append(times[-1] + rng.gammavariate(load.burstiness, scale))
    return times


def lengths(mean: int, load: Load, rng: random.Random) -> list[int]:
    """The number of tokens of each request, drawn evenly from the range around ``mean``, at least one."""
    low, high = math.floor(mean * (1 - load.range_ratio)), math.ceil(mean * (1 + load.range_ratio))
    return [max(1, rng.randint(low, high)) for _ in range(load.num_prompts)]


async def run_load(target: Target, load: Load) -> dict[str, Any]:
    """Warm up with one request, send the load, and return the figures."""
    await target.open()
    try:
        rng = random.Random(load.seed)
        ids = range(TOKEN_IDS[0], TOKEN_IDS[1] + 1)
        prompts = [rng.choices(ids, k=length) for length in lengths(load.input_len, load, rng)]
        outputs = lengths(load.output_len, load, rng)
        warm_up = Record(sent_at=0.0)
        await target.ask(rng.choices(ids, k=load.input_len), load.output_len, warm_up)
        if warm_up.error is not None:
            raise SlipstreamError(f"the first request, to warm up, failed: {warm_up.error}")
        busy_before = await target.busy_s()
        records, seconds = await send(target, load, prompts, outputs)
        busy = await target.busy_s()
    finally:
        await target.close()
    utilization = None if None in (busy, busy_before) else ((busy or 0.0) - (busy_before or 0.0)) / seconds
    return figures(load, records, seconds) | {
        "model_id": target.model,
        "device_utilization": None if utilization is None else round(utilization, 6),
    }


async def send(
    target: Target, load: Load, prompts: list[list[int]], outputs: list[int]
) -> tuple[list[Record], float]:
    """Every request at its time, or as soon after it as ``max_concurrency`` allows."""
    slots = asyncio.Semaphore(load.max_concurrency or load.num_prompts)
    records: list[Record] = []
    begun = time.perf_counter()

    async def one(prompt: list[int], tokens: int, at: float) -> None:
        await asyncio.sleep(max(0.0, begun + at - time.perf_counter()))
        async with slots:
            record = Record(sent_at=time.perf_counter(), prompt_tokens=len(prompt))
            await target.ask(prompt, tokens, record)
        records.append(record)
        done = len(records)
        full = BAR * done // load.num_prompts
        show_progress(f"{'█' * full}{'·' * (BAR - full)} {done} of {load.num_prompts}")

    await asyncio.gather(*map(one, prompts, outputs, arrivals(load)))
    show_progress("")
    return records, time.perf_counter() - begun


def latencies_of(record: Record) -> dict[str, float]:
    """The latencies of one request that was answered, in milliseconds; ``itl`` is of many tokens and not here."""
    first, last = record.arrivals[0], record.arrivals[-1]
    found = {"ttft": first - record.sent_at, "e2el": last - record.sent_at}
    if record.tokens > 1:
        found["tpot"] = (last - first) / (record.tokens - 1)
    return {name: 1e3 * value for name, value in found.items()}


def figures(load: Load, records: list[Record], seconds: float) -> dict[str, Any]:
    answered = [record for record in records if record.error is None and record.arrivals]
    errors = sorted({record.error or "no answer" for record in records if record not in answered})
    tokens = sum(record.tokens for record in answered)
    prompt_tokens = sum(record.prompt_tokens for record in answered)
    each = [latencies_of(record) for record in answered]
    found: dict[str, Any] = {
        "num_prompts": load.num_prompts,
        "request_rate": "inf" if math.isinf(load.request_rate) else load.request_rate,
        "burstiness": load.burstiness,
        "max_concurrency": load.max_concurrency,
        "duration": seconds,
        "completed": len(answered),
        "failed": len(records) - len(answered),
        "errors": errors[:10],
        "total_input_tokens": prompt_tokens,
        "total_output_tokens": tokens,
        "request_throughput": len(answered) / seconds,
        "output_throughput": tokens / seconds,
        "total_token_throughput": (prompt_tokens + tokens) / seconds,
    }
    if load.goodput is not None:
        good = [one for one in each if all(one.get(k, 0.0) <= most for k, most in load.goodput.items())]
        found["request_goodput"] = len(good) / seconds
    values = {name: [one[name] for one in each if name in one] for name in ("ttft", "tpot", "e2el")}
    values["itl"] = [1e3 * (b - a) for record in answered for a, b in pairwise(record.arrivals)]
    for name in LATENCIES:
        ordered = sorted(values[name]) or [0.0]
        found[f"mean_{name}_ms"] = statistics.fmean(ordered)
        found[f"median_{name}_ms"] = statistics.median(ordered)
        found[f"std_{name}_ms"] = statistics.pstdev(ordered)
        for share in load.percentiles:
            found[f"p{share:g}_{name}_ms"] = percentile(ordered, share / 100)
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in found.items()}


# --- the command --------------------------------------------------------------------------------


def declare(parser: ArgumentParser) -> None:
    parser.description = "How a running server answers a load, over ZeroMQ or HTTP."
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--endpoint", metavar="E", help="of a service, over ZeroMQ")
    place.add_argument("--base-url", metavar="URL", help="of any server of OpenAI's API: http://HOST:PORT")
    parser.add_argument("--model", metavar="M", help="name of the model, over HTTP (default: the first one)")
    parser.add_argument("--api-key", metavar="KEY", help="over HTTP")
    parser.add_argument("--num-prompts", type=count, default=100, metavar="N", help="requests (default 100)")
    parser.add_argument(
        "--input-len", type=count, default=128, metavar="N", help="tokens of each prompt (128)"
    )
    parser.add_argument(
        "--output-len", type=count, default=128, metavar="N", help="tokens of each answer (128)"
    )
    parser.add_argument(
        "--random-range-ratio",
        type=ratio,
        default=0.0,
        metavar="R",
        help="spread of both lengths: at 0.5 from half to one and a half times (default 0: all the same)",
    )
    parser.add_argument(
        "--request-rate",
        type=above_0,
        default=math.inf,
        metavar="R",
        help="per second (default inf: all at once)",
    )
    parser.add_argument(
        "--burstiness", type=above_0, default=1.0, metavar="B", help="1: Poisson, less: bursts (default 1)"
    )
    parser.add_argument("--max-concurrency", type=count, metavar="N", help="most requests at once")
    parser.add_argument(
        "--metric-percentiles", type=shares, default=(50.0, 99.0), metavar="P,…", help="(default 50,99)"
    )
    parser.add_argument(
        "--goodput",
        nargs="+",
        metavar="KIND:MS",
        help="what a good request keeps, as ttft:200 tpot:50 e2el:5000",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of prompts and arrivals (default 0)"
    )
    add_json(parser)


def measure(found: Namespace) -> None:
    load = Load(
        num_prompts=found.num_prompts,
        input_len=found.input_len,
        output_len=found.output_len,
        range_ratio=found.random_range_ratio,
        request_rate=found.request_rate,
        burstiness=found.burstiness,
        max_concurrency=found.max_concurrency,
        percentiles=found.metric_percentiles,
        goodput=None if found.goodput is None else goals(found.goodput),
        seed=found.seed,
    )
    target: Target
    if found.endpoint is not None:
        if found.model is not None or found.api_key is not None:
            raise InvalidRequest("--model and --api-key go with --base-url")
        target = ZmqTarget(found.endpoint)
    else:
        target = HttpTarget(found.base_url, found.model, found.api_key)
    result = run(run_load(target, load))
    if found.json is not None:
        write_json(found.json, result)
    else:
        print_result(load, result)
    if result["failed"]:
        print(f"{result['failed']} requests failed: {'; '.join(result['errors'])}", file=sys.stderr)


def run(work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """Run it in uvloop where that is installed: the client should cost little beside the server."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    return uvloop.run(work)


def print_result(load: Load, result: dict[str, Any]) -> None:
    print(
        f"{result['completed']} of {load.num_prompts} requests in {result['duration']:.2f} s:"
        f" {result['request_throughput']:.2f} requests/s, {result['output_throughput']:,.0f} output tokens/s,"
        f" {result['total_token_throughput']:,.0f} tokens/s in all"
    )
    if result["device_utilization"] is not None:
        print(f"device busy {result['device_utilization']:.2%}")
    if "request_goodput" in result:
        print(f"{result['request_goodput']:.2f} good requests/s")
    names = ["mean", "median", *(f"p{share:g}" for share in load.percentiles)]
    print(f"\n{'ms':>6}" + "".join(f"{name:>12}" for name in names))
    for kind in LATENCIES:
        print(f"{kind.upper():>6}" + "".join(f"{result[f'{name}_{kind}_ms']:>12.3f}" for name in names))


def shares(text: str) -> tuple[float, ...]:
    found = tuple(above_0(part) for part in text.split(","))
    if max(found) > 100:
        raise ArgumentTypeError(f"{text!r} has a percentile above 100")
    return found


def goals(texts: list[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for text in texts:
        kind, _, most = text.partition(":")
        if kind not in ("ttft", "tpot", "e2el"):
            raise InvalidRequest(
                f"--goodput {text}: {kind!r} is none of ttft, tpot, e2el; give ttft:200 for example"
            )
        try:
            found[kind] = above_0(most)
        except ArgumentTypeError as error:
            raise InvalidRequest(f"--goodput {text}: {error}") from None
    return found
