"""What adapters cost the projections of a model on a GPU, and with which launch configuration the least.

    python examples/adapter_bench.py [--tokens 32] [--adapters 8] [--rank 16] [--tune]

For the projections of an 8B model it prints microseconds, captured into a CUDA graph with as many weights in turn as no
cache holds: of the layer's product alone, of that with the tail, of what makes the states and their tail, of both one
after the other, and of the product with two kernels beside it, as where there is no tail. ``--tune`` times what makes
the states and their tail with other launch configurations, a line for each, the fastest last.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from replays import captured, replay_ms
from slipstream.actors.executor.model.adapters import triton_products
from slipstream.actors.executor.model.adapters.extend import LAUNCH_CONFIGS, LaunchConfig, extend, of_size
from slipstream.actors.executor.model.adapters.limits import AdapterLimits
from slipstream.actors.executor.model.adapters.products import Stack, Tail
from slipstream.actors.executor.triton_tools.compilation import compile_ahead
from torch import Tensor, nn

DEVICE = torch.device("cuda:0")
PROJECTIONS = {
    "qkv": (4096, (4096, 1024, 1024)),
    "o": (4096, (4096,)),
    "gate_up": (4096, (14336, 14336)),
    "down": (14336, (4096,)),
}
"""Columns, and rows of each part."""

MIN_TURNS, CACHE_BYTES = 4, 100 << 20
"""Weights that are read in turn take twice what an H200's cache holds."""

TUNED = [
    LaunchConfig(0, outputs, columns, splits, columns, warps, stages)
    for outputs, columns, splits, warps, stages in itertools.product(
        (32, 64, 128), (128, 256, 512), (8, 16, 32), (4, 8), (2,)
    )
    if 32 * 256 <= outputs * columns <= 64 * 512
]
"""Without their tokens."""


def microseconds(work: Callable[[int], object], turns: int) -> float:
    """Of ``work`` with each of so many weights."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), torch.inference_mode():
        return (
            replay_ms(captured(lambda: [work(turn) for turn in range(turns)], stream), stream) * 1e3 / turns
        )


class Projection(NamedTuple):
    """One of several, with weights of random numbers."""

    weights: list[Tensor]
    """[N, K + C]"""
    tails: list[Tail]
    stacks: list[Stack]
    """The same without a tail, of which B is somewhere else."""
    states: Tensor
    ids: Tensor

    @classmethod
    def made(
        cls, columns: int, parts: tuple[int, ...], limits: AdapterLimits, tokens: int, turns: int
    ) -> Projection:
        with torch.device("meta"):
            layers = [nn.Linear(columns, rows) for rows in parts]
        starts = tuple(itertools.accumulate(parts, initial=0))[:-1]
        rows, ranks = sum(parts), len(parts) * limits.max_rank

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=torch.bfloat16, device=DEVICE) * 0.02

        weights = [random(rows, columns + limits.tail(layers)) for _ in range(turns)]
        tails = [Tail.of(weight, random(limits.count, ranks, columns), starts) for weight in weights]
        up = random(limits.count, rows, limits.max_rank)
        stacks = [Stack(tail.down, up.clone(), starts, limits.max_rank) for tail in tails]
        ids = 1 + torch.arange(tokens, dtype=torch.int32, device=DEVICE) % limits.count
        return cls(weights, tails, stacks, random(tokens, columns), ids)

    @property
    def width(self) -> int:
        return self.states.shape[1]

    def extended(self, turn: int, config: LaunchConfig | None = None) -> Tensor:
        return extend(
            self.states, self.tails[turn], self.ids, config or of_size(len(self.states), LAUNCH_CONFIGS)
        )

    def beside(self, turn: int, weight: Tensor) -> None:
        output = F.linear(self.states, weight)
        triton_products.add(
            output,
            self.states,
            self.stacks[turn],
            self.ids,
            of_size(len(self.states), triton_products.LAUNCH_CONFIGS),
        )


def turns_for(columns: int, rows: int) -> int:
    return max(MIN_TURNS, CACHE_BYTES // (2 * columns * rows) + 1)


def measure(limits: AdapterLimits, tokens: int) -> None:
    totals = [0.0] * 5
    print(f"{tokens} tokens, {limits.count} adapters of rank {limits.max_rank}, µs a projection", flush=True)
    for name, (columns, parts) in PROJECTIONS.items():
        turns = turns_for(columns, sum(parts))
        this = Projection.made(columns, parts, limits, tokens, turns)
        plain = [weight[:, :columns].contiguous() for weight in this.weights]
        compile_ahead(DEVICE, lambda this=this, plain=plain: (this.extended(0), this.beside(0, plain[0])))
        extended = this.extended(0)
        found = [
            microseconds(lambda turn, this=this, plain=plain: F.linear(this.states, plain[turn]), turns),
            microseconds(
                lambda turn, this=this, states=extended: F.linear(states, this.weights[turn]), turns
            ),
            microseconds(this.extended, turns),
            microseconds(lambda turn, this=this: F.linear(this.extended(turn), this.weights[turn]), turns),
            microseconds(lambda turn, this=this, plain=plain: this.beside(turn, plain[turn]), turns),
        ]
        totals = [total + each for total, each in zip(totals, found, strict=True)]
        print(line(name, found), flush=True)
    print(line("a layer", totals), flush=True)


def line(name: str, found: list[float]) -> str:
    kinds = ("product", "with the tail", "extended", "both", "product and two kernels")
    return f"{name:8}" + "".join(f"  {kind} {us:6.2f}" for kind, us in zip(kinds, found, strict=True))


def tune(limits: AdapterLimits, tokens: int) -> None:
    """Of A alone there are as many as no cache holds: the weights are narrow here."""
    own = of_size(tokens, LAUNCH_CONFIGS)
    tried = [own, *(config._replace(tokens=own.tokens) for config in TUNED)]
    made = {
        name: Projection.made(
            columns,
            tuple(16 for _ in parts),
            limits,
            tokens,
            turns_for(columns, limits.count * len(parts) * limits.max_rank),
        )
        for name, (columns, parts) in PROJECTIONS.items()
    }
    compile_ahead(DEVICE, lambda: [each.extended(0, config) for each in made.values() for config in tried])
    lines: list[tuple[float, str]] = []
    for config in tried:
        found = {
            name: microseconds(
                lambda turn, each=each, config=config: each.extended(turn, config), len(each.tails)
            )
            for name, each in made.items()
        }
        told = "".join(f"  {name} {us:5.2f}" for name, us in found.items())
        own_mark = " (as it is)" if config == own else ""
        lines.append(
            (sum(found.values()), f"{sum(found.values()):6.2f} a layer:{told}  {tuple(config)}{own_mark}")
        )
    for _, told in sorted(lines, reverse=True):
        print(told)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, nargs="*", default=[32])
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument(
        "--tune",
        action="store_true",
        help="other launch configurations of what makes the states and their tail",
    )
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(message="no GPU here: nothing was measured\n")
    limits = AdapterLimits(options.adapters, options.rank)
    torch.manual_seed(0)
    for tokens in options.tokens:
        (tune if options.tune else measure)(limits, tokens)


if __name__ == "__main__":
    main()
