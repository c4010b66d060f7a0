"""Requests that would take long: refused over ZeroMQ and over HTTP, by the same limits, and nobody waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from slipstream.protocol.limits import MAX_LOGIT_BIAS, MAX_MESSAGES, MAX_STOP_STRINGS, MAX_STOP_TOKEN_IDS
from web import Web

from slipstream import AsyncClient, InvalidRequest, SamplingParams, Sidecar

SAID = {"role": "user", "content": "x"}

LONG: list[tuple[str, dict[str, Any], int]] = [
    ("stop", {"stop": ["x"] * (MAX_STOP_STRINGS + 1)}, MAX_STOP_STRINGS),
    ("stop_token_ids", {"stop_token_ids": [5] * 1000}, MAX_STOP_TOKEN_IDS - 2),  # two are the model's
    ("logit_bias", {"logit_bias": {str(token): 1.0 for token in range(MAX_LOGIT_BIAS + 1)}}, MAX_LOGIT_BIAS),
    ("messages", {"messages": [SAID] * (MAX_MESSAGES + 1)}, MAX_MESSAGES),
]


@pytest.fixture(scope="module")
def service() -> Iterator[Sidecar]:
    with Sidecar(device="emulated", emulated_step_ms=2.0, http="127.0.0.1:0") as sidecar:
        yield sidecar


@pytest.mark.parametrize(("param", "fields", "limit"), LONG, ids=[param for param, _, _ in LONG])
def test_more_than_a_limit_is_refused_alike_over_zeromq_and_http(
    service: Sidecar, param: str, fields: dict[str, Any], limit: int
) -> None:
    sampling = {name: value for name, value in fields.items() if name != "messages"}
    messages = fields.get("messages", [SAID])
    with service.client() as client, pytest.raises(InvalidRequest) as refused:
        client.chat(messages, SamplingParams(**sampling))
    reply = Web(service.ready["http"]).chat(**fields)
    assert (reply.status, reply.json["error"]["param"]) == (400, param)
    assert reply.json["error"]["message"] == str(refused.value)
    assert refused.value.param == param
    assert str(refused.value).endswith(f"; the limit is {limit}: send fewer")


def test_what_a_frame_cannot_hold_is_told_as_an_error_of_the_request_on_both_ways(service: Sidecar) -> None:
    """It never reaches the gateway, which the requests of all clients of the HTTP frontend share."""
    biased: dict[int | str, float] = {str(token): 1.0 for token in range(100_000)}
    with service.client() as client:
        with pytest.raises(InvalidRequest, match=r"100000 exceeds max_map_len\(16384\).*: send less"):
            client.generate("x", SamplingParams(logit_bias=biased))
        assert client.generate("x", SamplingParams(max_tokens=2, ignore_eos=True)).finished
    web = Web(service.ready["http"])
    reply = web.chat(logit_bias=biased)
    assert reply.status == 400
    assert "100000" in reply.json["error"]["message"]
    assert web.chat(max_tokens=2).status == 200


def test_long_requests_of_one_client_hold_up_no_stream_of_another(service: Sidecar) -> None:
    """Ten seconds without progress are a hang, for which an actor is ended; one of these took longer than that."""
    nested = {"x": [[1] * 900_000] * 2}

    async def main() -> None:
        async with service.async_client() as good, service.async_client() as hostile:
            answer = asyncio.create_task(
                good.complete("x", SamplingParams(max_tokens=900, ignore_eos=True, seed=1))
            )
            for _ in range(3):
                await refused(hostile, messages=[SAID], chat_template_kwargs=nested)
                await refused(
                    hostile, messages=[SAID], params=SamplingParams(json_schema={"enum": nested["x"]})
                )
                await refused(hostile, prompt="x", params=SamplingParams(stop=["x"] * 1_000_000))
                await refused(hostile, prompt=[5] * 1_000_000)
            assert len((await answer).outputs[0].token_ids) == 900

    async def refused(client: AsyncClient, **asked: Any) -> None:
        with pytest.raises(InvalidRequest):
            async for _ in client.batches(**asked):
                pass

    asyncio.run(main())
    assert all(actor["restarts"] == 0 for actor in service.actors.values()), service.log
