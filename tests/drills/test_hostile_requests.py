"""Hostile requests through the client: each is answered with a short error, alone, and no actor notices."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from slipstream.protocol.limits import MAX_FRAME_BYTES

from slipstream import AsyncClient, SamplingParams, Sidecar, SlipstreamError

REQUESTS, ALL_REQUESTS = 4_000, 1_000_000
MAX_ERROR_BYTES = 64 * 1024
AT_ONCE = 64

NAN, INF = float("nan"), float("inf")
HUGE_NUMBERS = [2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, -1, -(2**31), -(2**63), -(2**64)]

Rng = random.Random
Request = dict[str, Any]


def params(**values: Any) -> Request:
    return {"prompt": "x", "params": SamplingParams(**values)}


def nested(depth: int, leaf: Any = 1) -> Any:
    for _ in range(depth):
        leaf = {"properties": {"a": leaf}} if depth % 2 else [leaf]
    return leaf


def odd_value(rng: Rng) -> Any:
    return rng.choice(
        [None, "", "x", b"\xff", 5.5, NAN, [], {}, [[]], {"a": 1}, object(), True, ("a",), {1, 2}]
    )


def out_of_range(rng: Rng) -> Request:
    name, values = rng.choice(
        [
            ("temperature", [NAN, INF, -INF, -0.1, 2.5, 1e308]),
            ("top_p", [NAN, INF, 0.0, -0.0, 1.1]),
            ("min_p", [NAN, -INF, -0.1, 1.1]),
            ("presence_penalty", [NAN, INF, 2.1]),
            ("frequency_penalty", [NAN, -INF, -2.1]),
            ("repetition_penalty", [NAN, INF, 0.0, -1.0, 11.0]),
            ("deadline_s", [NAN, INF, 0.0, -1.0, 1e300]),
        ]
    )
    return params(**{name: rng.choice(values)})


def huge_number(rng: Rng) -> Request:
    name = rng.choice(["max_tokens", "top_k", "n", "logprobs", "priority", "min_tokens"])
    allowed = -1 if name in ("top_k", "priority") else None
    return params(**{name: rng.choice([value for value in HUGE_NUMBERS if value != allowed])})


def bad_seed(rng: Rng) -> Request:
    return params(seed=rng.choice([-1, 2**63, 2**64, 0.5, "7"]))


def wrong_type(rng: Rng) -> Request:
    name = rng.choice(
        ["max_tokens", "temperature", "stop", "stop_token_ids", "n", "logit_bias", "ignore_eos"]
    )
    fits = {
        "max_tokens": (None,),
        "stop": ("x", [], ("a",)),
        "stop_token_ids": ([], {1, 2}),
        "logit_bias": ({},),
    }
    value = odd_value(rng)
    while value in fits.get(name, ()) or (name == "ignore_eos" and value is True):
        value = odd_value(rng)
    return params(**{name: value})


def many_stops(rng: Rng) -> Request:
    count = rng.choice([17, 1000, 1000, 1000, 100_000])
    return params(stop=[str(number) for number in range(count)])


def long_stop(rng: Rng) -> Request:
    return params(stop=rng.choice(["", "x" * 257, "é" * 100_000, ["a", ""]]))


def many_stop_tokens(rng: Rng) -> Request:
    return params(stop_token_ids=rng.choice([[-1], [2**31], list(range(65)), [5] * 1000, [2**64]]))


def bad_bias(rng: Rng) -> Request:
    wrong = [{"x": 1.0}, {"-1": 1.0}, {5: NAN}, {5: 101.0}, {10**9: 1.0}, {"05": 1.0}, {"": 0.0}]
    return params(logit_bias=rng.choice([*wrong, dict.fromkeys(range(1025), 0.5)]))


def deep_schema(rng: Rng) -> Request:
    return params(json_schema=nested(rng.choice([100, 500, 900, 20_000])))


def bad_schema(rng: Rng) -> Request:
    texts = ["[" * 1000, "{", "nonsense", '{"type": "no such type"}', "\x00", '{"type": ' * 500]
    maps = [
        {"type": "no such type"},
        {"$ref": "#/a/b"},
        {"$ref": "#"},
        {"pattern": "(" * 500, "type": "string"},
    ]
    return params(json_schema=rng.choice([*texts, *maps]))


def bad_prompt(rng: Rng) -> Request:
    return {
        "prompt": rng.choice(["", [], [-1], [2**31], [2**64], [10**6], 5, None, b"x", [0.5], ["x"], {"a": 1}])
    }


def surrogate(rng: Rng) -> Request:
    text = rng.choice(["\ud800", "a\udfff", "\udc80" * 1000])
    return rng.choice(
        [{"prompt": text}, params(stop=[text]), {"messages": [{"role": "user", "content": text}]}]
    )


def long_prompt(rng: Rng) -> Request:
    if rng.random() < 0.02:
        return {"prompt": "x" * (MAX_FRAME_BYTES + 1)}
    return {
        "prompt": rng.choice(["x" * 100_000, "\x00" * 70_000, "😀" * 20_000, [5] * 2000, list(range(1025))])
    }


def bad_messages(rng: Rng) -> Request:
    wrong: list[Any] = [
        [],
        [{}],
        [{"role": "user"}],
        [{"role": 5, "content": "x"}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": [{"type": "image"}]}],
        [{"role": "user", "content": nested(40, "x")}],
        [{"role": nested(20_000)}],
        [[]],
        ["x"],
        "x",
        {"role": "user"},
        [{"role": "user", "content": "x"}] * 10_000,
        [{5: "x"}],
        [{"role": "x" * 100_000, "content": "x"}],
    ]
    return {"messages": rng.choice(wrong)}


def bad_id(rng: Rng) -> Request:
    return {"prompt": "x", "request_id": rng.choice(["", "x" * 129, 5, "\ud800", "x" * 10**6])}


KINDS: list[Callable[[Rng], Request]] = [
    out_of_range,
    huge_number,
    bad_seed,
    wrong_type,
    many_stops,
    long_stop,
    many_stop_tokens,
    bad_bias,
    deep_schema,
    bad_schema,
    bad_prompt,
    surrogate,
    long_prompt,
    bad_messages,
    bad_id,
]


async def error_of(client: AsyncClient, request: Request) -> SlipstreamError:
    """The error that the request ends with."""
    asked = client.chat if "messages" in request else client.generate
    first = request.pop("messages", None) if "messages" in request else request.pop("prompt")
    tokens = 0
    try:
        async for delta in asked(first, request.get("params"), request_id=request.get("request_id")):
            tokens += len(delta.token_ids)
            if tokens > 4:
                break
    except SlipstreamError as error:
        return error
    raise AssertionError(f"it was answered with {tokens} tokens")


def test_each_hostile_request_is_answered_with_a_short_error_and_no_actor_restarts(soak: bool) -> None:
    numbers = iter(range(ALL_REQUESTS if soak else REQUESTS))
    """Each is the seed of one request."""
    codes: Counter[str] = Counter()

    async def attack(client: AsyncClient) -> None:
        for number in numbers:
            rng = random.Random(number)
            kind = rng.choice(KINDS)
            said = f"request {number}, {kind.__name__}"
            try:
                error = await asyncio.wait_for(error_of(client, kind(rng)), 60.0)
            except (AssertionError, TimeoutError) as wrong:
                raise AssertionError(f"{said}: {wrong!r}") from None
            text = str(error)
            assert text, said
            assert len(text.encode("utf-8", "replace")) < MAX_ERROR_BYTES, said
            assert error.code != "internal", f"{said}: {error}"
            codes[error.code] += 1

    async def main(sidecar: Sidecar) -> None:
        async with sidecar.async_client() as client, sidecar.async_client() as other:
            attacks = asyncio.gather(*(attack(client) for _ in range(AT_ONCE)))
            answers = 0
            while not attacks.done():
                for good in (client, other):
                    output = await good.complete(
                        "Once upon a time", SamplingParams(max_tokens=20, ignore_eos=True)
                    )
                    assert len(output.outputs[0].token_ids) == 20
                    answers += 1
            await attacks
            counters = await other.stats()
            print(f"{sum(codes.values())} hostile requests: {dict(codes)}; {answers} good ones meanwhile")
            assert counters["requests_aborted"] == 0, "each fails alone"

    with Sidecar(device="emulated", emulated_step_ms=2.0, max_model_len=1024) as sidecar:
        asyncio.run(main(sidecar))
        assert all(actor["restarts"] == 0 for actor in sidecar.actors.values()), sidecar.log
        assert "Traceback" not in sidecar.log
