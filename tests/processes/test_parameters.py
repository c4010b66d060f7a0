"""Every sampling parameter has its effect, from the client to the device and back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from slipstream import AsyncClient, Client, DeadlineExceeded, SamplingParams, Sidecar

PROMPT = "Once upon a time there was"
LENGTH = 24
EOS = 0
"""Of the bundled model."""


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    # float32: answers are compared, and in bfloat16 one may go on otherwise where its prompt is cached
    with Sidecar(device="cpu", dtype="float32", max_num_seqs=4) as started:
        yield started


@pytest.fixture(scope="module")
def client(sidecar: Sidecar) -> Iterator[Client]:
    with sidecar.client() as connected:
        yield connected


def answer(client: Client, **params: Any) -> Any:
    told: dict[str, Any] = {"max_tokens": LENGTH, "temperature": 0.0, "ignore_eos": True} | params
    return client.generate(PROMPT, SamplingParams(**told)).outputs[0]


@pytest.fixture(scope="module")
def plain(client: Client) -> list[int]:
    """The greedy answer, with the prompt cached as it is for all that are compared with it."""
    answer(client)
    return answer(client).token_ids


def test_max_tokens(client: Client, plain: list[int]) -> None:
    output = answer(client, max_tokens=5)
    assert (output.token_ids, output.finish_reason) == (plain[:5], "length")


def test_stop_token_ids(client: Client, plain: list[int]) -> None:
    stop = plain[6]
    output = answer(client, stop_token_ids=[stop])
    assert output.token_ids == plain[: plain.index(stop) + 1]
    assert (output.finish_reason, output.stop_reason) == ("stop", stop)


def test_stop_texts(client: Client, plain: list[int]) -> None:
    text = answer(client).text
    stop = text[10:14]
    output = answer(client, stop=[stop, "not there"])
    assert output.text == text[: text.index(stop)]
    assert (output.finish_reason, output.stop_reason) == ("stop", stop)


def test_min_tokens(client: Client, plain: list[int]) -> None:
    output = answer(client, stop_token_ids=[plain[0]], min_tokens=4)
    assert plain[0] not in output.token_ids[:4]
    assert len(output.token_ids) >= 4
    assert answer(client, stop_token_ids=[plain[0]]).token_ids == plain[:1]


def test_ignore_eos(client: Client) -> None:
    ends = {"logit_bias": {EOS: 100.0}}
    output = answer(client, ignore_eos=False, **ends)
    assert (output.token_ids, output.finish_reason, output.stop_reason) == ([EOS], "stop", None)
    output = answer(client, ignore_eos=True, **ends)
    assert (output.token_ids, output.finish_reason) == ([EOS] * LENGTH, "length")


def test_logit_bias(client: Client, plain: list[int]) -> None:
    assert answer(client, logit_bias={7: 100.0}).token_ids == [7] * LENGTH
    assert plain[0] not in answer(client, logit_bias={plain[0]: -100.0}).token_ids


@pytest.mark.parametrize(
    "penalty",
    [{"repetition_penalty": 1.1}, {"presence_penalty": 2.0}, {"frequency_penalty": 2.0}],
    ids=lambda penalty: next(iter(penalty)),
)
def test_penalties(client: Client, penalty: dict[str, float]) -> None:
    """Of two tokens with nearly equal bias, the preferred one gives way to the other once it was said."""
    likes = {7: 100.0, 8: 99.0}
    assert len(set(answer(client, logit_bias=likes).token_ids)) == 1
    assert set(answer(client, logit_bias=likes, **penalty).token_ids) == {7, 8}


def test_logprobs(client: Client, plain: list[int]) -> None:
    output = answer(client, logprobs=3)
    assert output.token_ids == plain
    for token, row in zip(output.token_ids, output.logprobs, strict=True):
        assert row[token] == max(row.values())
        # Beside the three likeliest the token's own, if it is none of them: then all are equally likely.
        assert len(row) == 3 or (len(row) == 4 and len(set(row.values())) == 1)
        assert all(value <= 0.0 for value in row.values())
    assert answer(client).logprobs is None


@pytest.mark.parametrize("cut", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}], ids=str)
def test_a_cut_that_leaves_one_token_is_greedy(
    client: Client, plain: list[int], cut: dict[str, float]
) -> None:
    assert answer(client, temperature=1.5, seed=3, **cut).token_ids == plain
    assert answer(client, temperature=1.5, seed=3).token_ids != plain


def test_seed(client: Client) -> None:
    drawn = [answer(client, temperature=1.0, seed=seed).token_ids for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_n_answers_of_which_the_first_is_that_of_n_1_share_the_prompt(client: Client) -> None:
    params = {"temperature": 1.0, "seed": 5}
    before = settled(client)
    told = SamplingParams(n=4, max_tokens=LENGTH, ignore_eos=True, cache_salt="n", **params)
    outputs = client.generate(PROMPT, told).outputs
    after = settled(client)
    assert outputs[0].token_ids == answer(client, **params).token_ids
    assert len({tuple(output.token_ids) for output in outputs}) == 4
    assert [output.index for output in outputs] == [0, 1, 2, 3]
    length = answer_usage(client).prompt_tokens
    computed = after["prefill_tokens"] - before["prefill_tokens"]
    assert computed <= length + 3 * 16, "each of the others computes less than a block"


def settled(client: Client) -> dict[str, float]:
    """The counters once nothing is under way: what has ended is counted within 0.2 s."""
    stats: dict[str, float] = {}
    while True:
        before, stats = stats, client.stats()
        if stats == before and stats["num_requests_running"] == 0:
            return stats
        time.sleep(0.3)


def answer_usage(client: Client, **params: Any) -> Any:
    usage = client.generate(PROMPT, SamplingParams(max_tokens=1, **params)).usage
    assert usage is not None
    return usage


def test_cache_salt(client: Client) -> None:
    cached = [answer_usage(client, cache_salt=salt).cached_tokens for salt in ("a", "a", "b", "a")]
    length = answer_usage(client).prompt_tokens
    assert cached == [0, length - 1, 0, length - 1]


def test_deadline_of_a_request_that_runs_and_of_one_that_waits(sidecar: Sidecar) -> None:
    async def late() -> list[object]:
        async with AsyncClient(sidecar.endpoint) as client:
            long = SamplingParams(max_tokens=900, ignore_eos=True, deadline_s=0.5)
            # four of them run, and the others wait for a slot
            asked = [client.complete(PROMPT, long) for _ in range(8)]
            return list(await asyncio.gather(*asked, return_exceptions=True))

    results = asyncio.run(late())
    assert all(isinstance(result, DeadlineExceeded) for result in results), results


def test_priority(sidecar: Sidecar) -> None:
    """All slots are taken; of those that wait the one that came last is first, if it has the higher priority."""

    async def order() -> list[str]:
        ended: list[str] = []
        async with AsyncClient(sidecar.endpoint) as client:

            async def ask(name: str, tokens: int, priority: int) -> None:
                params = SamplingParams(max_tokens=tokens, ignore_eos=True, priority=priority)
                await client.complete(PROMPT, params)
                ended.append(name)

            tasks = [asyncio.create_task(ask("running", 300, 10)) for _ in range(4)]
            while (await client.stats()).get("num_requests_running") != 4:
                await asyncio.sleep(0.01)
            tasks += [asyncio.create_task(ask("low", 100, 0)) for _ in range(8)]
            while (await client.stats()).get("num_requests_waiting") != 8:
                await asyncio.sleep(0.01)
            tasks.append(asyncio.create_task(ask("high", 100, 5)))
            await asyncio.gather(*tasks)
        return [name for name in ended if name != "running"]

    assert "high" in asyncio.run(order())[:4]  # four slots: it is among those that begin first
