"""What one forward pass takes on a GPU, as transformers has the decoder and as it is fused, and what bounds it.

    python examples/forward_bench.py [--models 0.5b 1.5b 8b] [--rows 1 32 256] [--context 200]

Models of three sizes with random weights, made on the device; the paged model, its cache and the Triton attention are
those that serve. For each number of decoding rows it prints the time of one replay of the CUDA graph of the forward
pass, unfused, fused (with cuBLAS's products, then as it is served) and batch-invariant, with the number of kernels
and their time by kind; the time of choosing the tokens, greedily and sampled; and how long the weights alone take to
be read, at the rate of a large copy on the same card. Then the matrix products one by one, before they are batch-
invariant and after, and how far the logits of an unfused and a fused model are from those of float32. On one H200 all
of it takes about 2 min.
"""

from __future__ import annotations

import argparse
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from model_shapes import MODELS
from replays import captured, replay_ms
from slipstream.actors.executor.cache.kv_cache import allocate
from slipstream.actors.executor.cache.paged_batch import PagedBatch
from slipstream.actors.executor.model.fused.fuse import fuse
from slipstream.actors.executor.model.invariant.apply import prove_invariant
from slipstream.actors.executor.model.loading.load import from_config, replace
from slipstream.actors.executor.model.paged_model import PagedModel
from slipstream.actors.executor.model.products.few_rows import begin_products_early
from slipstream.actors.executor.sampling.sampler import Sampler
from slipstream.actors.executor.step.fields import JOIN
from slipstream.actors.executor.step.sampling_kind import SamplingKind
from torch import Tensor, nn

DEVICE = torch.device("cuda:0")
BLOCK_SIZE = 16
KINDS = (
    ("attention", ("attend", "partition_kernel", "write_kernel")),
    ("ours", ("add_norm", "_rotate", "_gate_kernel", "_angles", "norm_kernel")),
    ("products", ("gemm", "gemv", "cutlass", "cublas", "nvjet", "splitk", "product", "one_row", "xmma")),
    ("reductions", ("reduce", "argmax", "softmax", "scan")),
    ("copies, casts", ("copy", "memcpy", "memset", "cat", "index", "gather", "scatter")),
)
"""Kinds of kernels, by what is in their names; all others are elementwise."""


def say(line: str = "") -> None:
    print(line, flush=True)


@dataclass(frozen=True)
class Cost:
    """One replay of a graph."""

    ms: float
    kernels: int
    by_kind: dict[str, tuple[float, float]]
    """How many kernels of a kind, and their time in ms."""
    by_name: list[tuple[float, float, str]]
    """Milliseconds, kernels and name, the dearest first."""

    def __str__(self) -> str:
        kinds = "; ".join(f"{kind} {count:.0f}: {ms:.3f}" for kind, (count, ms) in self.by_kind.items())
        return f"{self.ms:7.3f} ms, {self.kernels} kernels ({kinds})"


