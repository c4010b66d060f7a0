"""Services of models whose layers keep states, of different kinds: their text, also when actors die under it."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from covering import few_of
from slipstream.protocol.errors import InvalidRequest
from tiny_models import EOS_TOKEN_ID, VOCAB_SIZE, auto_class, make_checkpoint
from web import Web

from slipstream import AsyncClient, SamplingParams, Sidecar

FAMILIES = ("qwen3_5", "mamba2")
"""The delta rule, in a multimodal checkpoint; and the scan of Mamba 2, with no layer that attends."""

MORE_FAMILIES = ("jamba", "kimi_linear", "falcon_h1", "lfm2")
"""The scan of Mamba, a delta rule beside latent attention, a layer that scans and attends, a convolution alone."""

torch.set_num_threads(1)

TOKENS = 120
STREAMS = 5

IMAGE = "data:image/png;base64,iVBORw0KGgo="
PICTURES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": IMAGE}}]}]
    },
    "/v1/responses": {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": IMAGE}]}]},
    "/v1/messages": {
        "max_tokens": 3,
        "messages": [
            {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": IMAGE}}]}
        ],
    },
}
"""By path, a request with a picture in it."""


def generated(family: str, folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    """What transformers makes of each prompt."""
    model: Any = auto_class(family).from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = EOS_TOKEN_ID
    return [
        model.generate(torch.tensor([prompt]), max_new_tokens=TOKENS, do_sample=False)[
            0, len(prompt) :
        ].tolist()
        for prompt in prompts
    ]


@pytest.mark.parametrize("family", few_of([*FAMILIES, *MORE_FAMILIES], "qwen3_5"))
def test_after_kill_9_of_executor_and_scheduler_states_are_computed_again(
    family: str, soak: bool, tmp_path: Path
) -> None:
    """And a picture, asked for in any way, is an error that says so, which the streams do not notice."""
    if family in MORE_FAMILIES and not soak:
        pytest.skip("a long drill: run it with --soak")
    folder = make_checkpoint(family, tmp_path)
    prompts = [
        [(7 * row + 13 * at) % (VOCAB_SIZE - 2) for at in range(9 + 11 * row)] for row in range(STREAMS)
    ]
    expected = generated(family, folder, prompts)
    assert len({tuple(tokens) for tokens in expected}) == STREAMS, "the prompts must matter"
    options: dict[str, Any] = {
        "device": "cpu",
        "dtype": "float32",
        "max_num_seqs": 3,
        "max_num_batched_tokens": 16,
        "http": "127.0.0.1:0",
    }
    with Sidecar(folder, **options) as sidecar:
        before = dict(sidecar.pids)
        params = SamplingParams(max_tokens=TOKENS, temperature=0.0, ignore_eos=True)

        async def stream(client: AsyncClient, prompt: list[int], kills: dict[int, str]) -> list[int]:
            """``kills``: behind how many tokens which actor is killed."""
            tokens: list[int] = []
            async for delta in client.generate(prompt, params):
                tokens += delta.token_ids
                for after in [after for after in kills if len(tokens) > after]:
                    os.kill(sidecar.pids[kills.pop(after)], signal.SIGKILL)
            return tokens

        async def all_of_them() -> list[list[int]]:
            async with AsyncClient(sidecar.endpoint) as client:
                kills = {TOKENS // 4: "executor", TOKENS * 3 // 4: "scheduler"}
                streams = asyncio.gather(
                    *(stream(client, prompt, {} if row else kills) for row, prompt in enumerate(prompts))
                )
                with pytest.raises(InvalidRequest, match="this service reads and writes text"):
                    async for _ in client.chat(
                        [{"role": "user", "content": [{"type": "image_url"}]}], params
                    ):
                        pass
                ask = Web(sidecar.ready["http"])
                for path, body in PICTURES.items():
                    reply = await asyncio.to_thread(ask, path, body)
                    assert (reply.status, "this service reads" in reply.json["error"]["message"]) == (
                        400,
                        True,
                    )
                return list(await streams)

        assert asyncio.run(all_of_them()) == expected
        assert sidecar.pids["executor"] != before["executor"]
        assert sidecar.pids["scheduler"] != before["scheduler"]
        assert "prompts that begin the same share nothing, since a state is in no block" in sidecar.log
