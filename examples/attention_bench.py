"""How near the attention backends come to the limits of a GPU.

    python examples/attention_bench.py [--json FILE] [--backends triton torch]

A decode step reads every key and value of its rows once, so its limit is memory: each line tells the time of
one layer's call (a CUDA graph's replay), the bytes of cache per second, and their share of the bandwidth that
a large device-to-device copy reaches on the same card, counting bytes read and written. A prefill's limit is
arithmetic, and its lines tell TFLOP/s. Every result is compared with plain attention in float64.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from slipstream.actors.executor.attention import backend as attention
from slipstream.actors.executor.cache.paged import KVCache, PagedBatch
from slipstream.protocol.errors import SlipstreamError
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One layer's call. ``tokens`` is 1 for a decode step; ``spread`` draws contexts around the mean."""

    rows: int
    context: int
    tokens: int = 1
    spread: bool = False
    block_size: int = 16
    query_heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    dtype: torch.dtype = torch.bfloat16


CASES = [
    Case(rows=32, context=4096),
    Case(rows=32, context=4096, spread=True),
    Case(rows=32, context=4096, spread=True, block_size=64),
    Case(rows=32, context=4096, spread=True, block_size=256),
    Case(rows=1, context=8192),
    Case(rows=8, context=4096),
    Case(rows=128, context=4096, spread=True),
    Case(rows=256, context=1024, spread=True),
    Case(rows=32, context=4096, head_dim=64, query_heads=14, kv_heads=2),
    Case(rows=32, context=4096, head_dim=256, query_heads=16, kv_heads=8),
    Case(rows=32, context=4096, kv_heads=32),
    Case(rows=32, context=2048, dtype=torch.float32),
    Case(rows=1, context=4096, tokens=4096),
    Case(rows=4, context=4096, tokens=512),
]


def main() -> None:
    parser = argparse.ArgumentParser(description="Times the attention backends on a CUDA device.")
    parser.add_argument("--backends", nargs="*", default=attention.names())
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = parser.parse_args()

    torch.manual_seed(0)
    bandwidth = copy_bandwidth()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: copies at {bandwidth / 1e9:.0f} GB/s")
    figures: list[dict[str, object]] = []
    for name in options.backends:
        try:
            backend = attention.create(name)
        except (SlipstreamError, ImportError) as error:
            print(f"{name}: {error}")
            continue
        for case in CASES:
            figures.append({"backend": name, **asdict(case), "dtype": str(case.dtype)})
            try:
                figures[-1] |= measure(backend, case, bandwidth)
            except (SlipstreamError, torch.OutOfMemoryError) as error:
                figures[-1]["error"] = str(error).splitlines()[0]
            print(" ".join(f"{key}={value}" for key, value in figures[-1].items()), flush=True)
            torch.cuda.empty_cache()
    if options.json is not None:
        options.json.write_text(json.dumps({"copy_gb_per_s": bandwidth / 1e9, "figures": figures}, indent=1))


def measure(backend: attention.AttentionBackend, case: Case, bandwidth: float) -> dict[str, float]:
    """Time, speed and error of one call of ``backend``."""
    query, key, value, batch = make_step(case)
    scale = case.head_dim**-0.5

    def call() -> Tensor:
        return backend(
            query, key, value, 0, batch, scale=scale, sliding_window=None, softcap=None, sinks=None
        )

    error = worst_error(call(), query, batch, case, scale)
    seconds = replay_time(call) if case.tokens == 1 else event_time(call, 1)
    contexts = batch.kv_lens.tolist()
    result = {"us": round(seconds * 1e6, 1), "error": float(f"{error:.1e}")}
    if case.tokens == 1:
        read = 2 * sum(contexts) * case.kv_heads * case.head_dim * case.dtype.itemsize
        result["gb_per_s"] = round(read / seconds / 1e9)
        result["share"] = round(read / seconds / bandwidth, 3)
    else:
        pairs = case.rows * case.tokens * (case.context - (case.tokens - 1) / 2)
        result["tflop_per_s"] = round(4 * pairs * case.query_heads * case.head_dim / seconds / 1e12, 1)
    return result


def make_step(case: Case) -> tuple[Tensor, Tensor, Tensor, PagedBatch]:
    """Random query, key and value, over a cache of random content with its blocks in random order."""
    device, size = torch.device("cuda"), case.block_size
    contexts, bound = torch.full((case.rows,), case.context), case.context
    if case.spread:
        # Pairs that add up to twice the mean: any lengths up to the bound, and the mean exact.
        bound = 2 * case.context
        short = torch.randint(1, case.context, (case.rows // 2,))
        contexts = torch.cat([short, bound - short])[torch.randperm(case.rows)]
    per_row = -(-bound // size)
    table = torch.randperm(case.rows * per_row, device=device).add(1).view(case.rows, per_row)
    pools = [
        torch.randn(
            case.rows * per_row + 1, size, case.kv_heads, case.head_dim, device=device, dtype=case.dtype
        )
        for _ in range(2)
    ]
    position = (contexts[:, None] - case.tokens + torch.arange(case.tokens)).to(device)
    write_index = (table.gather(1, position // size) * size + position % size).flatten()
    batch = PagedBatch(
        cache=KVCache(size, pools[:1], pools[1:]),
        rows=torch.arange(case.rows, device=device),
        kv_lens=contexts.to(device, torch.int32),
        query_start=torch.arange(case.rows + 1, device=device, dtype=torch.int32) * case.tokens,
        write_index=write_index,
        block_table=table.to(torch.int32),
        decode_only=case.tokens == 1,
        max_kv_len=bound,
    )
    query, key, value = (
        torch.randn(case.rows * case.tokens, heads, case.head_dim, device=device, dtype=case.dtype)
        for heads in (case.query_heads, case.kv_heads, case.kv_heads)
    )
    return query, key, value, batch


def worst_error(out: Tensor, query: Tensor, batch: PagedBatch, case: Case, scale: float) -> float:
    """Greatest relative error (by norm) of a row's last query, over some rows, against float64."""
    worst = 0.0
    group = case.query_heads // case.kv_heads
    for row in range(0, case.rows, max(1, case.rows // 8)):
        kv_len = int(batch.kv_lens[row])
        blocks = batch.block_table[row].long()
        key, value = (
            pool[0][blocks].flatten(0, 1)[:kv_len].double().repeat_interleave(group, dim=1)
            for pool in (batch.cache.keys, batch.cache.values)
        )
        last = int(batch.query_start[row + 1]) - 1
        weight = (torch.einsum("hd,khd->hk", query[last].double(), key) * scale).softmax(dim=1)
        expected = torch.einsum("hk,khd->hd", weight, value)
        worst = max(worst, float((out[last].double() - expected).norm() / expected.norm()))
    return worst


def replay_time(call: Callable[[], Tensor], calls: int = 10) -> float:
    """Median seconds of one call, replayed from a CUDA graph of several; plain calls where it cannot be."""
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(calls):
                call()
    except RuntimeError:
        return event_time(call, 1)
    return event_time(graph.replay, calls)


def event_time(run: Callable[[], object], calls: int) -> float:
    """Median seconds of one of the ``calls`` that a run makes, by CUDA events."""
    times = []
    for _ in range(13):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / calls)
    return statistics.median(times[3:])


def copy_bandwidth() -> float:
    """Bytes per second, read and written, of a copy much larger than the caches."""
    source = torch.randn(1 << 29, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / event_time(lambda: target.copy_(source), 1)


if __name__ == "__main__":
    main()
