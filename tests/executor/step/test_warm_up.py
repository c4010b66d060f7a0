"""What happens before the first request: everything that serving would meet cold, and nothing that it would notice."""

from __future__ import annotations

import pytest
import torch
from slipstream.actors.executor.model.loading.load import from_config
from slipstream.actors.executor.step.buckets import buckets_of
from slipstream.actors.executor.step.description import Step
from slipstream.actors.executor.step.model_runner import ModelRunner
from slipstream.actors.executor.step.warm_up import largest_step, null_run, steps_of_all_kernels, warm_up
from tiny_models import make_config

SLOTS, BLOCK, BUDGET = 48, 16, 96


def make_runner(length: int, backend: str, dtype: torch.dtype = torch.float32) -> ModelRunner:
    config = make_config("llama", max_position_embeddings=length, head_dim=64)
    model = from_config(config, torch.device("cpu"), dtype, attention_backend=backend)
    with torch.inference_mode():
        return ModelRunner(model, SLOTS, length, BLOCK, 40)


def tensors(holder: object) -> dict[str, torch.Tensor]:
    return {name: value for name, value in vars(holder).items() if isinstance(value, torch.Tensor)}


@torch.inference_mode()
def test_it_leaves_every_sequence_slot_and_every_block_as_it_was() -> None:
    runner = make_runner(256, "torch")
    for layer in (*runner.cache.keys, *runner.cache.values):
        layer.normal_()
    held = tensors(runner.table) | tensors(runner.sampler)
    before = {name: tensor.clone() for name, tensor in held.items()}
    cache = [layer.clone() for layer in (*runner.cache.keys, *runner.cache.values)]
    buckets = buckets_of(SLOTS, BUDGET, 256)
    for everything in (False, True):
        null_run(runner, runner.run, largest_step(buckets, 256, everything=everything), 256)()
    timed = warm_up(runner, runner.run, buckets, 256, lambda: None)
    assert [tokens for tokens, _ in timed] == [16, 24, 32, 48, 64, BUDGET]
    assert all(ns > 0 for _, ns in timed)
    for name, tensor in held.items():
        assert torch.equal(tensor[:SLOTS], before[name][:SLOTS]), name
    assert (runner.table.finished[-1], runner.table.position[-1]) == (True, 0)
    for layer, old in zip((*runner.cache.keys, *runner.cache.values), cache, strict=True):
        assert torch.equal(layer[1:], old[1:])
    assert torch.equal(runner.block_tokens[BLOCK:], torch.zeros_like(runner.block_tokens[BLOCK:]))


@torch.inference_mode()
def test_no_step_of_null_rows_uses_what_a_kernel_writes_as_an_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that kernels can be compiled ahead by a run that leaves them out (``triton_tools/compilation.py``)."""
    runner = make_runner(256, "torch")
    model, buckets = runner.model, buckets_of(SLOTS, BUDGET, 256)

    def nothing_written(*given: object) -> torch.Tensor:
        tokens, _, _, logits_index = given
        asked = tokens if logits_index is None else logits_index
        assert isinstance(asked, torch.Tensor)
        return torch.full((len(asked), model.vocab_size), float("nan"))

    monkeypatch.setattr(model, "forward", nothing_written)
    monkeypatch.setattr(
        runner.sampler,
        "sample",
        lambda logits, *rest: torch.full((len(logits),), 1 << 30, dtype=torch.int32),
    )
    for step in steps_of_all_kernels(buckets, 256):
        null_run(runner, runner.run, step, 256)()
    assert runner.table.tokens.abs().max() < model.vocab_size
    assert runner.block_tokens.abs().max() < model.vocab_size
    assert runner.table.position.tolist() == [0] * (SLOTS + 1)


@torch.inference_mode()
def test_it_draws_and_attends_to_few_keys_and_to_many() -> None:
    """Each is a kernel of its own, which nobody shall wait for when streams run."""
    runner = make_runner(256, "torch")
    met: set[tuple[bool, int]] = set()
    decoded: list[int] = []

    def run(inputs: torch.Tensor, outputs: torch.Tensor, step: Step) -> None:
        met.add((step.kind.greedy, step.max_kv_len))
        if step.layout.decode_only:
            decoded.append(step.layout.rows)
        runner.run(inputs, outputs, step)

    warm_up(runner, run, buckets_of(SLOTS, BUDGET, 256), 256, lambda: None)
    assert met == {(False, 1), (True, 256)}
    assert decoded == [1, SLOTS], "a graph of these is uploaded when it is first replayed"
