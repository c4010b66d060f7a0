"""What happens before the first request: everything that serving would meet cold, and nothing that it would notice."""

from __future__ import annotations

import importlib.util
import random
from typing import Any

import pytest
import torch
from slipstream.actors.executor.model.load import from_config
from slipstream.actors.executor.step.batch import StepShape
from slipstream.actors.executor.step.program import ModelProgram
from slipstream.actors.executor.step.warm_up import FEW, null_step, warm_up
from tiny_models import make_config

SLOTS, BLOCK, BUDGET = 48, 16, 96


def make_program(length: int, backend: str, dtype: torch.dtype = torch.float32) -> ModelProgram:
    config = make_config("llama", max_position_embeddings=length, head_dim=64)
    model = from_config(config, torch.device("cpu"), dtype, attention_backend=backend)
    with torch.inference_mode():
        return ModelProgram(model, SLOTS, length, 40, BLOCK)


def tensors(holder: object) -> dict[str, torch.Tensor]:
    return {name: value for name, value in vars(holder).items() if isinstance(value, torch.Tensor)}


@torch.inference_mode()
def test_it_leaves_every_sequence_slot_and_every_block_as_it_was() -> None:
    program = make_program(256, "torch")
    for layer in (*program.cache.keys, *program.cache.values):
        layer.normal_()
    held = tensors(program.state) | tensors(program.sampler)
    before = {name: tensor.clone() for name, tensor in held.items()}
    cache = [layer.clone() for layer in (*program.cache.keys, *program.cache.values)]
    timed = warm_up(program, BUDGET, 256, lambda: None)
    assert [tokens for tokens, _ in timed] == [FEW, BUDGET - 1]
    assert all(ns > 0 for _, ns in timed)
    for name, tensor in held.items():
        assert torch.equal(tensor[:SLOTS], before[name][:SLOTS]), name
    assert (program.state.finished[-1], program.state.position[-1]) == (True, 0)
    for layer, old in zip((*program.cache.keys, *program.cache.values), cache, strict=True):
        assert torch.equal(layer[1:], old[1:])
    assert torch.equal(program.block_tokens[BLOCK:], torch.zeros_like(program.block_tokens[BLOCK:]))


class StandIn:
    """In place of a kernel: notes what Triton would compile a variant for, and computes nothing."""

    def __init__(self, kernel: Any, variants: set[tuple[object, ...]]) -> None:
        self.kernel, self.variants = kernel, variants

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return self.launch

    def launch(self, *arguments: Any, **constants: Any) -> None:
        seen: list[object] = [self.kernel.fn.__name__, *sorted(constants.items())]
        for parameter, value in zip(self.kernel.params, arguments, strict=False):
            if isinstance(value, torch.Tensor):
                seen.append((parameter.name, value.dtype))
            elif isinstance(value, int) and not parameter.do_not_specialize:
                seen.append((parameter.name, value == 1, value % 16 == 0))
        self.variants.add(tuple(seen))


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@torch.inference_mode()
def test_serving_meets_no_kernel_that_it_has_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    from slipstream.actors.executor.attention import triton_backend, triton_plan, triton_write

    length = 4096
    variants: set[tuple[object, ...]] = set()
    kernels = [
        (triton_write, "write_kernel"),
        (triton_plan, "plan_kernel"),
        (triton_backend, "attend_kernel"),
        (triton_backend, "combine_kernel"),
    ]
    for module, name in kernels:
        monkeypatch.setattr(module, name, StandIn(getattr(module, name), variants))
    h200 = triton_backend.DeviceLimits(multiprocessors=132, shared_memory=233_472)
    monkeypatch.setattr(triton_backend, "device_limits", lambda device: h200)
    monkeypatch.setattr(triton_backend, "interpreted", lambda: True)  # for the check that there is a GPU

    program = make_program(length, "triton", torch.float16)
    warm_up(program, BUDGET, length, lambda: None)
    warm = set(variants)
    assert len(warm) > 8, "rows with one token and with more, whose keys may be in parts and may not"

    rng = random.Random(0)
    for _ in range(200):
        decodes = rng.randrange(SLOTS)
        first, chunks = decodes, []
        for _ in range(rng.randrange(3) if decodes else 1):
            count = rng.randrange(1, BUDGET)
            chunks.append((first, count, count + rng.randrange(length - count)))
            first += count
        shape = StepShape(
            decodes=decodes,
            chunks=tuple(chunks),
            samples=decodes + len(chunks),
            padding=0,
            joins=0,
            blocks=0,
            max_decode_kv_len=min(length, int(2 ** rng.uniform(0, 12.1))) if decodes else 0,
            greedy=True,
            truncated=False,
            min_tokens=False,
        )
        inputs = torch.zeros(shape.size, dtype=torch.int32)
        null_step(inputs, shape, SLOTS)
        program.run(inputs, torch.zeros(shape.output_size, dtype=torch.int32), shape)
        assert variants == warm, variants - warm
