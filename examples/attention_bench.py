"""How near the attention backends come to the limits of a GPU, and which launch configurations bring them nearest.

    python examples/attention_bench.py [--json FILE] [--backends triton torch]
    python examples/attention_bench.py --tune [--fp8] [--json FILE]

Times are those of one layer, in a CUDA graph's replay of a step of several layers, each with a cache of its own. A
decode step reads every key and value of its rows once, so its limit is memory: its lines show the bytes of cache per
second, and their share of the bandwidth that a large device-to-device copy reaches on the same card, counting
bytes read and written. A prompt's limit is arithmetic, and its lines show TFLOP/s. Torch's own FlashAttention-2 and
cuDNN are beside them, on keys and values that are not paged.

``--tune`` needs torch 2.11 or later with its Triton, one GPU and this package on the path, and takes about two minutes.
It first compares the kernels with plain attention in float32 or float64: ragged steps of many kinds, what
is padding, and a captured graph that is replayed with other lengths. It fails if one is wrong. Then it times every
candidate of ``SINGLE`` and ``SEVERAL``, with ``--fp8`` those for a cache of a byte a number, on every shape, prints
each shape's candidates in the order of their time, and at last each candidate's mean over the shapes. The default of
`triton_backend.LAUNCH_CONFIGS` is marked; to change it, put the best candidate there.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from slipstream.actors.executor.attention import backend as attention
from slipstream.actors.executor.cache.kv_cache import KVCache, LayerScales
from slipstream.actors.executor.cache.paged_batch import PagedBatch
from slipstream.actors.executor.devices.float8 import FP8
from slipstream.protocol.errors import SlipstreamError
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


@dataclass(frozen=True)
class Shape:
    """One step and the model's shape."""

    name: str
    spans: tuple[tuple[int, int], ...]
    """(tokens, context with them) of each row."""
    empty_rows: int = 0
    """Rows without tokens, as a captured graph has them, after the others."""
    spare_tokens: int = 0
    """Tokens that belong to no row, after the others."""
    query_heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    block_size: int = 16
    dtype: torch.dtype = torch.bfloat16
    fp8: bool = False
    """The cache takes a byte a number."""
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False

    @property
    def decode_only(self) -> bool:
        return all(tokens == 1 for tokens, _ in self.spans) and not (self.empty_rows or self.spare_tokens)

    @property
    def cache_dtype(self) -> torch.dtype:
        return FP8 if self.fp8 else self.dtype

    @property
    def flops(self) -> float:
        """Of the rows with several tokens."""
        pairs = sum(tokens * (context - (tokens - 1) / 2) for tokens, context in self.spans if tokens > 1)
        return 4 * pairs * self.query_heads * self.head_dim

    @property
    def bytes(self) -> int:
        """Of the keys and values that one layer must read."""
        contexts = sum(context for _, context in self.spans)
        return 2 * contexts * self.kv_heads * self.head_dim * self.cache_dtype.itemsize


def decode(rows: int, context: int, **options: Any) -> Shape:
    return Shape(f"{rows} rows decode at {context}", ((1, context),) * rows, **options)


