"""What products with quantized weights take on a GPU, each way that there is, beside bfloat16.

    python examples/quantized_bench.py [--rows 1 8 32 256] [--tune] [--shapes 4096x6144 ...]

For the shapes of an 8B model (columns x outputs) it prints microseconds of one product, captured into a CUDA graph,
several weights in turn so that none is in a cache, and the share of the rate of a large copy at which the weights were
read: bfloat16; the kernels of ``quantization/product_kernels.py``, which read FP8 and int8; torch's product of FP8 with
FP8, with the kernel that quantizes the states; and the weight dequantized first. Each is compared with the dequantized
product. ``--tune`` tries launch configurations of both kernels and prints the best.
"""

from __future__ import annotations

import argparse
import traceback
from collections.abc import Callable
from itertools import product

import torch
import torch.nn.functional as F
from replays import captured, replay_ms
from slipstream.actors.executor.model.quantization import conversion, product_kernels
from slipstream.actors.executor.model.quantization.linear import quantize
from slipstream.actors.executor.model.quantization.products import scaled_product
from slipstream.actors.executor.model.quantization.weight import QuantizedWeight
from torch import Tensor

DEVICE = torch.device("cuda:0")
SHAPES = ("4096x6144", "4096x4096", "4096x28672", "14336x4096", "4096x128256")
TURNS_BYTES = 400 << 20
"""Weights that are multiplied in turn take at least this much together, which is more than any cache."""

Product = Callable[[Tensor, int], Tensor]
"""The product of states with the weight of a number."""


def microseconds(work: Callable[[], object], times: int) -> float:
    """Of each of the ``times`` products that ``work`` makes."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), torch.inference_mode():
        return replay_ms(captured(work, stream), stream) * 1e3 / times


def copy_rate() -> float:
    """Bytes per microsecond of a large copy, read and written."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * len(source) / microseconds(lambda: target.copy_(source), 1)


class Weights:
    """Several weights of one shape, in every form."""

    def __init__(self, columns: int, outputs: int) -> None:
        turns = max(2, TURNS_BYTES // (columns * outputs) + 1)
        torch.manual_seed(0)
        self.plain = [
            torch.randn(outputs, columns, dtype=torch.bfloat16, device=DEVICE) * 0.02 for _ in range(turns)
        ]
        self.fp8 = [quantize(weight, torch.float8_e4m3fn) for weight in self.plain]
        self.int8 = [quantize(weight, torch.int8) for weight in self.plain]
        blocks = torch.rand(-(-outputs // 128), columns // 128, device=DEVICE) * 1e-4
        self.blocks = [QuantizedWeight(weight.values, blocks, (128, 128)) for weight in self.fp8]

    def ways(
        self, rows: int, config: product_kernels.LaunchConfig | None = None
    ) -> dict[str, tuple[list[QuantizedWeight], Product]]:
        ours = product_kernels.one_row if rows == 1 else product_kernels.few_rows

        def read(weights: list[QuantizedWeight]) -> Product:
            def work(states: Tensor, turn: int) -> Tensor:
                weight = weights[turn]
                return ours(states, weight.values, weight.scales, weight.block, None, config)

            return work

        def scaled(states: Tensor, turn: int) -> Tensor:
            numbers, scales = conversion.quantized(states)
            weight = self.fp8[turn]
            return scaled_product(
                numbers,
                weight.values.T,
                scales,
                weight.scales.T,
                out_dtype=torch.bfloat16,
                use_fast_accum=True,
            )

        def dequantized(states: Tensor, turn: int) -> Tensor:
            weight = self.fp8[turn]
            return F.linear(
                states, conversion.dequantized(weight.values, weight.scales, weight.block, torch.bfloat16)
            )

        named: dict[str, tuple[list[QuantizedWeight], Product]] = {}
        if rows <= 64:
            named |= {
                "fp8": (self.fp8, read(self.fp8)),
                "int8": (self.int8, read(self.int8)),
                "fp8 in blocks": (self.blocks, read(self.blocks)),
            }
        return named | {"scaled": (self.fp8, scaled), "dequantized": (self.fp8, dequantized)}


def in_turn(weights: Weights, work: Product, states: Tensor) -> float:
    turns = range(len(weights.plain))
    return microseconds(lambda: [work(states, turn) for turn in turns], len(turns))


def bench(shape: str, rows: list[int], rate: float) -> None:
    columns, outputs = map(int, shape.split("x"))
    weights = Weights(columns, outputs)
    for count in rows:
        states = torch.randn(count, columns, dtype=torch.bfloat16, device=DEVICE)
        plain = in_turn(weights, lambda states, turn: F.linear(states, weights.plain[turn]), states)
        bound = columns * outputs / rate
        line = f"{shape:>12} {count:4} rows: bfloat16 {plain:7.1f} us ({2 * bound / plain:4.0%})"
        for name, (of, work) in weights.ways(count).items():
            try:
                expected = F.linear(states.float(), of[0].dequantized(torch.float32))
                error = float((work(states, 0).float() - expected).norm() / expected.norm())
                took = in_turn(weights, work, states)
            except Exception as reason:  # the other ways are still worth their time
                line += f"; {name}: {type(reason).__name__} {str(reason).splitlines()[0][:80]}"
                continue
            line += f"; {name} {took:7.1f} ({bound / took:4.0%}, off {error:.1e})"
        print(line, flush=True)


def tune(shape: str, rows: list[int], rate: float) -> None:
    columns, outputs = map(int, shape.split("x"))
    weights = Weights(columns, outputs)
    for count in (count for count in rows if count <= 64):
        states = torch.randn(count, columns, dtype=torch.bfloat16, device=DEVICE)
        if count == 1:
            tried = [
                product_kernels.LaunchConfig(n, k, warps)
                for n, k, warps in product((4, 8, 16, 32), (256, 512, 1024, 2048), (2, 4, 8))
                if 16 <= n * k // (32 * warps) <= 128
            ]
        else:
            tried = [
                product_kernels.LaunchConfig(n, k, warps, stages, shares)
                for n, k, warps, stages, shares in product(
                    (64, 128, 256), (128, 256), (4, 8), (3, 4, 5, 6), (1, 2, 3, 4, 8)
                )
                if 100 <= -(-outputs // n) * shares <= 1000 and warps * 32 >= n and stages * k <= 768
            ]
        found: list[tuple[float, product_kernels.LaunchConfig]] = []
        for config in tried:
            try:
                found.append((in_turn(weights, weights.ways(count, config)["fp8"][1], states), config))
            except Exception as reason:  # a tile that has no room
                print(f"    {config}: {type(reason).__name__}", flush=True)
        found.sort(key=lambda each: each[0])
        bound = columns * outputs / rate
        for took, config in found[:4]:
            print(f"{shape:>12} {count:4} rows: {took:7.1f} us ({bound / took:4.0%}) {config}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 32, 64, 256])
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES))
    parser.add_argument("--tune", action="store_true")
    given = parser.parse_args()
    print(f"{torch.cuda.get_device_name(DEVICE)}, torch {torch.__version__}")
    rate = copy_rate()
    print(f"a large copy reads and writes {rate / 1e6:.2f} TB/s")
    for shape in given.shapes:
        try:
            (tune if given.tune else bench)(shape, given.rows, rate)
        except Exception:  # the other shapes are still worth their time
            print(traceback.format_exc(), flush=True)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
