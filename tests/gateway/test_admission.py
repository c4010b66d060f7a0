"""What a request may be: each limit is met exactly, and one more is refused in a moment, however large the frame."""

from __future__ import annotations

import time
from typing import Any

import pytest
from slipstream.actors.gateway import admission
from slipstream.actors.public.connections import Connection
from slipstream.protocol.codec import decode_from_client, pack
from slipstream.protocol.errors import SlipstreamError
from slipstream.protocol.limits import (
    MAX_ADAPTER_NAME_CHARS,
    MAX_ALL_ITEMS,
    MAX_CACHE_SALT_CHARS,
    MAX_CHOICE_STRINGS,
    MAX_CONTAINERS,
    MAX_GRAMMAR_BYTES,
    MAX_ITEMS,
    MAX_LOGIT_BIAS,
    MAX_MESSAGES,
    MAX_STOP_CHARS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
    MAX_TOOLS,
    Limits,
)
from slipstream.protocol.messages import Generate

LENGTH = 262_144
BOUNDS = Limits(max_model_len=LENGTH, vocab_size=150_000, max_prompt_bytes=8 * LENGTH)
LONGEST_S = 0.5
"""Of CPU time, for any request: several times what they took on a busy machine, and a tenth of what they took once."""


def admitted(fields: dict[str, Any]) -> None:
    """Read a request from its frame, and take it in."""
    message = decode_from_client(pack({"t": "generate", "id": "1"} | fields))
    assert isinstance(message, Generate)
    admission.check(message, Connection(b"c", 1), BOUNDS)


def asking(**params: Any) -> dict[str, Any]:
    return {"prompt": "x", "params": params}


def saying(count: int = 1, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "x"}] * count} | more


def biased(count: int) -> dict[str, Any]:
    return asking(logit_bias={str(token): 1.0 for token in range(count)})


AT_THE_LIMIT: list[tuple[dict[str, Any], dict[str, Any], str, int]] = [
    (
        asking(stop=["x"] * MAX_STOP_STRINGS),
        asking(stop=["x"] * (MAX_STOP_STRINGS + 1)),
        "stop",
        MAX_STOP_STRINGS,
    ),
    (asking(stop="x" * MAX_STOP_CHARS), asking(stop="x" * (MAX_STOP_CHARS + 1)), "stop", MAX_STOP_CHARS),
    (
        asking(stop_token_ids=[5] * MAX_STOP_TOKEN_IDS),
        asking(stop_token_ids=[5] * (MAX_STOP_TOKEN_IDS + 1)),
        "stop_token_ids",
        MAX_STOP_TOKEN_IDS,
    ),
    (biased(MAX_LOGIT_BIAS), biased(MAX_LOGIT_BIAS + 1), "logit_bias", MAX_LOGIT_BIAS),
    (
        asking(choice=["x"] * MAX_CHOICE_STRINGS),
        asking(choice=["x"] * (MAX_CHOICE_STRINGS + 1)),
        "choice",
        MAX_CHOICE_STRINGS,
    ),
    (
        asking(json_schema={"d": "x" * (MAX_GRAMMAR_BYTES - 9)}),
        asking(json_schema={"d": "x" * (MAX_GRAMMAR_BYTES - 8)}),
        "json_schema",
        MAX_GRAMMAR_BYTES,
    ),
    (
        asking(cache_salt="x" * MAX_CACHE_SALT_CHARS),
        asking(cache_salt="x" * (MAX_CACHE_SALT_CHARS + 1)),
        "cache_salt",
        MAX_CACHE_SALT_CHARS,
    ),
    (
        asking(adapter="x" * MAX_ADAPTER_NAME_CHARS),
        asking(adapter="x" * (MAX_ADAPTER_NAME_CHARS + 1)),
        "adapter",
        MAX_ADAPTER_NAME_CHARS,
    ),
    (saying(MAX_MESSAGES), saying(MAX_MESSAGES + 1), "messages", MAX_MESSAGES),
    (saying(tools=[{}] * MAX_TOOLS), saying(tools=[{}] * (MAX_TOOLS + 1)), "tools", MAX_TOOLS),
    ({"prompt": [5] * (LENGTH - 1)}, {"prompt": [5] * LENGTH}, "prompt", LENGTH),
    (
        {"prompt": "x", "received": [5] * LENGTH},
        {"prompt": "x", "received": [5] * (LENGTH + 1)},
        "received",
        LENGTH,
    ),
    (
        {"prompt": "x", "params": {"n": 2}, "received_of_others": [[5] * LENGTH]},
        {"prompt": "x", "params": {"n": 2}, "received_of_others": [[5] * (LENGTH + 1)]},
        "received_of_others",
        LENGTH,
    ),
]


