"""What a step costs: on the host to stage and to launch, on a GPU to replay.

    python examples/step_bench.py [--models 8b 1.5b 0.5b] [--rows 256] [--quantization fp8] [--json FILE]
    python examples/step_bench.py --models 8b --rows 32 --context 8000 [--kv-cache-dtype fp8] [--adapters 8]

Staging is measured anywhere. With a GPU, models of these shapes with random weights are put together as the executor
does it, every graph is captured, and steps of several sizes are run: of rows that decode, and of rows that decode
beside a prompt. Printed are the time until the host has control back, the time on the device, and what capturing took.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from model_shapes import MODELS
from slipstream.actors.executor.step.batch import RunningBatch
from slipstream.actors.executor.step.buckets import buckets_of
from slipstream.protocol.internal import Join, Plan
from transformers import PreTrainedConfig

LENGTH, BLOCK, BUDGET = 8192, 16, 2048
ADAPTER_RANK = 16
DECODES = (1, 8, 32, 128, 256)
MIXED = ((8, 16), (8, 128), (8, 512), (32, 512), (8, 1024), (8, 2040))
"""Rows that decode, and tokens of the prompt beside them."""


@dataclass(frozen=True)
class Variant:
    """What is measured of a model."""

    slots: int
    context: int
    """Tokens that rows that decode have."""
    quantization: str | None
    kv_cache_dtype: str
    adapters: int
    """Adapters that the rows have in turn. Their weights are random, and small."""


def join(slot: int, tokens: int, start: int, *, sampled: bool = False, adapters: int = 0) -> Join:
    return Join(
        slot=slot,
        tokens=np.full(tokens, 7, np.int32).tobytes(),
        prompt_len=tokens,
        start=start,
        temperature=0.8 if sampled else 0.0,
        top_p=1.0,
        top_k=0,
        min_p=0.0,
        seed=slot,
        min_tokens=0,
        stop_tokens=b"",
        max_length=LENGTH,
        adapter=1 + slot % adapters if adapters else 0,
    )


def blocks_of(slot: int, tokens: int, first: int) -> list[tuple[int, int]]:
    return [(slot, first + n) for n in range(-(-tokens // BLOCK))]


def as_bytes(pairs: list[tuple[int, int]]) -> bytes:
    return np.array(pairs, np.int32).tobytes()


def median_us(work: Callable[[], object], times: int = 200) -> float:
    measured = []
    for _ in range(times):
        begun = time.perf_counter()
        work()
        measured.append((time.perf_counter() - begun) * 1e6)
    return statistics.median(measured)


def staging(rows: int, context: int) -> dict[str, float]:
    """Microseconds to stage a step in which nothing changes, one with new blocks, and one with a chunk."""
    batch = RunningBatch(rows + 1, BUDGET, LENGTH // BLOCK, buckets_of(rows + 1, BUDGET, LENGTH))
    array = np.zeros(batch.input_capacity, np.int32)
    batch.decoding[:rows] = True
    batch.position[:rows] = context
    found = {"steady": median_us(lambda: batch.stage(Plan(0), array))}
    batch.num_blocks[:] = 0
    plan = Plan(0, blocks=as_bytes([(slot, 1) for slot in range(max(1, rows // 16))]))
    found["new blocks"] = median_us(lambda: batch.stage(plan, array))
    batch.prompts[rows] = np.zeros(1 << 20, np.int32)
    chunk = Plan(0, chunks=as_bytes([(rows, 512)]))
    found["a chunk of 512"] = median_us(lambda: batch.stage(chunk, array))
    return found


class Rig:
    """A model and its graphs, as ``build`` puts them together."""

    def __init__(self, config: PreTrainedConfig, variant: Variant) -> None:
        from slipstream.actors.executor.devices.cuda import CudaDevice, CudaGraphs
        from slipstream.actors.executor.model.adapters.limits import AdapterLimits
        from slipstream.actors.executor.model.loading.load import from_config, replace
        from slipstream.actors.executor.model.quantization.linear import quantize_layers
        from slipstream.actors.executor.model.scales import measure_scales
        from slipstream.actors.executor.step.graphs import GraphRunner
        from slipstream.actors.executor.step.model_runner import ModelRunner

        where = torch.device("cuda:0")
        self.device = CudaDevice(0)
        slots, self.context = variant.slots, variant.context
        with torch.inference_mode():
            model = from_config(config, where, torch.bfloat16, attention_backend="triton")
            if variant.quantization is not None:
                quantize_layers(model.transformer, variant.quantization, where)
                model.measure()
            if variant.adapters:
                model.adapter_limits = AdapterLimits(variant.adapters, ADAPTER_RANK)
            replace(model)
            self.adapters = variant.adapters
            if variant.adapters:
                for stack in model.take_adapters(variant.adapters, ADAPTER_RANK).stacks:
                    stack.down.normal_(0.0, 0.01)
                    stack.up.normal_(0.0, 0.001)
            scales = measure_scales(model) if variant.kv_cache_dtype == "fp8" else None
            self.runner = ModelRunner(model, slots, LENGTH, BLOCK, scales=scales)
            buckets = buckets_of(slots, BUDGET, LENGTH)
            self.graphs = CudaGraphs(self.device)
            self.graphed = GraphRunner(self.runner, self.graphs.capture, LENGTH, buckets)
            self.runner.allocate_cache(1 + slots * (self.context + 200) // BLOCK + 2 * LENGTH // BLOCK)
        torch.cuda.synchronize()
        self.graphed.capture_all()
        stateful = model.stateful is not None
        self.batch = RunningBatch(slots, BUDGET, LENGTH // BLOCK, buckets, stateful=stateful)
        self.array = np.zeros(self.batch.input_capacity, np.int32)
        self.inputs = self.device.buffer(self.batch.input_capacity)
        self.outputs = self.device.buffer(self.batch.output_capacity)
        self.stream = self.device.compute.stream

    def step(self, run: Callable[..., None], plan: Plan) -> tuple[float, float]:
        """Milliseconds until the host has control back, and on the device."""
        staged = self.batch.stage(plan, self.array)
        self.inputs[: staged.layout.input_size] = torch.from_numpy(self.array[: staged.layout.input_size]).to(
            self.inputs.device
        )
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        with torch.cuda.stream(self.stream), torch.inference_mode():
            begin.record(self.stream)
            begun = time.perf_counter()
            run(self.inputs, self.outputs, staged)
            host = (time.perf_counter() - begun) * 1e3
            end.record(self.stream)
        torch.cuda.synchronize()
        return host, begin.elapsed_time(end)

    def joined(self, decodes: int, *, sampled: bool = False) -> None:
        """Let ``decodes`` rows decode in contexts of the length asked for."""
        self.batch.clear()
        blocks, joins = [], []
        for slot in range(decodes):
            joins.append(join(slot, self.context, self.context - 1, sampled=sampled, adapters=self.adapters))
            blocks += blocks_of(slot, self.context + 100, 1 + slot * (self.context + 100) // BLOCK)
        chunks = as_bytes([(slot, 1) for slot in range(decodes)])
        self.step(self.graphed.run, Plan(0, joins=joins, blocks=as_bytes(blocks), chunks=chunks))

    def decode(
        self, decodes: int, *, sampled: bool = False, run: Callable[..., None] | None = None
    ) -> tuple[float, float]:
        self.joined(decodes, sampled=sampled)
        times = [self.step(run or self.graphed.run, Plan(0)) for _ in range(12)]
        return tuple(statistics.median(column) for column in zip(*times[2:], strict=True))  # type: ignore[return-value]

    def mixed(self, run: Callable[..., None], decodes: int, tokens: int) -> tuple[float, float]:
        self.joined(decodes)
        slot, times = decodes, []
        first = 1 + decodes * (self.context + 100) // BLOCK
        for number in range(8):
            plan = Plan(
                0,
                leaves=np.array([slot] if number else [], np.int32).tobytes(),
                joins=[join(slot, tokens, 0, adapters=self.adapters)],
                blocks=as_bytes(blocks_of(slot, tokens, first)),
                chunks=as_bytes([(slot, tokens)]),
            )
            times.append(self.step(run, plan))
        return tuple(statistics.median(column) for column in zip(*times[2:], strict=True))  # type: ignore[return-value]


def measure(name: str, variant: Variant) -> dict[str, Any]:
    begun = time.perf_counter()
    rig = Rig(MODELS[name](), variant)
    graphs, count = rig.graphs, rig.graphed.num_graphs
    found: dict[str, Any] = {
        "graphs": count,
        "capture_s": graphs.seconds,
        "graph_mib": graphs.bytes / 2**20,
        "weights_mib": rig.runner.model.weight_bytes / 2**20,
    }
    print(
        f"{name}: {count} graphs in {graphs.seconds:.1f} s, {found['graph_mib']:.0f} MiB;"
        f" all of it {time.perf_counter() - begun:.1f} s",
        flush=True,
    )
    for decodes in (rows for rows in DECODES if rows <= variant.slots):
        for sampled in (False, True):
            host, device = rig.decode(decodes, sampled=sampled)
            kind = "sampled" if sampled else "greedy"
            found[f"{decodes} rows, {kind}"] = host, device
            print(
                f"{name}: {decodes} rows decode, {kind}: host {host:.2f} ms, device {device:.2f} ms",
                flush=True,
            )
    for decodes, tokens in (case for case in MIXED if case[0] < variant.slots):
        host, device = rig.mixed(rig.graphed.run, decodes, tokens)
        found[f"{decodes} rows and {tokens} tokens"] = host, device
        line = f"{name}: {decodes} rows and {tokens} tokens of a prompt: host {host:.2f} ms, device {device:.2f} ms"
        if tokens <= 512:
            eager = rig.mixed(rig.runner.run, decodes, tokens)
            line += f"; launched kernel by kernel {eager[0]:.2f} and {eager[1]:.2f} ms"
        print(line, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="*", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--rows", type=int, default=256, help="sequence slots of the models (default 256)")
    parser.add_argument("--quantization", choices=("fp8", "int8"), help="of the models' layers")
    parser.add_argument("--context", type=int, default=900, help="tokens of rows that decode (default 900)")
    parser.add_argument("--kv-cache-dtype", choices=("auto", "fp8"), default="auto")
    parser.add_argument("--adapters", type=int, default=0, help="that the rows have in turn (default none)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not 0 < options.context <= LENGTH - 100:
        parser.error(
            f"--context {options.context}: from 1 to {LENGTH - 100}, which leaves room for the steps"
        )
    variant = Variant(
        options.rows, options.context, options.quantization, options.kv_cache_dtype, options.adapters
    )
    results: dict[str, Any] = {}
    for rows in (1, 8, 256):
        results[f"staging {rows}"] = found = staging(rows, options.context)
        print(
            f"staging {rows} rows:",
            ", ".join(f"{name} {us:.1f} µs" for name, us in found.items()),
            flush=True,
        )
    if torch.cuda.is_available():
        for name in options.models:
            results[name] = measure(name, variant)
            torch.cuda.empty_cache()
    else:
        print("no GPU here: only staging was measured")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
