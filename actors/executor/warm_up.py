"""Steps of null rows: they compute and move nothing, for what has to happen once before anyone waits for it.

Triton compiles a kernel when it first meets it, cuBLAS and torch load theirs then, and memory is first taken:
together seconds, in which every stream would stand still.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .batch import StepShape
from .program import ModelProgram


def warm_up(program: ModelProgram, max_batched_tokens: int, max_model_len: int) -> None:
    """Run a mixed step for each way in which attention cuts a context, the first with as many tokens as fit.

    Attention chooses its kernels by the reach of the longest row that decodes, up to powers of two.
    """
    null_slot, device = program.state.finished.shape[0] - 1, program.model.device
    tokens = max(1, min(max_batched_tokens - 1, max_model_len))
    reaches = [max_model_len, *(1 << power for power in range(max_model_len.bit_length()))]
    for number, reach in enumerate(reaches):
        shape = StepShape(
            decodes=1,
            chunks=((1, tokens, tokens),),
            samples=2,
            padding=0,
            joins=0,
            blocks=1,
            max_decode_kv_len=reach,
            greedy=number > 0,
            truncated=False,
            min_tokens=False,
        )
        inputs = torch.zeros(shape.size, dtype=torch.int32, device=device)
        null_step(inputs, shape, null_slot)
        program.run(inputs, torch.zeros(shape.output_size, dtype=torch.int32, device=device), shape)
        tokens = 1


def null_step(inputs: Tensor, shape: StepShape, null_slot: int) -> None:
    """Packed inputs of a step in which every row is padding; ``inputs`` are zeros."""
    at = shape.sections
    starts = [*range(shape.decodes), *(first for first, _, _ in shape.chunks), shape.tokens]
    for name in ("row_slots", "token_slots", "sample_slots"):
        inputs[at[name]] = null_slot
    inputs[at["query_start"]] = torch.tensor(starts, dtype=torch.int32, device=inputs.device)
    inputs[at["logits_index"]] = torch.arange(shape.samples, dtype=torch.int32, device=inputs.device)
    inputs[at["blocks"]].view(-1, 3)[:, 0] = null_slot
