"""An example or more of every message between actors. One that is not written out here is derived from its type."""

from __future__ import annotations

import sys
from array import array
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import msgspec

from ..protocol.internal import (
    Adapter,
    AdapterAnswer,
    AdapterSlotFilled,
    AdapterSlotFreed,
    AddAdapter,
    AnyInternal,
    Cancel,
    Capacity,
    DumpTrace,
    Enqueue,
    FillAdapterSlot,
    Finished,
    ForgetCache,
    FreeAdapterSlot,
    GrammarEnd,
    Join,
    ListAdapters,
    Matched,
    Opened,
    Plan,
    PromptLogprobs,
    Refused,
    RemoveAdapter,
    Sampled,
    Spans,
    Submit,
    Texts,
    Tokenized,
    Tokens,
)
from ..protocol.sampling import Grammar, SamplingParams
from .public_examples import ANSWER_PARAMS, MORE_PARAMS, PARAMS, RECORDED

S = TypeVar("S", bound=msgspec.Struct)


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
    max_length=7,
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
    ("submit a text", Submit(5, "Once", PARAMS, int32(16), connection=2, attempt=1)),
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
        for name, value in ANSWER_PARAMS.items()
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
            connection=2,
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
            step_times=[(16, 28_500_000), (2047, 32_300_000)],
            max_num_batched_tokens=2048,
            prefix_caching=False,
            adapters=[SQL],
            adapter_slots=8,
            step_sizes=[16, 24, 32],
        ),
    ),
    ("list adapters", ListAdapters(2)),
    ("add adapter", AddAdapter(3, "sql", "/adapters/sql")),
    ("remove adapter", RemoveAdapter(4, "sql", resent=True)),
    ("adapter answer", AdapterAnswer(3, [SQL], "invalid_request", "name='sql' is taken")),
    ("fill adapter slot", FillAdapterSlot(SQL)),
    ("adapter slot filled", AdapterSlotFilled(SQL, "there is no such folder")),
    ("free adapter slot", FreeAdapterSlot(1)),
    ("adapter slot freed", AdapterSlotFreed(1)),
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
