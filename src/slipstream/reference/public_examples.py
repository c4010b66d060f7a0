"""An example or more of every message that is said with clients, and frames that are no message and are refused."""

from __future__ import annotations

from typing import Any

import msgpack

from ..protocol.codec import pack
from ..protocol.limits import MAX_ITEMS, Limits
from ..protocol.messages import (
    Abort,
    Actors,
    ActorState,
    Adapters,
    CacheReset,
    Delta,
    Deltas,
    Error,
    Formats,
    Generate,
    GetActors,
    GetAdapters,
    GetStats,
    GetTrace,
    Hello,
    LoadAdapter,
    LoadedAdapter,
    Ping,
    Pong,
    PublicIn,
    PublicOut,
    ResetCache,
    Stats,
    Trace,
    UnloadAdapter,
    Usage,
    Welcome,
)
from ..protocol.sampling import SamplingParams
from ..protocol.trace import MOMENT, SPAN, Recorded

PARAMS = SamplingParams(
    max_tokens=64,
    min_tokens=2,
    temperature=0.7,
    top_p=0.9,
    top_k=40,
    min_p=0.05,
    seed=7,
    stop=["\n\n", "END"],
    include_stop_str_in_output=True,
    skip_special_tokens=False,
    stop_token_ids=[2],
    ignore_eos=True,
    deadline_s=30.0,
)

ANSWER_PARAMS: dict[str, Any] = {
    "lark": 'start: "a"+',
    "structural_tag": {
        "structures": [{"begin": "<f>", "schema": {"type": "integer"}, "end": "</f>"}],
        "triggers": ["<f>"],
    },
    "allowed_token_ids": [5, 7],
    "bad_words": ["cat"],
    "truncate_prompt_tokens": 2,
    "adapter": "sql",
}
"""Parameters of which a request can have but one, and one more."""

MORE_PARAMS = SamplingParams(
    n=2,
    logprobs=1,
    prompt_logprobs=1,
    presence_penalty=0.5,
    frequency_penalty=-0.5,
    repetition_penalty=1.1,
    logit_bias={"5": -100.0},
    json_schema={"type": "object"},
    priority=1,
    cache_salt="of this user",
)

LIMITS = Limits(max_model_len=1024, vocab_size=2048, max_prompt_bytes=65536)