def measure(work: Callable[[], object], detail: bool = True) -> Cost:
    """Capture ``work`` into a graph and replay it."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), torch.inference_mode():
        graph = captured(work, stream)
        ms = replay_ms(graph, stream)
        counts: Counter[str] = Counter()
        spent: Counter[str] = Counter()
        names: dict[str, list[float]] = {}
        if detail:
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                for _ in range(3):
                    graph.replay()
                torch.cuda.synchronize()
            for event in profile.events() or ():
                if event.device_type == torch.autograd.DeviceType.CUDA:  # type: ignore[attr-defined]
                    kind = kind_of(event.name)
                    counts[kind] += 1
                    spent[kind] += event.device_time
                    names.setdefault(event.name[:100], []).append(event.device_time)
    return Cost(
        ms,
        round(counts.total() / 3),
        {kind: (counts[kind] / 3, spent[kind] / 3e3) for kind, _ in spent.most_common()},
        sorted(((sum(each) / 3e3, len(each) / 3, name) for name, each in names.items()), reverse=True),
    )


def kind_of(name: str) -> str:
    lower = name.lower()
    return next((kind for kind, parts in KINDS if any(part in lower for part in parts)), "elementwise")


def forward_of(model: PagedModel, rows: int, context: int) -> Callable[[], Tensor]:
    """The forward pass of a step in which ``rows`` rows decode, each after ``context`` tokens."""
    blocks = -(-(context + 1) // BLOCK_SIZE)
    cache = allocate(model.kv_layout, 1 + rows * blocks, BLOCK_SIZE, DEVICE, model.dtype)
    for pool in (*cache.keys, *cache.values):  # in float32 first: the same numbers in every dtype
        pool.copy_(torch.randn(pool.shape, device=DEVICE))
    table = 1 + torch.randperm(rows * blocks, device=DEVICE).int().view(rows, blocks)
    places = torch.arange(rows, device=DEVICE)
    positions = torch.full((rows,), context, device=DEVICE)
    batch = PagedBatch(
        cache=cache,
        rows=places,
        kv_lens=(positions + 1).int(),
        query_start=torch.arange(rows + 1, dtype=torch.int32, device=DEVICE),
        write_index=table[places, positions // BLOCK_SIZE].long() * BLOCK_SIZE + positions % BLOCK_SIZE,
        block_table=table,
        decode_only=True,
        max_kv_len=4096,
    )
    tokens = places * 7919 % model.vocab_size
    return lambda: model.forward(tokens, positions, batch, places)


def copy_rate() -> float:
    """Bytes per second of a large copy, read and written."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * len(source) / measure(lambda: target.copy_(source), detail=False).ms * 1e3


def weights_read(model: PagedModel) -> int:
    """Bytes of weights that every step reads: an embedding that is not the head as well is only looked up."""
    embed, head = model.transformer.get_input_embeddings(), model.transformer.get_output_embeddings()
    tied = embed.weight.data_ptr() == head.weight.data_ptr()  # type: ignore[union-attr]
    return model.weight_bytes - (0 if tied else embed.weight.nbytes)  # type: ignore[union-attr, operator]


def bench_forward(name: str, rows: list[int], context: int, rate: float) -> None:
    begun = time.perf_counter()
    model = from_config(MODELS[name](), DEVICE, torch.bfloat16, attention_backend="triton")
    torch.cuda.synchronize()
    size = weights_read(model)
    say(f"{name}: {model.weight_bytes / 1e9:.2f} GB, made in {time.perf_counter() - begun:.1f} s")
    say(f"  the {size / 1e9:.2f} GB that a step reads take {size / rate * 1e3:.3f} ms")
    for count in rows:
        say(f"  {count:3} rows, unfused {measure(forward_of(model, count, context))}")
    begun, before = time.perf_counter(), torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    fuse(model)
    torch.cuda.synchronize()
    more = torch.cuda.max_memory_allocated() - before
    what = model.unfused_because or "fused"
    say(f"  {what} in {time.perf_counter() - begun:.2f} s, with {more / 1e9:.2f} GB more for that while")
    for count in rows:
        say(f"  {count:3} rows, fused, products of cuBLAS {measure(forward_of(model, count, context))}")
    begin_products_early(model.transformer, checked=False)
    for count in rows:
        cost = measure(forward_of(model, count, context))
        say(f"  {count:3} rows, fused, products as served {cost}")
        for ms, kernels, kernel in cost.by_name[:10] if count == rows[0] else ():
            say(f"      {ms:.3f} ms {kernels:4.0f}x {kernel}")
    for count in rows:
        bench_sampling(model, count)
    bench_products(model, rows, rate)
    del model  # products that begin early stay as they are: another one is made batch-invariant
    torch.cuda.empty_cache()
    model = from_config(MODELS[name](), DEVICE, torch.bfloat16, attention_backend="triton")
    replace(model, batch_invariant=True)
    prove_invariant(model)
    for count in rows:
        say(f"  {count:3} rows, batch-invariant {measure(forward_of(model, count, context))}")
    bench_products(model, rows, rate)