@pytest.mark.parametrize(
    ("most", "more", "param", "limit"),
    AT_THE_LIMIT,
    ids=[f"{param}, {limit}" for *_, param, limit in AT_THE_LIMIT],
)
def test_as_much_as_the_limit_is_taken_and_one_more_is_refused_with_value_limit_and_remedy(
    most: dict[str, Any], more: dict[str, Any], param: str, limit: int
) -> None:
    admitted(most)
    with pytest.raises(SlipstreamError) as refused:
        admitted(more)
    assert refused.value.param == param
    value = (
        limit if param == "prompt" else limit + 1
    )  # a prompt of the whole length leaves no room for an answer
    assert str(value) in str(refused.value)
    assert str(limit) in str(refused.value)
    assert any(remedy in str(refused.value) for remedy in ("send fewer", "shorten"))


@pytest.mark.parametrize("tools", [5, None, "x" * 2000, {"a": 1}, [[]] * MAX_TOOLS])
def test_arguments_of_a_template_that_are_called_tools_may_be_anything(tools: Any) -> None:
    """The tokenizer says what is wrong with them, where anything is."""
    admitted(saying(chat_template_kwargs={"tools": tools}))


LONG: dict[str, dict[str, Any]] = {
    "a prompt of ids": {"prompt": [5] * MAX_ITEMS},
    "received": {"prompt": "x", "received": [5] * MAX_ITEMS},
    "received of others": {"prompt": "x", "params": {"n": 64}, "received_of_others": [[5] * MAX_ITEMS] * 15},
    "stop": asking(stop=["x"] * MAX_ITEMS),
    "a long stop": asking(stop="x" * 16_000_000),
    "stop tokens": asking(stop_token_ids=[5] * MAX_ITEMS),
    "logit bias": biased(MAX_ITEMS),
    "choice": asking(choice=["x"] * MAX_ITEMS),
    "a schema of numbers": asking(json_schema={"enum": [[1] * MAX_ITEMS] * 15}),
    "a schema of maps": asking(json_schema={"enum": [{"a": 1}] * (MAX_CONTAINERS - 9)}),
    "a schema with a long text": asking(json_schema={"enum": ["x" * 16_000_000]}),
    "messages": saying(MAX_CONTAINERS - 9),
    "tools": saying(tools=[{"a": 1}] * (MAX_CONTAINERS - 9)),
    "arguments of the template": saying(chat_template_kwargs={"x": [[1] * MAX_ITEMS] * 15}),
    "arguments within the bounds": saying(chat_template_kwargs={"x": [[1] * (MAX_ALL_ITEMS // 2 - 99)] * 2}),
    "keys": saying(chat_template_kwargs={str(key): 1 for key in range(MAX_ITEMS)}),
}


@pytest.mark.parametrize("name", LONG)
def test_the_largest_request_of_each_kind_is_refused_in_a_moment(name: str) -> None:
    """Two of these took ten seconds, in which the gateway answered nobody and was ended as hung."""
    frame = pack({"t": "generate", "id": "1"} | LONG[name])
    assert len(frame) <= BOUNDS.max_frame_bytes
    begun = time.thread_time()
    with pytest.raises(SlipstreamError):
        admission.check(decode_from_client(frame), Connection(b"c", 1), BOUNDS)  # type: ignore[arg-type]
    assert time.thread_time() - begun < LONGEST_S
