"""A service of a multimodal checkpoint whose layers keep states: its text, also when the executor dies."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from slipstream.protocol.errors import InvalidRequest
from tiny_models import EOS_TOKEN_ID, VOCAB_SIZE, auto_class, make_checkpoint

from slipstream import AsyncClient, SamplingParams, Sidecar

FAMILY = "qwen3_5"
TOKENS = 120
STREAMS = 5


def generated(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    """What transformers makes of each prompt."""
    model: Any = auto_class(FAMILY).from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = EOS_TOKEN_ID
    return [
        model.generate(torch.tensor([prompt]), max_new_tokens=TOKENS, do_sample=False)[
            0, len(prompt) :
        ].tolist()
        for prompt in prompts
    ]


def test_after_kill_9_of_the_executor_states_are_computed_again(tmp_path: Path) -> None:
    folder = make_checkpoint(FAMILY, tmp_path)
    prompts = [
        [(7 * row + 13 * at) % (VOCAB_SIZE - 2) for at in range(9 + 11 * row)] for row in range(STREAMS)
    ]
    expected = generated(folder, prompts)
    assert len({tuple(tokens) for tokens in expected}) == STREAMS, "the prompts must matter"
    options: dict[str, Any] = {
        "device": "cpu",
        "dtype": "float32",
        "max_num_seqs": 3,
        "max_num_batched_tokens": 16,
    }
    with Sidecar(folder, **options) as sidecar:
        executor = sidecar.pids["executor"]
        params = SamplingParams(max_tokens=TOKENS, temperature=0.0, ignore_eos=True)

        async def stream(client: AsyncClient, prompt: list[int], kill: bool) -> list[int]:
            tokens: list[int] = []
            async for delta in client.generate(prompt, params):
                tokens += delta.token_ids
                if kill and len(tokens) > TOKENS // 4:
                    os.kill(executor, signal.SIGKILL)
                    kill = False
            return tokens

        async def all_of_them() -> list[list[int]]:
            async with AsyncClient(sidecar.endpoint) as client:
                with pytest.raises(InvalidRequest, match="this service reads and writes text"):
                    async for _ in client.chat(
                        [{"role": "user", "content": [{"type": "image_url"}]}], params
                    ):
                        pass
                streams = [stream(client, prompt, row == 0) for row, prompt in enumerate(prompts)]
                return list(await asyncio.gather(*streams))

        assert asyncio.run(all_of_them()) == expected
        assert sidecar.pids["executor"] != executor
        assert "prompts that begin the same share nothing, since a state is in no block" in sidecar.log