def bench_sampling(model: PagedModel, rows: int) -> None:
    sampler = Sampler(rows, model.vocab_size, DEVICE)
    logits = torch.randn(rows, model.vocab_size, device=DEVICE).to(model.dtype)
    slots = torch.arange(rows, device=DEVICE)
    record = np.zeros(rows, JOIN)
    record["temperature"], record["top_p"], record["seed_low"] = 0.8, 1.0, np.arange(rows)
    requests = torch.from_numpy(record.view(np.int32).reshape(rows, -1)).to(DEVICE)
    for what, kind in (("greedy", SamplingKind()), ("sampled", SamplingKind(greedy=False))):
        cost = measure(lambda kind=kind: sampler.sample(logits, slots, requests, slots, kind))
        read = logits.nbytes / 1e6
        say(f"  {rows:3} rows, {what:7} {cost}, of logits of {read:.1f} MB")


def bench_products(model: PagedModel, rows: list[int], rate: float) -> None:
    """Each product of one layer and the head, several layers in turn so that no weight is in a cache."""
    layers = list(model.transformer.get_submodule("model").layers)[:8]  # type: ignore[arg-type]
    kinds: dict[str, list[nn.Linear]] = {}
    for layer in layers:
        for path, module in layer.named_modules():
            if isinstance(module, nn.Linear):
                kinds.setdefault(path.split(".")[-1], []).append(module)
    head: Any = model.transformer.get_output_embeddings()
    kinds["lm_head"] = [head]
    for path, modules in kinds.items():
        weight = modules[0].weight
        bound = weight.nbytes / rate * 1e6
        line = f"  {path:12} {tuple(weight.shape)}: weights {bound:6.1f} us;"
        for count in rows:
            states = torch.randn(count, weight.shape[1], device=DEVICE, dtype=weight.dtype)

            def work(modules: list[nn.Linear] = modules, states: Tensor = states) -> None:
                for module in modules:
                    module(states)

            line += f"  {count} rows {measure(work, detail=False).ms * 1e3 / len(modules):6.1f} us"
        say(line)


def check_logits(name: str) -> None:
    """A shallow model of the same width, as it is and fused, in float32 and bfloat16."""
    shape = MODELS[name]()
    config: Any = shape.__class__(**shape.to_dict() | {"num_hidden_layers": 2, "layer_types": None})

    source = from_config(config, DEVICE, torch.float32, attention_backend="triton")

    def logits(dtype: torch.dtype, fused: bool) -> Tensor:
        model = from_config(config, DEVICE, dtype, attention_backend="triton")
        with torch.no_grad():
            for own, other in zip(
                model.transformer.parameters(), source.transformer.parameters(), strict=True
            ):
                own.copy_(other)
        if fused:
            replace(model)
            assert model.unfused_because == "", model.unfused_because
        torch.manual_seed(0)
        with torch.inference_mode():
            return forward_of(model, 33, 1000)().float()

    exact = logits(torch.float32, False)
    for dtype, fused in ((torch.float32, True), (torch.bfloat16, False), (torch.bfloat16, True)):
        found = logits(dtype, fused)
        error = float((found - exact).norm() / exact.norm())
        say(f"  {name}: {dtype}, {'fused' if fused else 'unfused'}: {error:.2g} from float32, unfused")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 32, 256])
    parser.add_argument("--context", type=int, default=200, help="tokens in the cache of each row")
    given = parser.parse_args()
    say(f"{torch.cuda.get_device_name(DEVICE)}, torch {torch.__version__}")
    rate = copy_rate()
    say(f"a large copy reads and writes {rate / 1e12:.2f} TB/s")
    works: list[Callable[[], None]] = [lambda name=name: check_logits(name) for name in given.models]
    works += [lambda name=name: bench_forward(name, given.rows, given.context, rate) for name in given.models]
    for work in works:
        try:
            work()
        except Exception:  # the other measurements are still worth their time
            say(traceback.format_exc())
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
