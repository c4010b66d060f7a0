"""Golden vectors: one example or more of every message, as plain values and as the bytes on the wire.

``python -m slipstream.reference.golden`` writes them to ``vectors/``: ``public.json`` for authors of
clients in other languages, ``refused.json`` with frames that are no messages, and ``internal.json``
with what the actors say to each other. A test holds that writing them again changes nothing.
"""

from __future__ import annotations

import json
import sys
from array import array
from collections.abc import Iterable
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import msgpack
import msgspec

from .. import protocol
from ..protocol.codec import encode, encode_from_client, pack, plain
from ..protocol.errors import InvalidRequest
from ..protocol.internal import (
    Adapter,
    AdapterChanged,
    AdapterPlaced,
    AnyInternal,
    Cancel,
    Capacity,
    ChangeAdapter,
    DumpTrace,
    Enqueue,
    Envelope,
    Finished,
    ForgetCache,
    GrammarEnd,
    Join,
    Matched,
    Opened,
    PlaceAdapter,
    Plan,
    PromptLogprobs,
    Refused,
    Sampled,
    Spans,
    Submit,
    Texts,
    Tokenized,
    Tokens,
)
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
    FromClient,
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
from ..protocol.sampling import Grammar, SamplingParams
from ..protocol.trace import MARK, SPAN, Recorded

S = TypeVar("S", bound=msgspec.Struct)

FOLDER = Path(protocol.__file__).parent / "vectors"

PUBLIC_ABOUT = (
    "Each frame is one ZeroMQ frame of a DEALER socket: `message` as MessagePack, whose bytes `hex` shows."
    ' In it {"hex": …} stands for binary.'
    " What a client sends may have its keys in another order, its integers in another width, and fields at"
    " their default value spelled out. What a client receives may have more fields in a later minor version."
)
REFUSED_ABOUT = (
    "Frames that the service answers with an `error` of code `invalid_request`. Where the frame has an `id`"
    " the error has it too; `says` is part of the error's message."
)
INTERNAL_ABOUT = (
    'What the actors say to each other; it can change with any version. {"hex": …} stands for binary, in'
    " which arrays of int32, int64 and float32 are little-endian."
)


def int32(*values: int) -> bytes:
    return little_endian(array("i", values))


def int64(*values: int) -> bytes:
    return little_endian(array("q", values))


def float32(*values: float) -> bytes:
    return little_endian(array("f", values))


def little_endian(values: array[Any]) -> bytes:
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def filled(kind: type[S], **given: Any) -> S:
    """A message in which every field has a value: as given, else by its type. Fields that may be nil stay so."""
    fields = [field for field in msgspec.structs.fields(kind) if field.name not in given]
    derived = {field.name: some(field.type) for field in fields if NoneType not in get_args(field.type)}
    return kind(**derived, **given)


