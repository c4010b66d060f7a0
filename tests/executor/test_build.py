"""What the executor decides when it knows its device."""

from __future__ import annotations

import pytest
from slipstream.actors.executor.engine import max_batched_tokens
from slipstream.actors.options import ModelOptions

from slipstream.options import ServeOptions
from slipstream.service import executor_options

MODEL = ModelOptions(model="/nowhere", vocab_size=10, max_model_len=10, eos_token_ids=())


@pytest.mark.parametrize(
    ("device", "stated", "slots", "tokens"),
    [
        ("cuda:1", None, 256, 2048),
        ("cpu", None, 256, 512),
        ("emulated", None, 256, 2048),
        ("cpu", None, 1000, 1000),
        ("cuda:0", 64, 16, 64),
    ],
)
def test_a_step_has_as_many_tokens_as_stated_or_as_suit_the_device_and_one_for_each_sequence(
    device: str, stated: int | None, slots: int, tokens: int
) -> None:
    options = executor_options(ServeOptions(max_num_batched_tokens=stated, max_num_seqs=slots), MODEL)
    assert max_batched_tokens(options, device) == tokens
