"""Steps of null rows: they compute and move nothing, for what has to happen once before anyone waits for it.

Triton compiles a kernel when it first meets it, cuBLAS and torch load theirs then, and memory is first taken:
together seconds, in which every stream would stand still.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from .batch import StepShape
from .program import ModelProgram

FEW = 16
"""Tokens of the smaller step that is timed."""

TIMES = 3
"""How often each is run; the fastest counts."""


def warm_up(
    program: ModelProgram, max_batched_tokens: int, max_model_len: int, synchronize: Callable[[], None]
) -> list[tuple[int, int]]:
    """Run mixed steps: one for each way in which attention cuts a context, and some of few tokens and of many.

    Attention chooses its kernels by the reach of the longest row that decodes, up to powers of two. Returns the
    tokens of prompts in the last, and the ns that they took until ``synchronize`` saw them end.
    """
    most = max(1, min(max_batched_tokens - 1, max_model_len))
    for number, reach in enumerate([max_model_len, *(1 << n for n in range(max_model_len.bit_length()))]):
        run_mixed(program, 1, reach, greedy=number > 0)
    timed: list[tuple[int, int]] = []
    for tokens in (min(FEW, most), most):
        times: list[int] = []
        for _ in range(TIMES):
            synchronize()
            begun = time.monotonic_ns()
            run_mixed(program, tokens, 1, greedy=True)
            synchronize()
            times.append(time.monotonic_ns() - begun)
        timed.append((tokens, min(times)))
    return timed


def run_mixed(program: ModelProgram, tokens: int, reach: int, *, greedy: bool) -> None:
    """A row that decodes, with a context of at most ``reach``, and one that prefills so many tokens."""
    null_slot, device = program.state.finished.shape[0] - 1, program.model.device
    shape = StepShape(
        decodes=1,
        chunks=((1, tokens, tokens),),
        samples=2,
        padding=0,
        joins=0,
        blocks=1,
        max_decode_kv_len=reach,
        greedy=greedy,
        truncated=False,
        min_tokens=False,
    )
    inputs = torch.zeros(shape.size, dtype=torch.int32, device=device)
    null_step(inputs, shape, null_slot)
    program.run(inputs, torch.zeros(shape.output_size, dtype=torch.int32, device=device), shape)


def null_step(inputs: Tensor, shape: StepShape, null_slot: int) -> None:
    """Packed inputs of a step in which every row is padding; ``inputs`` are zeros."""
    at = shape.sections
    starts = [*range(shape.decodes), *(first for first, _, _ in shape.chunks), shape.tokens]
    for name in ("row_slots", "token_slots", "sample_slots"):
        inputs[at[name]] = null_slot
    inputs[at["query_start"]] = torch.tensor(starts, dtype=torch.int32, device=inputs.device)
    inputs[at["logits_index"]] = torch.arange(shape.samples, dtype=torch.int32, device=inputs.device)
    inputs[at["blocks"]].view(-1, 3)[:, 0] = null_slot