def some(kind: Any) -> Any:
    """A value of a type."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return some(arguments[0])
    if origin is list:
        return [some(arguments[0])]
    if origin is dict:
        return {"name": some(arguments[1])}
    if origin is tuple:
        return tuple(some(argument) for argument in arguments)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return filled(kind)
    return {int: 1, float: 0.5, bool: True, str: "text", bytes: int32(1)}[kind]


# --- public -------------------------------------------------------------------------------------

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

OF_ANSWERS: dict[str, Any] = {
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
        for name, value in OF_ANSWERS.items()
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
    marks=MARK.pack(3364778882284, 5, 2),
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
        Adapters(adapters=[], code="model_not_found", error="name='sql' is not loaded; those that are: none"),
    ),
]

# --- internal -----------------------------------------------------------------------------------

SQL = Adapter(1, "sql", "/adapters/sql")

FULL_PARAMS = SamplingParams(max_tokens=3, seed=9223372036854775807)

OPENED = Opened(
    5,
    int32(263, 514, 16),
    1,
    ["END"],
    cached_tokens=16,
    prompt_tokens=20,
    attempt=1,
    include_stop=True,
    marks=True,
    special=True,
    queued_at=71.5,
    planned_at=71.75,
)

JOIN = filled(
    Join,
    slot=3,
    tokens=int32(759, 799, 263, 514),
    prompt_len=4,
    start=0,
    temperature=0.5,
    top_p=1.0,
    top_k=0,
    min_p=0.0,
    seed=9223372036854775807,
    min_tokens=0,
    stop_tokens=int32(0, 4),
    end=7,
    repetition_penalty=1.5,
    presence_penalty=0.5,
    frequency_penalty=-0.5,
    bias_tokens=int32(5),
    biases=float32(-100.0),
    logprobs=1,
    prompt_logprobs=1,
    grammar=Grammar("regex", "[0-9]+", "before: /[ ]/"),
    adapter=1,
)

INTERNAL: list[tuple[str, AnyInternal]] = [
    ("submit a text", Submit(5, "Once", PARAMS, int32(16), client=2, attempt=1)),
    (
        "submit a conversation",
        Submit(6, [{"role": "user", "content": "Hi"}], MORE_PARAMS, template={"enable_thinking": False}),
    ),
    (
        "submit a conversation, for its marks",
        Submit(
            10, [{"role": "user", "content": "Hi"}], PARAMS, marks=True, calls={"now": {"type": "object"}}
        ),
    ),
    ("submit a text with its own special tokens", Submit(9, "<s>Once", PARAMS, add_special_tokens=False)),
    ("submit what matches", Submit(7, "1 + 1 =", SamplingParams(seed=7, regex="[0-9]+"))),
    *(
        (f"submit with {name}", Submit(9, "1 2 3", SamplingParams(seed=7, **{name: value})))
        for name, value in OF_ANSWERS.items()
    ),
    ("submit a choice", Submit(8, "Yes?", SamplingParams(seed=7, choice=["yes", "no"]))),
    ("submit token ids", Submit(7, None, FULL_PARAMS, prompt_ids=int32(759, 799))),
    ("tokenized", Tokenized(5, int32(759))),
    ("refused", Refused(5, "context_length_exceeded", "the prompt has 2000 tokens", "prompt")),
    (
        "enqueue",
        Enqueue(
            5,
            int32(759),
            FULL_PARAMS,
            int32(16),
            client=2,
            attempt=1,
            marks=True,
            before="before: /[ ]/",
            calls='start: "a"',
        ),
    ),
    ("cancel", Cancel([5, 6])),
    ("forget cache", ForgetCache(1099511627777)),
    (
        "capacity",
        Capacity(
            num_blocks=16385,
            block_size=16,
            crashed=True,
            steps=[(16, 28_500_000), (2047, 32_300_000)],
            max_num_batched_tokens=2048,
            prefix_caching=False,
            adapters=[SQL],
            adapter_places=8,
        ),
    ),
    ("change adapter", ChangeAdapter(3, "sql", "/adapters/sql", again=True)),
    ("adapter changed", AdapterChanged(3, [SQL], "invalid_request", "name='sql' is taken")),
    ("place adapter", PlaceAdapter(SQL)),
    ("adapter placed", AdapterPlaced(SQL, "there is no such folder")),
    ("plan of a steady step", Plan(59)),
    (
        "plan with joins",
        Plan(
            60,
            leaves=int32(1, 2),
            joins=[JOIN],
            blocks=int32(3, 17),
            copies=int32(9, 17),
            chunks=int32(3, 4),
        ),
    ),
    ("sampled", Sampled(59, int32(392, -1), 3364778464333, 3364784588230)),
    (
        "sampled with logprobs",
        Sampled(59, int32(392), 3364778464333, 3364784588230, int32(392, 7), float32(-0.25, -1.5)),
    ),
    (
        "sampled with ends by grammar",
        Sampled(
            60,
            int32(-1, -1),
            3364784588230,
            3364790712127,
            ends=[GrammarEnd(3), GrammarEnd(5, "the regex took too long")],
            prompt_logprob_tokens=int32(799, 7),
            prompt_logprobs=float32(-0.25, -1.5),
            stalled_ns=1200000,
        ),
    ),
    (
        "tokens",
        Tokens(
            59,
            [OPENED],
            int64(5, 8),
            int32(392, 2),
            [
                Finished(8, "stop", 2),
                Finished(9, "length"),
                Finished(10, "invalid_request", None, "regex cannot be followed", "regex"),
            ],
            {"steps": 60.0},
            int32(392, 7, 2, 0),
            float32(-0.25, -1.5, -0.5, -2.0),
            [PromptLogprobs(5, int32(799, 7), float32(-0.25, -1.5))],
        ),
    ),
    (
        "texts",
        Texts(
            59,
            [OPENED],
            int64(5, 8),
            int32(392, 2),
            [" there", ""],
            [Finished(8, "stop", "END")],
            ["."],
            {"steps": 60.0},
            int32(392, 7, 2, 0),
            float32(-0.25, -1.5, -0.5, -2.0),
            [PromptLogprobs(5, int32(799, 7), float32(-0.25, -1.5))],
        ),
    ),
    ("matched", Matched([8], [1])),
    ("dump trace", DumpTrace(since_ns=3362278882284)),
    ("spans", Spans("scheduler", RECORDED, since_ns=3362278882284, last=True)),
]
SHOWN = {type(message) for _, message in INTERNAL}
INTERNAL += [(kind.__name__, filled(kind)) for kind in get_args(AnyInternal) if kind not in SHOWN]

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


# --- the files ----------------------------------------------------------------------------------


def shown(plain: Any) -> Any:
    """Plain values for JSON; binary becomes ``{"hex": …}``."""
    if isinstance(plain, bytes):
        return {"hex": plain.hex()}
    if isinstance(plain, dict):
        return {key: shown(value) for key, value in plain.items()}
    if isinstance(plain, list | tuple):
        return [shown(value) for value in plain]
    return plain


def vector(name: str, message: msgspec.Struct, **more: str) -> dict[str, Any]:
    frame = encode_from_client(message) if isinstance(message, FromClient) else encode(message)
    return {"name": name, **more, "message": shown(plain(message)), "hex": frame.hex()}


def files() -> dict[str, str]:
    """The name and the content of each file in ``vectors/``."""
    public = [vector(name, message, sender="client") for name, message in FROM_CLIENT]
    public += [vector(name, message, sender="service") for name, message in TO_CLIENT]
    refused = [{"name": name, "says": says, "hex": frame.hex()} for name, frame, says in REFUSED]
    envelopes = [
        vector(name, Envelope("scheduler", 3, 2, number, message))
        for number, (name, message) in enumerate(INTERNAL)
    ]
    contents = {
        "public.json": {"about": PUBLIC_ABOUT, "vectors": public},
        "refused.json": {"about": REFUSED_ABOUT, "vectors": refused},
        "internal.json": {"about": INTERNAL_ABOUT, "vectors": envelopes},
    }
    return {
        name: json.dumps(content, indent=2, ensure_ascii=False) + "\n" for name, content in contents.items()
    }


def write(folder: str | Path, names: Iterable[str]) -> list[Path]:
    """Write these of the files into a folder, which is made if it is not there."""
    contents = files()
    paths = [Path(folder, name) for name in names]
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for path in paths:
            path.write_text(contents[path.name], encoding="utf-8")
    except OSError as error:
        raise InvalidRequest(f"cannot write the vectors to {str(folder)!r}: {error.strerror}") from None
    return paths


if __name__ == "__main__":
    for path in write(FOLDER, files()):
        print(path)
