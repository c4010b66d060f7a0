"""The logprobs of a prompt: those of the model, however the prompt was cut and whatever was cached."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch
from simulation import World, byte_tokenizer
from slipstream.actors.public.connections import MAX_WAITING_TOKENS, by_weight, weight_of
from slipstream.actors.text.tokenizer import Tokenizer
from slipstream.protocol.errors import InvalidRequest
from slipstream.protocol.internal import Plan, Refused, Submit
from slipstream.protocol.limits import MAX_PROMPT_LOGPROBS, PROMPT_LOGPROBS_PER_STEP, Limits
from slipstream.protocol.messages import Delta
from transformers import AutoModelForCausalLM

from slipstream import LLM, SamplingParams
from slipstream.serving.service import BUNDLED_MODEL


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(device="cpu", dtype="float32", max_num_seqs=8, max_num_batched_tokens=300) as llm:
        yield llm


def prompt_of(seed: int, tokens: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(5, 2000) for _ in range(tokens)]


@pytest.fixture(scope="module")
def reference() -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(BUNDLED_MODEL, dtype=torch.float32).eval()


@torch.inference_mode()
def log_softmax(reference: torch.nn.Module, prompt: list[int]) -> torch.Tensor:
    """float32 [tokens, vocab] of transformers itself."""
    return reference(torch.tensor([prompt])).logits[0].float().log_softmax(-1)


@pytest.mark.parametrize(
    ("tokens", "logprobs"), [(2, 3), (40, 0), (3 * PROMPT_LOGPROBS_PER_STEP + 17, 5), (333, 20)]
)
def test_they_are_those_of_transformers(
    llm: LLM, reference: torch.nn.Module, tokens: int, logprobs: int
) -> None:
    """Beside others, of a prompt that is longer than what one step tells, and that is cached."""
    prompt = prompt_of(tokens, tokens)
    llm.generate([prompt], SamplingParams(max_tokens=1))
    others = [SamplingParams(max_tokens=20), SamplingParams(max_tokens=20, prompt_logprobs=2)]
    asked = SamplingParams(max_tokens=3, temperature=0.0, prompt_logprobs=logprobs, logprobs=1)
    output = llm.generate([prompt_of(7, 50), prompt_of(8, 60), prompt], [*others, asked])[2]
    told = output.prompt_logprobs
    assert told is not None
    assert len(told) == tokens
    assert told[0] is None
    expected = log_softmax(reference, prompt)
    for position, row in enumerate(told[1:], 1):
        before = expected[position - 1]
        best = before.topk(logprobs).indices.tolist() if logprobs else []
        assert row is not None
        assert next(iter(row)) == prompt[position]
        assert len(row) == len({prompt[position], *best})
        for token, value in row.items():
            assert value == pytest.approx(before[token].item(), abs=2e-3)
        if best:
            assert min(row.values()) == pytest.approx(min(before[[*best, prompt[position]]]).item(), abs=2e-3)
    assert output.usage is not None
    assert output.usage.cached_tokens == 0


def test_a_prompt_of_one_token_has_nothing_before_it(llm: LLM) -> None:
    [output] = llm.generate([[9]], SamplingParams(max_tokens=2, prompt_logprobs=2))
    assert output.prompt_logprobs == [None]


def test_only_who_asks_is_told_and_only_once_among_several_answers(llm: LLM) -> None:
    plain, several = llm.generate(
        [[9, 10, 11]] * 2,
        [SamplingParams(max_tokens=2), SamplingParams(max_tokens=2, n=3, prompt_logprobs=0)],
    )
    assert plain.prompt_logprobs is None
    assert several.prompt_logprobs is not None
    assert [row and list(row) for row in several.prompt_logprobs] == [None, [10], [11]]


def test_no_step_tells_more_than_its_bound() -> None:
    """Many long prompts that ask: their logits are what would take the memory."""
    world = World(3, depth=2, slots=4, blocks=80, budget=1000)
    told: list[int] = []
    executor = world.actors["executor"]
    stage = executor.batch.stage  # type: ignore[attr-defined]

    def noted(plan: Plan, staging: object) -> object:
        step = stage(plan, staging)
        told.append(step.layout.prompt_logprobs)
        return step

    executor.batch.stage = noted  # type: ignore[attr-defined]
    world.connect(b"ann")
    for number in range(6):
        prompt = prompt_of(number, 150)
        params = SamplingParams(max_tokens=2, seed=1, prompt_logprobs=1)
        world.ask(b"ann", str(number), [token % 256 for token in prompt], params)
    world.run(world.over)
    world.check()
    assert max(told) == PROMPT_LOGPROBS_PER_STEP
    assert sum(told) == 6 * 149


def test_too_many_are_refused_with_the_limit() -> None:
    tokenizer = Tokenizer(byte_tokenizer(), "no template", 100_000)
    prompt = (b"\5\0\0\0") * 50_000
    params = SamplingParams(seed=1, prompt_logprobs=1)
    [(_, refused)] = [
        sent
        for sent in tokenizer.receive(
            "gateway", Submit(1, None, params, prompt_ids=prompt + b"\5\0\0\0"), 0.0
        )
        if isinstance(sent[1], Refused)
    ]
    assert f"are 100002 logprobs; the limit is {MAX_PROMPT_LOGPROBS}" in refused.message
    accepted = tokenizer.receive("gateway", Submit(2, None, params, prompt_ids=prompt), 0.0)
    assert not any(isinstance(message, Refused) for _, message in accepted)
    with pytest.raises(InvalidRequest, match="prompt_logprobs=21"):
        SamplingParams(prompt_logprobs=21).check(
            Limits(max_model_len=10, vocab_size=100, max_prompt_bytes=100)
        )


def test_a_message_to_a_client_has_a_bounded_number_of_logprobs() -> None:
    deltas = [Delta(id=str(n), prompt_logprobs=[None] + [{"1": -1.0, "2": -2.0}] * 15_000) for n in range(9)]
    parts = list(by_weight(deltas))
    assert [delta for part in parts for delta in part] == deltas
    assert all(sum(map(weight_of, part)) <= MAX_WAITING_TOKENS for part in parts)
    assert len(parts) == 3