def spread(rows: int, context: int, **options: Any) -> Shape:
    """Contexts between 1 and twice ``context``, in pairs with that sum, so that the mean is exact."""
    contexts = [1 + pair * (context - 1) // (rows // 2) for pair in range(rows // 2)]
    contexts = [*contexts, *(2 * context - short for short in reversed(contexts))]
    return Shape(f"{rows} rows decode around {context}", tuple((1, at) for at in contexts), **options)


def prompt(tokens: int, cached: int = 0, **options: Any) -> Shape:
    return Shape(f"{tokens} tokens on {cached}", ((tokens, cached + tokens),), **options)


MIXED = Shape("8 decode at 1024 and 512 tokens", (*[(1, 1024)] * 8, (512, 512)))
PADDED = replace(MIXED, name=MIXED.name + ", padded", empty_rows=247, spare_tokens=88)

SKEWED = Shape("63 rows decode at 100 and one at 32768", ((1, 32768), *[(1, 100)] * 63))

SHAPES = [
    prompt(1024),
    prompt(2048),
    prompt(8192),
    prompt(512, 4096),
    prompt(128, 8192),
    MIXED,
    PADDED,
    decode(1, 1024),
    decode(32, 1024),
    decode(256, 1024),
    decode(32, 8192),
    SKEWED,
    spread(32, 4096),
    spread(32, 4096, block_size=64),
    spread(128, 4096),
    spread(256, 1024),
    decode(32, 4096, query_heads=14, kv_heads=2, head_dim=64),
    decode(32, 4096, query_heads=16, head_dim=256),
    decode(32, 4096, kv_heads=32),
    decode(32, 2048, dtype=torch.float32),
]

SMALL = dict(query_heads=14, kv_heads=2, head_dim=64)
TUNED = [*SHAPES[:13], prompt(2048, **SMALL), decode(1, 1024, **SMALL), decode(256, 1024, **SMALL)]
"""The shapes that candidates are timed on."""

SEVERAL = [
    # queries, keys, warps, stages, resident programs, least keys of a split
    (64, 64, 4, 3, 2, 256),
    (64, 64, 4, 3, 1, 256),
    (64, 64, 4, 3, 2, 512),
    (64, 64, 4, 2, 2, 256),
    (128, 64, 8, 3, 1, 256),
    (128, 64, 8, 4, 1, 512),
    (128, 128, 8, 2, 1, 512),
]
"""Candidates for rows with several tokens, as `triton_backend.LaunchConfig`."""

SINGLE = [
    (16, 64, 4, 3, 3, 64),
    (16, 64, 4, 4, 2, 64),
    (16, 128, 4, 2, 2, 128),
    (16, 128, 4, 2, 3, 128),
    (16, 128, 8, 2, 2, 128),
    (16, 128, 4, 3, 1, 128),
    (16, 128, 8, 3, 1, 128),
]
"""Candidates for rows with one token."""

FP8_TUNED = [
    replace(shape, fp8=True)
    for shape in (prompt(2048), prompt(512, 4096), decode(1, 1024), decode(32, 1024), decode(256, 1024))
] + [replace(shape, fp8=True) for shape in (decode(32, 8192), SKEWED, decode(256, 1024, **SMALL))]

FP8_SINGLE = [
    (16, 64, 4, 3, 4, 64),
    (16, 64, 4, 4, 3, 64),
    (16, 64, 4, 5, 4, 64),
    (16, 64, 4, 6, 4, 64),
    (16, 128, 4, 2, 3, 128),
    (16, 128, 4, 3, 3, 128),
    (16, 128, 4, 4, 2, 128),
    (16, 128, 8, 3, 2, 128),
    (16, 128, 8, 4, 2, 128),
    (16, 256, 8, 2, 2, 256),
    (16, 256, 8, 3, 1, 256),
]

FP8_SEVERAL = [
    (64, 64, 4, 2, 2, 256),
    (64, 64, 4, 3, 1, 256),
    (64, 64, 4, 3, 2, 256),
    (64, 128, 4, 2, 1, 256),
    (128, 64, 8, 3, 1, 256),
    (128, 128, 8, 2, 1, 256),
]

LAYERS = 16
DEVICE = torch.device("cuda")


@dataclass
class Step:
    """A shape's tensors."""

    shape: Shape
    query: Tensor
    key: Tensor
    value: Tensor
    batch: PagedBatch
    sinks: Tensor | None

    def layer(self, backend: attention.AttentionBackend, layer: int) -> Tensor:
        return backend(
            self.query,
            self.key,
            self.value,
            layer,
            self.batch,
            scale=self.shape.head_dim**-0.5,
            sliding_window=self.shape.window,
            softcap=self.shape.softcap,
            sinks=self.sinks,
        )


def make_step(shape: Shape, layers: int = 1, rest: float = math.nan) -> Step:
    """Random states, over a cache of random content with its blocks in random order, and ``rest`` where nothing is."""
    device, size, dtype = DEVICE, shape.block_size, shape.dtype
    rows, needed = len(shape.spans), [-(-context // size) for _, context in shape.spans]
    blocks = torch.randperm(sum(needed), device=device) + 1
    table = torch.zeros(rows + 1, max(needed), dtype=torch.int64, device=device)
    owned = torch.zeros(len(blocks) + 1, size, dtype=torch.bool, device=device)
    for row, ((tokens, context), mine) in enumerate(zip(shape.spans, blocks.split(needed), strict=True)):
        table[row, : len(mine)] = mine
        flat = torch.arange(context - tokens, device=device)
        owned[table[row, flat // size], flat % size] = True

    def pool() -> Tensor:
        states = torch.randn(*owned.shape, shape.kv_heads, shape.head_dim, device=device, dtype=dtype)
        return states.masked_fill_(~owned[:, :, None, None], rest).to(shape.cache_dtype)

    ones = torch.ones(shape.kv_heads, device=device)
    counts = torch.tensor([tokens for tokens, _ in shape.spans] + [0] * shape.empty_rows, device=device)
    position = torch.cat(
        [torch.arange(context - tokens, context, device=device) for tokens, context in shape.spans]
    )
    of_row = torch.repeat_interleave(counts)
    write_index = table[of_row, position // size] * size + position % size
    used = len(write_index)
    batch = PagedBatch(
        cache=KVCache(
            size,
            [pool() for _ in range(layers)],
            [pool() for _ in range(layers)],
            [LayerScales(ones, ones)] * layers if shape.fp8 else None,
        ),
        rows=torch.cat([torch.arange(rows), torch.full((shape.empty_rows,), rows)]).to(device),
        kv_lens=torch.tensor(
            [context for _, context in shape.spans] + [1] * shape.empty_rows, dtype=torch.int32, device=device
        ),
        query_start=F.pad(counts.cumsum(0), (1, 0)).int(),
        write_index=F.pad(write_index, (0, shape.spare_tokens)),
        block_table=table.int(),
        decode_only=shape.decode_only,
        max_kv_len=max((context for tokens, context in shape.spans if tokens == 1), default=0),
    )
    query, key, value = (
        torch.randn(used + shape.spare_tokens, heads, shape.head_dim, device=device, dtype=dtype)
        for heads in (shape.query_heads, shape.kv_heads, shape.kv_heads)
    )
    sinks = torch.randn(shape.query_heads, device=device, dtype=dtype) if shape.sinks else None
    return Step(shape, query, key, value, batch, sinks)


def reference(step: Step) -> Tensor:
    """Plain attention, in float64 where the step is in float32 and in float32 otherwise."""
    shape, batch = step.shape, step.batch
    dtype = torch.float64 if shape.dtype == torch.float32 else torch.float32
    out = torch.zeros(step.query.shape, device=step.query.device, dtype=dtype)
    starts, group = batch.query_start.tolist(), shape.query_heads // shape.kv_heads
    for row, kv_len in enumerate(batch.kv_lens.tolist()):
        new = slice(starts[row], starts[row + 1])
        tokens = new.stop - new.start
        if tokens == 0:
            continue
        at = torch.arange(kv_len, device=out.device)
        size = shape.block_size
        place = batch.block_table[int(batch.rows[row]), at // size].long() * size + at % size
        key, value = (
            pool[0].flatten(0, 1)[place].to(dtype).repeat_interleave(group, dim=1)
            for pool in (batch.cache.keys, batch.cache.values)
        )
        score = torch.einsum("qhd,khd->hqk", step.query[new].to(dtype), key) * shape.head_dim**-0.5
        if shape.softcap is not None:
            score = shape.softcap * torch.tanh(score / shape.softcap)
        own = at[kv_len - tokens :, None]
        hidden = at[None] > own
        if shape.window is not None:
            hidden |= at[None] <= own - shape.window
        score = score.masked_fill(hidden, float("-inf"))
        if step.sinks is not None:
            sink = step.sinks.to(dtype)[:, None, None].expand(-1, tokens, 1)
            score = torch.cat((score, sink), dim=2)
        out[new] = torch.einsum("hqk,khd->qhd", score.softmax(dim=2)[:, :, :kv_len], value)
    return out


TOLERANCE = {torch.float32: 3e-6, torch.float16: 4e-3, torch.bfloat16: 2e-2}


def difference(out: Tensor, step: Step) -> float:
    """Greatest error of an element, as a share of the greatest element; of what must be zero, infinite."""
    expected = reference(step)
    used = int(step.batch.query_start[-1])
    if not torch.equal(out[used:], torch.zeros_like(out[used:])):
        return math.inf
    error = float((out.to(expected.dtype) - expected).abs().max() / expected.abs().max())
    return math.inf if math.isnan(error) else error


RAGGED = ((1, 1), (1, 700), (37, 37), (1, 16), (200, 900), (2, 17), (1, 1025), (129, 129), (64, 3000))
LONG = ((1, 9000), (1, 17), (1, 8192), (300, 9000))

CHECKS = [
    Shape("ragged", RAGGED),
    Shape("ragged, padded", RAGGED, empty_rows=300, spare_tokens=100),
    Shape("long", LONG, empty_rows=3, spare_tokens=1),
    Shape("decode", tuple((1, context) for context in (1, 15, 16, 17, 64, 1000, 5000))),
    Shape("window", RAGGED, window=100, empty_rows=2),
    Shape("long window", LONG, window=1024),
    Shape("softcap and sinks", RAGGED, softcap=30.0, sinks=True),
    Shape("sinks in a window", LONG, window=128, sinks=True),
    Shape("group of 7, head 64", RAGGED, query_heads=14, kv_heads=2, head_dim=64),
    Shape("head 256", RAGGED, query_heads=8, kv_heads=4, head_dim=256),
    Shape("head 80, no group", RAGGED, query_heads=4, kv_heads=4, head_dim=80),
    Shape("blocks of 64", RAGGED, block_size=64),
    Shape("float32", RAGGED, dtype=torch.float32, query_heads=8, kv_heads=2),
    Shape("float16", RAGGED, dtype=torch.float16, spare_tokens=5),
]


def check(shape: Shape, kind: str | None = None, candidate: tuple[int, ...] | None = None) -> str:
    """What is wrong with the triton backend on ``shape``, configured as ``candidate`` if given; empty: nothing."""
    torch.manual_seed(0)
    step = make_step(shape)
    try:
        with configured(kind, candidate):
            backend = attention.create("triton")
            error = difference(step.layer(backend, 0), step)
            problem = "" if error < TOLERANCE[shape.dtype] else f"error {error:.2e}"
            return problem or check_replay(backend, step)
    except Exception as error:  # whatever Triton's compiler says of a candidate
        return f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"


def check_replay(backend: attention.AttentionBackend, step: Step) -> str:
    """Capture the step once and replay it with other lengths, chunks and content in the same tensors."""
    if not step.shape.empty_rows:
        return ""
    out, graph = capture(lambda: step.layer(backend, 0))
    batch = step.batch
    rows = len(step.shape.spans)
    for turn in range(3):
        # One row more or less has tokens, and each has another share of what it had.
        spans = [
            (max(1, tokens // (turn + 1)), max(1, context // (turn + 1)))
            for tokens, context in step.shape.spans
        ]
        spans[turn] = (0, 1)
        counts = torch.tensor([tokens for tokens, _ in spans])
        batch.query_start[1 : rows + 1] = counts.cumsum(0).int().to(out.device)
        batch.query_start[rows + 1 :] = int(counts.sum())
        batch.kv_lens[:rows] = torch.tensor([context for _, context in spans], dtype=torch.int32)
        size = step.shape.block_size
        batch.write_index.zero_()
        places = []
        for row, (tokens, context) in enumerate(spans):
            at = torch.arange(context - tokens, context, device=out.device)
            places.append(batch.block_table[row, at // size].long() * size + at % size)
        batch.write_index[: int(counts.sum())] = torch.cat(places)
        step.query.normal_()
        step.key.normal_()
        graph.replay()
        error = difference(out, step)
        if not error < TOLERANCE[step.shape.dtype]:
            return f"replay {turn}: error {error:.2e}"
    return ""


@contextmanager
def configured(kind: str | None, candidate: tuple[int, ...] | None) -> Iterator[None]:
    """Let the kernels of ``kind`` (single, several) run as ``candidate`` says; None: as they are."""
    from slipstream.actors.executor.attention import triton_backend

    before = dict(triton_backend.LAUNCH_CONFIGS)
    if kind is not None and candidate is not None:
        for key, configs in before.items():
            kinds = ("few", "many") if kind == "single" else (kind,)
            triton_backend.LAUNCH_CONFIGS[key] = configs._replace(
                **dict.fromkeys(kinds, triton_backend.LaunchConfig(*candidate))
            )
    try:
        yield
    finally:
        triton_backend.LAUNCH_CONFIGS.update(before)


def capture(run: Callable[[], Any]) -> tuple[Any, torch.cuda.CUDAGraph]:
    """What ``run`` returns, and the graph that computes it anew."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()
    return result, graph


def step_time(backend: attention.AttentionBackend, step: Step) -> float:
    """Seconds of one layer."""
    layers = len(step.batch.cache.keys)
    return replay_time(lambda: [step.layer(backend, layer) for layer in range(layers)], layers)


def replay_time(run: Callable[[], object], calls: int) -> float:
    """Median seconds of one of the ``calls`` that ``run`` makes, replayed; launched where it cannot be captured."""
    try:
        _, graph = capture(run)
    except RuntimeError:
        torch.cuda.synchronize()
        return event_time(run, calls)
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
    source = torch.randn(1 << 29, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.nbytes / event_time(lambda: target.copy_(source), 1)


def peers(shape: Shape) -> dict[str, float]:
    """Seconds of torch's own kernels on a single row's tokens and context, not paged."""
    if len(shape.spans) != 1 or shape.spans[0][0] == 1:
        return {}
    (tokens, context), dtype = shape.spans[0], shape.dtype
    group = shape.query_heads // shape.kv_heads
    query = torch.randn(1, shape.query_heads, tokens, shape.head_dim, device=DEVICE, dtype=dtype)
    key, value = (
        torch.randn(1, shape.kv_heads, context, shape.head_dim, device=DEVICE, dtype=dtype) for _ in range(2)
    )
    repeated = [states.repeat_interleave(group, dim=1) for states in (key, value)]

    def flash() -> object:
        return torch.ops.aten._scaled_dot_product_flash_attention(query, *repeated, 0.0, True)

    def cudnn() -> object:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)

    found = {}
    # Torch's causal mask of cuDNN begins at the first key, whatever is before.
    for name, call in {"torch FA2": flash, **({"cuDNN": cudnn} if tokens == context else {})}.items():
        try:
            found[name] = replay_time(lambda call=call: [call() for _ in range(LAYERS)], LAYERS)
        except RuntimeError as error:
            print(f"  {name}: {str(error).splitlines()[0]}")
    return found


@dataclass
class Figure:
    """One time, and what it means for the shape."""

    shape: Shape
    name: str
    seconds: float
    bandwidth: float
    note: str = field(default="")

    def line(self) -> str:
        text = f"  {self.seconds * 1e6:9.1f} us  {self.name:<34}"
        if self.shape.flops:
            text += f" {self.shape.flops / self.seconds / 1e12:6.0f} TFLOP/s"
        if self.shape.spans[0][0] == 1:
            speed = self.shape.bytes / self.seconds
            text += f" {speed / 1e9:6.0f} GB/s, {speed / self.bandwidth:4.0%} of a copy"
        return f"{text}  {self.note}".rstrip()


def tune(bandwidth: float, fp8: bool) -> list[dict[str, object]]:
    """Check the kernels, then time every candidate. Exits when a kernel is wrong."""
    from slipstream.actors.executor.attention import triton_backend

    singles, severals, shapes = (FP8_SINGLE, FP8_SEVERAL, FP8_TUNED) if fp8 else (SINGLE, SEVERAL, TUNED)
    candidates = [("single", made) for made in singles] + [("several", made) for made in severals]
    # What float32 computes with an FP8 cache is no more exact than float16.
    checked = [replace(shape, fp8=fp8) for shape in CHECKS if not (fp8 and shape.dtype == torch.float32)]
    wrong = []
    # Processes of their own, so that Triton compiles on many cores; it keeps what it has compiled on disk.
    with ProcessPoolExecutor(8, multiprocessing.get_context("spawn")) as pool:
        checks = [(shape, None, None) for shape in checked]
        checks += [(checked[1], kind, made) for kind, made in candidates]
        for (shape, kind, made), problem in zip(
            checks, pool.map(check, *zip(*checks, strict=True)), strict=True
        ):
            what = shape.name if made is None else f"{kind} {made}"
            print(f"check {what}: {problem or 'as plain attention'}", flush=True)
            if problem and made is None:
                wrong.append(what)
            elif problem:
                candidates.remove((kind, made))  # type: ignore[arg-type]
    if wrong:
        sys.exit(f"the kernels are wrong: {', '.join(wrong)}")

    figures: list[Figure] = []
    relative: dict[tuple[int, str, tuple[int, ...]], list[float]] = {}
    for shape in shapes:
        print(f"\n{shape.name}, {shape.query_heads}/{shape.kv_heads} heads of {shape.head_dim}")
        default = triton_backend.LAUNCH_CONFIGS[
            triton_backend.configs_key(2 * shape.head_dim, shape.cache_dtype)
        ]
        step = make_step(shape, LAYERS)
        found = [Figure(shape, name, seconds, bandwidth) for name, seconds in peers(shape).items()]
        flash = next((figure.seconds for figure in found if figure.name == "torch FA2"), None)
        kinds = {"single"} if shape.decode_only else {"several"}
        timed: dict[tuple[str, tuple[int, ...]], float] = {}
        for kind, made in candidates:
            if kind in kinds:
                with configured(kind, made):
                    timed[kind, made] = step_time(attention.create("triton"), step)
        for (kind, made), seconds in timed.items():
            relative.setdefault((shape.head_dim, kind, made), []).append(seconds / min(timed.values()))
            defaults = (default.few, default.many) if kind == "single" else (default.several,)
            note = "default" if made in defaults else ""
            if flash is not None:
                note = f"{flash / seconds:.2f} times torch FA2  {note}"
            found.append(Figure(shape, f"{kind} {made}", seconds, bandwidth, note))
        found.sort(key=lambda figure: figure.seconds)
        print("\n".join(figure.line() for figure in found), flush=True)
        figures += found
        del step
        torch.cuda.empty_cache()

    print("\ntime over the best candidate's, geometric mean over the shapes, and the worst")
    for (head, kind, made), times in sorted(
        relative.items(), key=lambda item: (item[0][:2], statistics.geometric_mean(item[1]))
    ):
        print(f"  {statistics.geometric_mean(times):5.3f} {max(times):5.2f}  heads of {head}: {kind} {made}")
    return [
        {"shape": figure.shape.name, "name": figure.name, "us": figure.seconds * 1e6} for figure in figures
    ]


def measure(names: list[str], bandwidth: float) -> list[dict[str, object]]:
    """Time the backends as they are on every shape."""
    figures: list[dict[str, object]] = []
    for shape in SHAPES:
        print(
            f"\n{shape.name}, {shape.query_heads}/{shape.kv_heads} heads of {shape.head_dim}, {shape.dtype}"
        )
        found = [Figure(shape, name, seconds, bandwidth) for name, seconds in peers(shape).items()]
        for name in names:
            try:
                backend = attention.create(name)
                step = make_step(shape, LAYERS, rest=0.0)
                error = difference(step.layer(backend, 0), step)
                found.append(Figure(shape, name, step_time(backend, step), bandwidth, f"error {error:.1e}"))
            except (SlipstreamError, ImportError, torch.OutOfMemoryError) as error:
                print(f"  {name}: {str(error).splitlines()[0]}")
            torch.cuda.empty_cache()
        for figure in sorted(found, key=lambda figure: figure.seconds):
            print(figure.line(), flush=True)
            described = asdict(shape) | {"dtype": str(shape.dtype), "spans": len(shape.spans)}
            figures.append(described | {"backend": figure.name, "us": figure.seconds * 1e6})
    return figures


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description="Times the attention backends on a CUDA device.")
    parser.add_argument(
        "--tune",
        action="store_true",
        help="check the kernels and time candidates for their launch configurations",
    )
    parser.add_argument("--fp8", action="store_true", help="--tune for a cache of a byte a number")
    parser.add_argument("--backends", nargs="*", default=attention.names())
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = parser.parse_args()

    torch.manual_seed(0)
    bandwidth = copy_bandwidth()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: copies at {bandwidth / 1e9:.0f} GB/s")
    figures = tune(bandwidth, options.fp8) if options.tune else measure(options.backends, bandwidth)
    if options.json is not None:
        options.json.write_text(json.dumps({"copy_gb_per_s": bandwidth / 1e9, "figures": figures}, indent=1))


if __name__ == "__main__":
    main()
