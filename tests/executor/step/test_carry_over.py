"""What the device is asked to guard by itself: reads of unwritten tokens, and ends by length."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from slipstream.actors.executor.model.loading.load import from_config
from slipstream.actors.executor.step.batch import RunningBatch
from slipstream.actors.executor.step.emulated_runner import EmulatedRunner
from slipstream.actors.executor.step.model_runner import ModelRunner
from slipstream.protocol.internal import Join, Plan
from transformers import LlamaConfig

SLOTS, LENGTH, BLOCK, VOCAB = 3, 32, 4, 40
PROMPT = np.array([3, 1, 4, 1, 5], np.int32)

Run = Callable[[Plan], list[int]]


def make_runner(check: bool) -> ModelRunner:
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
    )
    model = from_config(config, torch.device("cpu"), torch.float32)
    return ModelRunner(model, SLOTS, LENGTH, BLOCK, 24, check_carry_over=check)


@pytest.fixture(params=["cpu", "emulated"])
def start(request: pytest.FixtureRequest) -> Callable[..., tuple[Run, ModelRunner | EmulatedRunner]]:
    """A runner and a function that runs one plan on it, and returns the tokens."""

    def make(check: bool = True) -> tuple[Run, ModelRunner | EmulatedRunner]:
        batch = RunningBatch(SLOTS, 16, LENGTH // BLOCK)
        if request.param == "cpu":
            with torch.inference_mode():
                runner: ModelRunner | EmulatedRunner = make_runner(check)
        else:
            runner = EmulatedRunner(SLOTS, LENGTH, VOCAB, check_carry_over=check)

        def run(plan: Plan) -> list[int]:
            staging = np.zeros(batch.input_capacity, np.int32)
            step = batch.stage(plan, staging)
            outputs = np.zeros(batch.output_capacity, np.int32)
            with torch.inference_mode():
                if isinstance(runner, ModelRunner):
                    runner.run(torch.from_numpy(staging), torch.from_numpy(outputs), step)
                else:
                    runner.run(staging, outputs, step)
            return step.unpack(outputs)[0].tolist()

        return run, runner

    return make


def first_plan(max_length: int = LENGTH) -> Plan:
    join = Join(
        slot=1,
        tokens=PROMPT.tobytes(),
        prompt_len=len(PROMPT),
        start=0,
        temperature=0.0,
        top_p=1.0,
        top_k=0,
        min_p=0.0,
        seed=1,
        min_tokens=0,
        stop_tokens=b"",
        max_length=max_length,
    )
    blocks = np.array([(1, block) for block in range(1, 8)], np.int32)
    chunks = np.array([(1, len(PROMPT))], np.int32)
    return Plan(0, joins=[join], blocks=blocks.tobytes(), chunks=chunks.tobytes())


def lose_a_carry_over(runner: ModelRunner | EmulatedRunner) -> None:
    """Let the next step run ahead of what was sampled."""
    table = runner.table if isinstance(runner, ModelRunner) else runner
    with torch.inference_mode():
        table.position[1] += 2


def test_the_device_ends_a_sequence_by_its_length(
    start: Callable[..., tuple[Run, ModelRunner | EmulatedRunner]],
) -> None:
    run, _ = start()
    tokens = [run(first_plan(max_length=len(PROMPT) + 3)), *(run(Plan(step)) for step in range(1, 6))]
    assert all(token >= 0 for (token,) in tokens[:3])
    assert tokens[3:] == [[-1]] * 3, "rows already launched for a finished sequence are masked"


def test_a_step_that_reads_what_no_step_has_written_is_stopped(
    start: Callable[..., tuple[Run, ModelRunner | EmulatedRunner]],
) -> None:
    run, runner = start()
    run(first_plan())
    run(Plan(1))
    lose_a_carry_over(runner)
    with pytest.raises(RuntimeError, match="a token that no step has written"):
        run(Plan(2))


def test_nothing_is_checked_where_nobody_asks(
    start: Callable[..., tuple[Run, ModelRunner | EmulatedRunner]],
) -> None:
    run, runner = start(check=False)
    run(first_plan())
    lose_a_carry_over(runner)
    assert run(Plan(1))[0] >= 0
