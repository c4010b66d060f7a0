"""The kernels that sample tokens take those that plain torch takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from interpreter import DEVICE, needs_interpreter, needs_kernels, run_interpreted
from slipstream.actors.executor.sampling.sampler import Sampler
from slipstream.actors.executor.step.fields import JOIN, column
from slipstream.actors.executor.step.sampling_kind import SamplingKind
from torch import Tensor

ROWS = 40


@needs_interpreter
def test_under_the_interpreter() -> None:
    run_interpreted(__file__)


def make_logits(vocab: int, dtype: torch.dtype) -> Tensor:
    """Rows of which some have equal greatest logits, some are almost flat and some have impossible tokens."""
    logits = torch.randn(ROWS, vocab, generator=torch.Generator().manual_seed(vocab)) * 3
    logits[::4] = (logits[::4] * 2).round()
    logits[1::4] *= 0.01
    logits[2::4, : vocab // 2] = float("-inf")
    return logits.to(DEVICE, dtype)


def make_requests() -> Tensor:
    records = np.zeros(ROWS, JOIN)
    records["temperature"] = np.resize([1.0, 0.0, 0.7, 3.0, 1e-3, 1e-30], ROWS)
    records["top_k"] = np.resize([0, 0, 0, 1, 0], ROWS)
    records["top_p"] = 1.0
    records["seed_low"], records["seed_high"] = np.arange(ROWS) * -77, np.arange(ROWS) - 20
    records["prompt_len"] = np.arange(ROWS) % 7
    return torch.from_numpy(records.view(np.int32).reshape(ROWS, -1)).to(DEVICE)


def plain(logits: Tensor, requests: Tensor, position: Tensor, kind: SamplingKind) -> list[int]:
    """The path of the CPU."""
    sampler = Sampler(1, logits.shape[1], torch.device("cpu"))
    slots = torch.zeros(ROWS, dtype=torch.int64)
    return sampler.sample(logits.cpu(), slots, requests.cpu(), position.cpu(), kind).tolist()


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("vocab", [7, 256, 2048, 5003])
def test_the_same_tokens_as_in_plain_torch(vocab: int, dtype: torch.dtype) -> None:
    from slipstream.actors.executor.sampling.kernels import best_tokens, sampled_tokens

    logits, requests = make_logits(vocab, dtype), make_requests()
    position = torch.arange(ROWS, device=DEVICE) + 100
    names = ("temperature", "top_k", "prompt_len", "seed_low", "seed_high")
    fields: list[Any] = [column(requests, JOIN, name) for name in names]
    found = best_tokens(logits)
    assert found.dtype == torch.int32
    assert found.tolist() == plain(logits, requests, position, SamplingKind())
    found = sampled_tokens(logits, position, *fields)
    assert found.dtype == torch.int32
    expected = plain(logits, requests, position, SamplingKind(greedy=False))
    assert found.tolist() == expected
    assert len(set(expected)) > min(vocab, ROWS) // 3, "the draws must matter"


@needs_kernels
def test_a_row_that_is_not_a_number_gets_some_token_of_the_vocabulary() -> None:
    from slipstream.actors.executor.sampling.kernels import best_tokens, sampled_tokens

    logits, requests = make_logits(5003, torch.float32), make_requests()
    logits[3] = float("nan")
    logits[4] = float("-inf")
    names = ("temperature", "top_k", "prompt_len", "seed_low", "seed_high")
    position = torch.arange(ROWS, device=DEVICE)
    for found in (
        best_tokens(logits),
        sampled_tokens(logits, position, *(column(requests, JOIN, name) for name in names)),
    ):
        assert 0 <= int(found.min()) <= int(found.max()) < 5003


@needs_kernels
def test_a_batch_invariant_row_is_drawn_for_by_the_same_kernels_beside_one_that_asks_for_more() -> None:
    from slipstream.actors.executor.sampling.invariant import SameKernelsSampler
    from slipstream.actors.executor.sampling.kernels import sampled_tokens

    logits, requests = make_logits(5003, torch.float32), make_requests()
    choosing = column(requests, JOIN, "top_k")
    choosing[::3] = 5
    column(requests, JOIN, "top_p")[1::3] = 0.9
    position = torch.arange(ROWS, device=DEVICE) + 100
    kind = SamplingKind(greedy=False, truncated=True, candidates=5, nucleus=True)
    sampler = SameKernelsSampler(1, 5003, DEVICE)

    def asked(name: str) -> Tensor:
        return column(requests, JOIN, name)

    found = sampler.draw(logits, position, asked, kind)
    names = ("temperature", "top_k", "prompt_len", "seed_low", "seed_high")
    alone = sampled_tokens(logits, position, *(asked(name) for name in names))
    assert torch.equal(found[2::3], alone[2::3]), "those that ask for nothing"
    assert found.tolist() == plain(logits, requests, position, kind)
    assert not torch.equal(found, alone), "what is left out must matter"