FROM_CLIENT: list[tuple[str, PublicIn]] = [
    ("hello", Hello(protocol=[1, 0], client="my client 1.2")),
    ("generate, only what is needed", Generate(id="1", prompt="Once upon a time")),
    ("generate from token ids", Generate(id="2", prompt=[759, 799, 263, 514])),
    ("generate with sampling parameters", Generate(id="3", prompt="Grüße, 世界 🙂", params=PARAMS)),
    (
        "generate from a conversation",
        Generate(
            id="4",
            messages=[
                {"role": "system", "content": "Answer in one word."},
                {"role": "user", "content": "What is 2 + 2?"},
            ],
            params=SamplingParams(temperature=0.0, stop="."),
        ),
    ),
    (
        "generate from a conversation with tools",
        Generate(
            id="9",
            messages=[{"role": "user", "content": "What time is it?"}],
            tools=[{"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}],
            chat_template_kwargs={"enable_thinking": False},
        ),
    ),
    (
        "generate, sent again after a lost connection",
        Generate(
            id="5",
            prompt="Once",
            params=MORE_PARAMS,
            received=[16, 392, 70000],
            received_of_others=[[16]],
            return_prompt_ids=True,
            age_s=1.5,
        ),
    ),
    (
        "generate from a text that has its special tokens",
        Generate(id="10", prompt="<s>Once", add_special_tokens=False),
    ),
    (
        "generate with the marks of thoughts and calls",
        Generate(
            id="11",
            messages=[{"role": "user", "content": "Hi"}],
            marks=True,
            traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            calls={"now": {"type": "object"}},
        ),
    ),
    ("generate what matches", Generate(id="6", prompt="1 + 1 =", params=SamplingParams(regex="[0-9]+"))),
    *(
        (
            f"generate with {name}",
            Generate(id=f"6 {name}", prompt="1 2 3", params=SamplingParams(**{name: value})),
        )
        for name, value in ANSWER_PARAMS.items()
    ),
    ("generate a choice", Generate(id="7", prompt="Yes?", params=SamplingParams(choice=["yes", "no"]))),
    ("abort", Abort(id="3")),
    ("ping", Ping(nonce=18446744073709551615)),
    ("ping, nonce left out", Ping()),
    ("stats", GetStats()),
    ("trace", GetTrace()),
    ("trace, the last seconds", GetTrace(seconds=2.5)),
    ("actors", GetActors()),
    ("reset the prefix cache", ResetCache()),
    ("adapters", GetAdapters()),
    ("load an adapter", LoadAdapter(name="sql", path="/adapters/sql")),
    ("unload an adapter", UnloadAdapter(name="sql")),
]

RECORDED = Recorded(
    pid=4711,
    names=["Enqueue", "Plan", "planned"],
    spans={"scheduler": SPAN.pack(3364779140270, 3364778882284, 59, 1)},
    marks=MOMENT.pack(3364778882284, 5, 2),
    reach={"scheduler": 3364779140270},
)

TO_CLIENT: list[tuple[str, PublicOut]] = [
    ("welcome", Welcome(protocol=[1, 0], server="slipstream 0.1.0", model="my-model", limits=LIMITS)),
    (
        "welcome of a model that thinks and calls",
        Welcome(
            protocol=[1, 0],
            server="slipstream 0.1.0",
            model="my-model",
            limits=LIMITS,
            formats=Formats(reasoning="qwen3", tool_calls="hermes", strict=True),
        ),
    ),
    (
        "deltas of three requests",
        Deltas(
            items=[
                Delta(id="1", text=", there", token_ids=[16, 392], prompt_token_ids=[759, 799, 263, 514]),
                Delta(id="2", token_ids=[240], prompt_logprobs=[None, {"799": -0.25, "7": -1.5}]),
                Delta(id="3", index=1, text=" a", token_ids=[5], logprobs=[{"5": -0.25, "7": -1.5}]),
            ]
        ),
    ),
    (
        "deltas, the last of a request that met a stop text",
        Deltas(
            items=[
                Delta(
                    id="3",
                    text=" 🙂",
                    token_ids=[1, 2, 3],
                    finish_reason="stop",
                    stop_reason="END",
                    usage=Usage(prompt_tokens=9, completion_tokens=12, cached_tokens=8),
                )
            ]
        ),
    ),
    (
        "deltas, the last of a request that met a stop token",
        Deltas(
            items=[
                Delta(
                    id="4",
                    token_ids=[2],
                    finish_reason="stop",
                    stop_reason=2,
                    usage=Usage(prompt_tokens=9, completion_tokens=1),
                )
            ]
        ),
    ),
    (
        "deltas, the last of a request that was aborted",
        Deltas(
            items=[
                Delta(id="5", finish_reason="abort", usage=Usage(prompt_tokens=1, completion_tokens=3)),
            ]
        ),
    ),
    (
        "error, the end of a request",
        Error(
            code="invalid_request",
            message="temperature=3.0 is out of range; it must be at least 0.0 and at most 2.0",
            id="6",
            param="temperature",
        ),
    ),
    (
        "error, try again later",
        Error(code="overloaded", message="1024 requests are open", id="7", retry_after_s=1.0),
    ),
    ("error about the connection", Error(code="protocol", message="say hello first")),
    ("pong", Pong(nonce=18446744073709551615)),
    ("pong, nonce left out", Pong()),
    ("the prefix cache is reset", CacheReset(done=True)),
    ("stats", Stats(counters={"steps": 60.0, "kv_cache_usage_perc": 0.25})),
    (
        "trace",
        Trace(actors={"scheduler": RECORDED}, since_ns=3362278882284, until_ns=3364778882284),
    ),
    (
        "actors, one of them restarted and another waiting for its restart",
        Actors(
            actors=[
                ActorState(
                    name="executor",
                    state="ready",
                    pid=1234,
                    epoch=6,
                    restarts=1,
                    uptime_s=12.5,
                    mailbox_depth=2,
                    last_progress_s=0.25,
                    working=True,
                    busy_s=3.5,
                    ready_s=2.5,
                    full_speed_s=9.75,
                ),
                ActorState(name="scheduler", state="dead", pid=1235, epoch=2),
            ],
            live=True,
            ready=False,
            draining=True,
        ),
    ),
    ("adapters", Adapters(adapters=[LoadedAdapter(name="sql", path="/adapters/sql")])),
    (
        "adapters, after a change that could not be made",
        Adapters(adapters=[], code="model_not_found", error="name='sql' is not loaded; none is"),
    ),
]

# --- frames that are refused ----------------------------------------------------------------------

GENERATE = {"t": "generate", "id": "1", "prompt": "Once"}

REFUSED: list[tuple[str, bytes, str]] = [
    ("empty", b"", "not MessagePack"),
    ("JSON", b'{"t":"ping"}', "not MessagePack"),
    ("ends early", pack(GENERATE)[:-1], "not MessagePack"),
    ("two messages in one frame", pack({"t": "ping"}) * 2, "not MessagePack"),
    ("not a map", pack([1, 2]), "Expected `object`"),
    ("no t", pack({"id": "1"}), "missing required field `t`"),
    ("unknown t", pack({"t": "generat", "id": "1"}), "'generat'"),
    ("only a client receives this", pack({"t": "pong"}), "'pong'"),
    ("a field is missing", pack({"t": "generate", "prompt": "Once"}), "`id`"),
    ("an unknown field", pack(GENERATE | {"temprature": 1.0}), "`temprature`"),
    ("an unknown parameter", pack(GENERATE | {"params": {"temprature": 1.0}}), "`temprature`"),
    ("a text for a number", pack(GENERATE | {"params": {"max_tokens": "64"}}), "'64'"),
    ("a fraction for a whole number", pack(GENERATE | {"params": {"max_tokens": 6.5}}), "6.5"),
    ("a number for a text", pack(GENERATE | {"id": 1}), "the value is 1"),
    ("binary for a text", pack(GENERATE | {"prompt": b"Once"}), "b'Once'"),
    ("null for a list", pack(GENERATE | {"received": None}), "None"),
    ("a key that is no string", pack(GENERATE | {"messages": [{1: "user"}]}), "not MessagePack"),
    ("an extension type", pack({"t": "ping", "nonce": msgpack.ExtType(5, b"x")}), "not MessagePack"),
    ("a timestamp", pack({"t": "ping", "nonce": msgpack.Timestamp(1)}), "not MessagePack"),
    ("not UTF-8", pack({"t": "ping"}).replace(b"ping", b"p\xffng"), "not MessagePack"),
    ("a lone surrogate", pack({"t": "ping"}).replace(b"\xa4ping", b"\xa3\xed\xa0\x80"), "not MessagePack"),
    ("claims a text of 4 GiB", b"\x81\xa1t\xdb\xff\xff\xff\xff", "not MessagePack"),
    ("claims 4 Gi items", b"\x81\xa1t\xdd\xff\xff\xff\xff", "not MessagePack"),
    ("claims one item too many", b"\x81\xa1t\xdd" + (MAX_ITEMS + 1).to_bytes(4, "big"), "not MessagePack"),
    ("too deep", b"\x81\xa1t" + b"\x91" * 2000 + b"\xc0", "not MessagePack"),
]
"""The name of each, the frame, and what the error says of it."""
