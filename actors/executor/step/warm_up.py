"""Steps of null rows: they compute and move nothing, for what has to happen once before anyone waits for it.

Triton compiles a kernel when it first meets it, cuBLAS and torch load theirs then, and memory is first taken:
together seconds, in which every stream would stand still.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ....protocol.limits import MAX_LOGPROBS, PROMPT_LOGPROBS_PER_STEP
from .batch import MIN_CANDIDATES
from .buckets import Buckets, padded
from .description import Step
from .layout import StepLayout, layout_of
from .model_runner import ModelRunner
from .sampling_kind import SamplingKind

TIMED_SIZES = 6
"""Sizes of steps that are timed, from the smallest to the largest. The time is nearly linear in the tokens of a prompt,
so a line through few points is enough, and each costs time at every first start."""

TIMES = 3
"""Runs of each size, of which the fastest counts: others on the machine only ever make one slower."""


def mixed_layout(buckets: Buckets, tokens: int, *, reports: bool = False) -> StepLayout:
    """The layout of a step of ``tokens`` tokens, prompts among them, without changes.

    ``reports``: it also gives logprobs of prompts.
    """
    rows = buckets.rows_for(tokens)
    return layout_of(
        seq_slots=buckets.seq_slots,
        decode_only=False,
        rows=rows,
        tokens=tokens,
        logits=rows + (PROMPT_LOGPROBS_PER_STEP if reports else 0),
        samples=padded(1, buckets.decode),
        prompt_logits_start=rows,
    )


def decode_layout(buckets: Buckets, rows: int) -> StepLayout:
    """The layout of a step whose rows all decode, without changes."""
    return layout_of(
        seq_slots=buckets.seq_slots, decode_only=True, rows=rows, tokens=rows, logits=rows, samples=rows
    )


def null_inputs(inputs: Tensor, layout: StepLayout, null_slot: int, max_model_len: int) -> None:
    """Pack a step of ``layout`` whose rows are all padding; those of a step with prompts are as long as can be."""
    inputs[: layout.input_size] = 0
    layout.view(inputs, "sample_slots")[:] = null_slot
    if layout.decode_only:
        return
    longest = longest_null_row(layout, max_model_len)
    starts = torch.arange(layout.rows + 1, device=inputs.device) * longest
    token = torch.arange(layout.tokens, device=inputs.device)
    layout.view(inputs, "row_slots")[:] = null_slot
    layout.view(inputs, "query_start")[:] = starts.clamp(max=layout.tokens)
    layout.view(inputs, "token_slots")[:] = null_slot
    layout.view(inputs, "token_offsets")[:] = token % longest


def longest_null_row(layout: StepLayout, max_model_len: int) -> int:
    return max(min(layout.tokens, max_model_len), -(-layout.tokens // layout.rows))


def null_row_tokens(layout: StepLayout, max_model_len: int) -> tuple[int, ...]:
    """As ``Step.row_tokens``, of the rows that ``null_inputs`` packs."""
    longest = longest_null_row(layout, max_model_len)
    whole, rest = divmod(layout.tokens, longest)
    return (longest,) * whole + ((rest,) if rest else ())


def null_run(
    runner: ModelRunner,
    run: Callable[[Tensor, Tensor, Step], None],
    step: Step,
    max_model_len: int,
) -> Callable[[], None]:
    """A run of ``step`` by ``run`` with inputs and outputs of its own, all of whose rows are padding.

    They are written on the current stream, on which the run belongs.
    """
    device = runner.model.device
    inputs = torch.zeros(step.layout.input_size, dtype=torch.int32, device=device)
    outputs = torch.zeros(step.results.size, dtype=torch.int32, device=device)
    null_inputs(inputs, step.layout, step.layout.seq_slots, max_model_len)
    if runner.states is not None:
        step = replace(step, row_tokens=null_row_tokens(step.layout, max_model_len))
    return lambda: run(inputs, outputs, step)


def largest_step(buckets: Buckets, max_model_len: int, *, everything: bool) -> Step:
    """The step with the most tokens, of which every row samples: by a temperature alone, or, with ``everything``, by
    all parameters that there are."""
    layout = mixed_layout(buckets, buckets.mixed[-1], reports=everything)
    # Logits of prompts begin behind those of all rows, of which each samples.
    layout = replace(layout, samples=layout.prompt_logits_start)
    if not everything:
        return Step(layout, SamplingKind(greedy=False), num_samples=0, max_kv_len=max_model_len)
    layout = replace(layout, prompt_logprobs=PROMPT_LOGPROBS_PER_STEP)
    columns = 1 + MAX_LOGPROBS
    kind = SamplingKind(
        greedy=False,
        truncated=True,
        candidates=MIN_CANDIDATES,
        nucleus=True,
        min_tokens=True,
        penalties=True,
        biased=True,
        logprobs=columns,
    )
    return Step(layout, kind, num_samples=0, max_kv_len=max_model_len, prompt_columns=columns)


def decode_step(buckets: Buckets, rows: int, max_kv_len: int) -> Step:
    """``rows`` rows, all of which decode."""
    return Step(decode_layout(buckets, rows), SamplingKind(), num_samples=0, max_kv_len=max_kv_len)


def steps_of_all_kernels(buckets: Buckets, max_model_len: int) -> Iterator[Step]:
    """Steps that need every kernel there is: attention has others for few rows, few keys and short prompts, products
    with quantized weights for 1, 16, 32 and 64 rows."""
    yield largest_step(buckets, max_model_len, everything=False)
    yield Step(
        mixed_layout(buckets, buckets.mixed[0]), SamplingKind(), num_samples=0, max_kv_len=max_model_len
    )
    most = buckets.decode[-1]
    for rows in sorted({padded(min(rows, most), buckets.decode) for rows in (1, 16, 32, 64, most)}):
        for max_kv_len in (1, max_model_len):
            yield decode_step(buckets, rows, max_kv_len)


def warm_up(
    runner: ModelRunner,
    run: Callable[[Tensor, Tensor, Step], None],
    buckets: Buckets,
    max_model_len: int,
    synchronize: Callable[[], None],
) -> list[tuple[int, int]]:
    """Run steps with prompts of several sizes by ``run``, the runner's or that of its graphs, and some that decode.

    Returns for each with prompts its tokens, and the ns that it took until ``synchronize`` saw it end.
    """
    most = len(buckets.mixed) - 1
    sizes = sorted({buckets.mixed[most * n // (TIMED_SIZES - 1)] for n in range(TIMED_SIZES)})
    timed: list[tuple[int, int]] = []
    for tokens in sizes:
        layout = mixed_layout(buckets, tokens)
        step = Step(layout, SamplingKind(), num_samples=0, max_kv_len=max_model_len)
        if not timed:  # kernels that are the same for all sizes: those that draw
            short = replace(step, kind=SamplingKind(greedy=False), max_kv_len=1)
            null_run(runner, run, short, max_model_len)()
        once = null_run(runner, run, step, max_model_len)
        took: list[int] = []
        for _ in range(TIMES):
            synchronize()
            begun = time.monotonic_ns()
            once()
            synchronize()
            took.append(time.monotonic_ns() - begun)
        timed.append((tokens, min(took)))
    for rows in (buckets.decode[0], buckets.decode[-1]):
        null_run(runner, run, decode_step(buckets, rows, max_model_len), max_model_len)()
    synchronize()
    return timed
