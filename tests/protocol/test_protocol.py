"""The messages and their one codec: golden bytes, round trips, and what hostile bytes can do."""

from __future__ import annotations

import json
import math
import pickle
import random
import struct
import time
import types
import typing
from collections.abc import Callable
from typing import Any

import msgpack
import msgspec
import psutil
import pytest
from hostile import mutated
from hypothesis import given, settings
from hypothesis import strategies as st
from slipstream.protocol.codec import (
    convert,
    decode,
    decode_envelope,
    decode_from_client,
    decode_to_client,
    encode,
    encode_from_client,
    pack,
    plain,
    request_id,
)
from slipstream.protocol.errors import (
    BY_CODE,
    InvalidRequest,
    Overloaded,
    ProtocolError,
    SlipstreamError,
    from_wire,
)
from slipstream.protocol.internal import AnyInternal, Envelope, Submit
from slipstream.protocol.limits import (
    MAX_ALL_ITEMS,
    MAX_CONTAINERS,
    MAX_FRAME_BYTES,
    MAX_ITEMS,
    MAX_KEYS,
    MAX_REQUEST_ID_CHARS,
    Limits,
)
from slipstream.protocol.messages import Delta, Deltas, FromClient, Generate, Pong, PublicIn, PublicOut
from slipstream.protocol.sampling import RANGES, SamplingParams

from slipstream.reference import golden, internal_examples, public_examples

PUBLIC_FRAMES = [
    *(encode_from_client(message) for _, message in public_examples.FROM_CLIENT),
    *(encode(message) for _, message in public_examples.TO_CLIENT),
]
INTERNAL_FRAMES = [
    encode(Envelope("scheduler", 3, 2, number, message))
    for number, (_, message) in enumerate(internal_examples.INTERNAL)
]


# --- golden vectors -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["public.json", "refused.json", "internal.json"])
def test_writing_the_golden_vectors_again_changes_nothing(name: str) -> None:
    assert (golden.FOLDER / name).read_text(encoding="utf-8") == golden.files()[name]


def test_no_other_file_lies_among_the_vectors() -> None:
    assert {path.name for path in golden.FOLDER.iterdir()} == set(golden.files())


@pytest.mark.parametrize(
    ("vectors", "kinds"),
    [
        (public_examples.FROM_CLIENT, PublicIn),
        (public_examples.TO_CLIENT, PublicOut),
        (internal_examples.INTERNAL, AnyInternal),
    ],
    ids=["from a client", "to a client", "internal"],
)
def test_every_message_has_a_vector(vectors: list[tuple[str, Any]], kinds: Any) -> None:
    assert {type(message) for _, message in vectors} == set(typing.get_args(kinds))


class Inner(msgspec.Struct, array_like=True):
    share: float


class New(msgspec.Struct, array_like=True):
    number: int
    inner: list[Inner]
    pairs: list[tuple[int, str]]
    counters: dict[str, float]
    sure: bool
    either: str | list[int]
    perhaps: int | None
    late: bytes = b""


def test_a_message_without_an_example_is_shown_with_a_value_in_every_field() -> None:
    message = internal_examples.filled(New, number=7, perhaps=None)
    told = (message.number, message.inner, message.pairs, message.counters, message.sure, message.either)
    assert told == (7, [Inner(0.5)], [(1, "text")], {"name": 0.5}, True, "text")
    assert message.late
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=New) == message


@pytest.mark.parametrize(
    ("vectors", "kinds"),
    [
        (public_examples.FROM_CLIENT, PublicIn),
        (public_examples.TO_CLIENT, PublicOut),
        (internal_examples.INTERNAL, AnyInternal),
    ],
    ids=["from a client", "to a client", "internal"],
)
def test_the_vectors_of_a_message_together_give_each_of_its_fields_a_value(
    vectors: list[tuple[str, Any]], kinds: Any
) -> None:
    """A field that no vector shows could change its name or its place unseen."""
    shown: set[tuple[type, str]] = set()
    kinds_shown: set[type] = set()

    def look(value: Any) -> None:
        if isinstance(value, msgspec.Struct):
            kinds_shown.add(type(value))
            always = not (value.__struct_config__.omit_defaults or value.__struct_config__.array_like)
            for field in msgspec.structs.fields(value):
                told = getattr(value, field.name)
                look(told)
                if always or field.required or told not in ([], {}, b"", field.default):
                    shown.add((type(value), field.name))
        elif isinstance(value, list):
            for item in value:
                look(item)

    look([message for _, message in vectors])
    expected = {(kind, field) for kind in kinds_shown for field in kind.__struct_fields__}
    assert {f"{kind.__name__}.{field}" for kind, field in expected - shown} == set()


def vectors_in(name: str) -> list[dict[str, Any]]:
    return json.loads((golden.FOLDER / name).read_text(encoding="utf-8"))["vectors"]


@pytest.mark.parametrize("vector", vectors_in("public.json"), ids=lambda v: f"{v['sender']}: {v['name']}")
def test_a_client_that_knows_only_messagepack_can_use_the_public_vectors(vector: dict[str, Any]) -> None:
    """The JSON is the MessagePack; and any order of keys means the same."""
    frame = bytes.fromhex(vector["hex"])
    assert golden.shown(msgpack.unpackb(frame)) == vector["message"]
    read = decode_from_client if vector["sender"] == "client" else decode_to_client
    turned = msgpack.packb(dict(reversed(msgpack.unpackb(frame).items())))
    assert turned is not None
    assert read(turned) == read(frame)
    message = read(frame)
    assert (encode_from_client(message) if isinstance(message, FromClient) else encode(message)) == frame
    assert read(encode(message)) == message


@pytest.mark.parametrize(
    "message",
    [
        message
        for _, message in [*public_examples.TO_CLIENT, *internal_examples.INTERNAL]
        if not hasattr(message, "params")
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_the_service_writes_is_in_the_shortest_form_but_for_sampling_parameters(message: Any) -> None:
    """A type with more fields than a small map can have is written as a large one, however few of them it has."""
    assert encode(message) == pack(plain(message))


@pytest.mark.parametrize("vector", vectors_in("internal.json"), ids=lambda v: v["name"])
def test_internal_vectors_decode_to_what_they_were_made_of(vector: dict[str, Any]) -> None:
    envelope = decode_envelope(bytes.fromhex(vector["hex"]))
    assert (envelope.sender, envelope.epoch, envelope.receiver_epoch) == ("scheduler", 3, 2)
    assert envelope.body == internal_examples.INTERNAL[envelope.sequence][1]
    assert golden.shown(msgpack.unpackb(bytes.fromhex(vector["hex"]))) == vector["message"]


@pytest.mark.parametrize("vector", vectors_in("refused.json"), ids=lambda v: v["name"])
def test_a_frame_that_is_no_message_is_refused_with_the_reason(vector: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError) as refused:
        decode_from_client(bytes.fromhex(vector["hex"]))
    assert vector["says"] in str(refused.value)


def test_a_client_ignores_fields_of_a_later_minor_version_and_a_service_refuses_them() -> None:
    assert decode_to_client(pack({"t": "pong", "nonce": 3, "mood": "good"})) == Pong(nonce=3)
    with pytest.raises(ProtocolError, match="unknown field `mood`"):
        decode_from_client(pack({"t": "ping", "nonce": 3, "mood": "good"}))


LONG = "k" * 4_000_000


@pytest.mark.parametrize(
    "fields",
    [
        {LONG: 1},
        {"params": {LONG: 1}},
        {"params": {"logit_bias": {LONG: "much"}}},
        {"t": LONG},
        {"prompt": {LONG: LONG}},
    ],
    ids=["field", "parameter", "key", "type", "value"],
)
def test_an_error_is_short_however_long_the_name_is_that_it_complains_about(fields: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError) as refused:
        decode_from_client(pack({"t": "generate", "id": "a", "prompt": "x"} | fields))
    assert len(str(refused.value)) + len(refused.value.param or "") < 1000


def test_what_is_wrong_under_some_key_of_a_map_is_an_error_of_the_map() -> None:
    params = {"logit_bias": {"5": 1.0, "6": "much"}}
    with pytest.raises(ProtocolError, match="'6': 'much'") as refused:
        decode_from_client(pack({"t": "generate", "id": "a", "prompt": "x", "params": params}))
    assert refused.value.param == "logit_bias"


# --- round trips --------------------------------------------------------------------------------

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a type as the messages use types."""
    simple: dict[Any, st.SearchStrategy[Any]] = {
        int: st.integers(-(2**63), 2**64 - 1),
        float: st.floats(allow_nan=False),
        str: st.text(max_size=20),
        bytes: st.binary(max_size=20),
        bool: st.booleans(),
        type(None): st.none(),
        Any: PLAIN,
    }
    if hint in simple:
        return simple[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return st.one_of([values(argument) for argument in arguments])
    if origin is list:
        return st.lists(values(arguments[0]), max_size=4)
    if origin is tuple:
        return st.tuples(*[values(argument) for argument in arguments])
    if origin is dict:
        return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=3)
    assert issubclass(hint, msgspec.Struct), hint
    hints = typing.get_type_hints(hint)
    return st.builds(hint, **{name: values(hints[name]) for name in hint.__struct_fields__})


@pytest.mark.parametrize("kind", typing.get_args(PublicIn | PublicOut), ids=lambda kind: kind.__name__)
def test_a_public_message_arrives_as_it_was_sent(kind: type) -> None:
    from_client = kind in typing.get_args(PublicIn)
    read = decode_from_client if from_client else decode_to_client
    write = encode_from_client if from_client else encode

    @settings(max_examples=60, deadline=None)
    @given(values(kind))
    def check(message: Any) -> None:
        assert read(write(message)) == message

    check()


@pytest.mark.parametrize("kind", typing.get_args(AnyInternal), ids=lambda kind: kind.__name__)
def test_an_internal_message_arrives_as_it_was_sent(kind: type) -> None:
    @settings(max_examples=60, deadline=None)
    @given(values(kind), st.integers(0, 2**63), st.integers(0, 2**63))
    def check(message: Any, epoch: int, sequence: int) -> None:
        envelope = Envelope("gateway", epoch, epoch + 1, sequence, message)
        assert decode_envelope(encode(envelope)) == envelope

    check()


def test_a_lone_surrogate_is_sent_as_a_question_mark_and_never_as_broken_utf_8() -> None:
    frame = encode(Deltas(items=[Delta(id="1", text="a\ud800b")]))
    assert b"a?b" in frame
    assert decode_to_client(frame) == Deltas(items=[Delta(id="1", text="a?b")])
    assert decode_from_client(encode(Generate(id="\udfff", prompt="x"))) == Generate(id="?", prompt="x")
    submit = Submit(1, "\ud83d", SamplingParams())
    arrived = decode_envelope(encode(Envelope("gateway", 1, 1, 0, submit))).body
    assert arrived == Submit(1, "?", SamplingParams())


# --- bounds -------------------------------------------------------------------------------------


def generate_with(raw: bytes) -> bytes:
    """A generate message whose ``messages`` is ``raw``."""
    return b"\x83\xa1t\xa8generate\xa2id\xa1r\xa8messages" + raw


def test_a_frame_over_the_limit_is_refused_by_its_size_before_it_is_read() -> None:
    size = MAX_FRAME_BYTES + 1
    with pytest.raises(
        ProtocolError, match=f"^a frame of {size} bytes is over the limit of {MAX_FRAME_BYTES}$"
    ):
        decode_from_client(bytes(size))


@pytest.mark.parametrize(
    ("lead", "kind", "most"), [(b"\xdd", "array", MAX_ITEMS), (b"\xdf", "map", MAX_KEYS)]
)
def test_an_array_or_map_of_too_many_items_is_refused_by_the_number_that_it_claims(
    lead: bytes, kind: str, most: int
) -> None:
    frame = generate_with(lead + struct.pack(">I", most + 1))
    with pytest.raises(ProtocolError, match=f"{most + 1} exceeds max_{kind}_len\\({most}\\)"):
        decode_from_client(frame)


def test_what_all_arrays_of_a_frame_hold_together_is_bounded_too() -> None:
    received = [[5] * MAX_ITEMS] * (MAX_ALL_ITEMS // MAX_ITEMS)
    request = {"t": "generate", "id": "1", "prompt": "x"}
    with pytest.raises(ProtocolError, match=f"its arrays and maps have more than {MAX_ALL_ITEMS} items"):
        decode_from_client(pack(request | {"received_of_others": received}))
    received[-1] = received[-1][:-9]  # for the fields of the message, and the list of these lists
    message = decode_from_client(pack(request | {"received_of_others": received}))
    assert isinstance(message, Generate)
    assert message.received_of_others == received


def test_an_array_of_exactly_as_many_items_as_allowed_is_read() -> None:
    frame = pack({"t": "generate", "id": "1", "prompt": [0] * MAX_ITEMS})
    message = decode_from_client(frame)
    assert isinstance(message, Generate)
    assert message.prompt == [0] * MAX_ITEMS


@pytest.mark.parametrize(
    "claim",
    [b"\xc6", b"\xdb", b"\xc9", b"\xdd", b"\xdf"],
    ids=["binary", "text", "extension", "array", "map"],
)
def test_a_huge_claimed_length_costs_neither_time_nor_memory(claim: bytes) -> None:
    begun = time.process_time()
    with pytest.raises(ProtocolError, match="not MessagePack"):
        decode_from_client(generate_with(claim + b"\xff\xff\xff\xff"))
    for start, read in (
        (b"\x82\xa1t\xa6deltas\xa5items", decode_to_client),
        (b"\x82\xa1t\xa5stats\xa8counters", decode_to_client),
        (b"\x95\xa9scheduler\x03\x02\x00\x92\xa6Cancel", decode_envelope),
        (b"\x95\xa9scheduler\x03\x02\x00\x93\xa6Submit\x05", decode_envelope),
    ):
        with pytest.raises(ProtocolError):
            read(start + claim + b"\xff\xff\xff\xff")
    assert time.process_time() - begun < 0.1


@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa0"], ids=["arrays", "maps"])
@pytest.mark.parametrize("depth", [5_000, 1_000_000])
def test_any_depth_of_nesting_is_refused_with_a_reason(opening: bytes, depth: int) -> None:
    with pytest.raises(ProtocolError, match="not MessagePack: StackError"):
        decode_from_client(generate_with(opening * depth + b"\xc0"))


@pytest.mark.parametrize("depth", [10, 500, 900])
def test_a_deep_value_in_the_wrong_place_is_named_in_short(depth: int) -> None:
    frame = b"\x82\xa1t\xa5abort\xa2id" + b"\x91" * depth + b"\xc0"
    with pytest.raises(ProtocolError, match=r"Expected `str`, got `array` - at `\$.id`: the value is \[\["):
        decode_from_client(frame)


@pytest.mark.parametrize("item", [b"\x90", b"\x80", b"\x81\xa0\x90"], ids=["arrays", "maps", "both"])
def test_a_frame_of_nothing_but_containers_is_refused_before_it_fills_the_memory(item: bytes) -> None:
    """16 MB of them would be over a gigabyte of objects, and seconds in which nobody else is answered."""
    million = b"\xdd" + struct.pack(">I", MAX_ITEMS) + item * MAX_ITEMS
    frame = generate_with(b"\xdd" + struct.pack(">I", 3) + million * 3)
    begun = time.process_time()
    with pytest.raises(ProtocolError, match=f"more than {MAX_CONTAINERS} arrays and maps"):
        decode_from_client(frame)
    assert request_id(frame) == "r"
    for hidden in (b"\x81" + million + b"\x01", b"\x81\xa2id" + million):
        assert request_id(hidden) is None
    assert time.process_time() - begun < 2.0


@pytest.mark.parametrize(
    "data", [b"\xc7\x00\x05", b"\xd4\x05x", b"\xc7\x04\x05abcd", b"\xd6\xff\x00\x00\x00\x00"]
)
@pytest.mark.parametrize("place", ["nonce", "inside a field of any type"])
def test_no_extension_type_is_let_in_not_even_an_empty_one(data: bytes, place: str) -> None:
    frame = b"\x82\xa1t\xa4ping\xa5nonce" + data
    if place != "nonce":
        frame = generate_with(b"\x91\x81\xa1x" + data)
    with pytest.raises(ProtocolError, match="ext"):
        decode_from_client(frame)


@pytest.mark.parametrize("text", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80"])
@pytest.mark.parametrize("place", ["value", "key"])
def test_a_text_that_is_no_utf_8_is_refused(text: bytes, place: str) -> None:
    packed = bytes([0xA0 | len(text)]) + text
    frame = b"\x82\xa1t\xa5abort\xa2id" + packed if place == "value" else b"\x81" + packed + b"\xc0"
    with pytest.raises(ProtocolError, match="utf-8"):
        decode_from_client(frame)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_reaches_the_check_of_the_parameters_and_no_whole_number(number: float) -> None:
    message = decode_from_client(pack({"t": "generate", "id": "1", "params": {"temperature": number}}))
    assert isinstance(message, Generate)
    assert not math.isfinite(message.params.temperature)
    for field in ("max_tokens", "seed", "top_k"):
        with pytest.raises(ProtocolError, match=f"params.{field}`: the value is {number!r}"):
            decode_from_client(pack({"t": "generate", "id": "1", "params": {field: number}}))


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ({"t": "generate", "id": "1", "params": {"max_tokens": "many"}}, "'many'"),
        ({"t": "generate", "id": "1", "params": {"top_p": [0.5]}}, "[0.5]"),
        ({"t": "generate", "id": "1", "params": {"ignore_eos": 1}}, "the value is 1"),
        ({"t": "generate", "id": "1", "params": {"temperature": True}}, "True"),
        ({"t": "generate", "id": "1", "prompt": [1, "two"]}, "'two'"),
        ({"t": "generate", "id": "1", "prompt": {"text": "x"}}, "{'text': 'x'}"),
        ({"t": "generate", "id": "1", "messages": ["hello"]}, "'hello'"),
        ({"t": "hello", "protocol": "1.0"}, "'1.0'"),
        ({"t": 5}, "5"),
        ({"t": "generate", "id": "x" * 9, "params": {"tempreature": 1}}, "`tempreature`"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(message: dict[str, Any], named: str) -> None:
    with pytest.raises(ProtocolError) as refused:
        decode_from_client(pack(message))
    assert named in str(refused.value)


def test_a_huge_wrong_value_is_named_in_few_words() -> None:
    with pytest.raises(ProtocolError) as refused:
        decode_from_client(pack({"t": "abort", "id": [list(range(1000))] * 500}))
    assert len(str(refused.value)) < 300


def test_the_id_of_a_refused_frame_is_found_where_there_is_one_of_a_length_that_is_allowed() -> None:
    assert request_id(pack({"t": "generate", "id": "7", "prompt": 5})) == "7"
    assert request_id(pack({"t": "generate", "id": 7})) is None
    assert request_id(pack({"t": "generate", "id": "7" * (MAX_REQUEST_ID_CHARS + 1)})) is None
    assert request_id(b"\xc1") is None
    assert request_id(pack(dict.fromkeys(map(str, range(1000))) | {"id": "7"})) is None
    assert request_id(b"\x91" * 5000) is None


@pytest.mark.parametrize(
    "value",
    [b"\x81\x05\xa1x", b"\x91" * 5000, b"\xd4\x07\x00", b"\xdd\x00\x04\x00\x00" + b"\x90" * 2**18, b"\xc1"],
    ids=["a key that is no text", "too deep", "an extension", "too many arrays", "no MessagePack"],
)
def test_the_id_is_found_though_what_follows_cannot_be_read(value: bytes) -> None:
    frame = b"\x83\xa1t\xa8generate\xa2id\xa17\xa6prompt" + value
    with pytest.raises(ProtocolError):
        decode_from_client(frame)
    assert request_id(frame) == "7"


# --- anything at all ----------------------------------------------------------------------------


def test_of_two_hundred_thousand_mutated_frames_each_is_a_message_or_a_protocol_error(soak: bool) -> None:
    rng = random.Random(20_240_229)
    refused = {"client": 0, "service": 0, "actor": 0}
    lots: list[tuple[str, list[bytes], Any]] = [
        ("client", PUBLIC_FRAMES, decode_from_client),
        ("service", PUBLIC_FRAMES, decode_to_client),
        ("actor", INTERNAL_FRAMES, decode_envelope),
    ]
    shares = [share * (50 if soak else 1) for share in (100_000, 30_000, 70_000)]
    before = psutil.Process().memory_info().rss
    for (name, frames, read), share in zip(lots, shares, strict=True):
        for _ in range(share):
            frame = mutated(rng, rng.choice(frames))
            try:
                read(frame)
            except ProtocolError as error:
                refused[name] += bool(str(error))
            request_id(frame)
    assert all(10_000 < count < share for count, share in zip(refused.values(), shares, strict=True)), refused
    assert psutil.Process().memory_info().rss - before < 16e6


def is_read_or_refused(frame: bytes, read: Callable[[bytes], Any]) -> bool:
    """Any other exception fails the test."""
    try:
        read(frame)
    except ProtocolError as error:
        return str(error) != ""
    return True


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_protocol_error(frame: bytes) -> None:
    for read in (decode_from_client, decode_to_client, decode_envelope):
        assert is_read_or_refused(frame, read)


@settings(max_examples=300, deadline=None)
@given(PLAIN, st.sampled_from(["hello", "generate", "abort", "ping", "stats", "trace", ""]))
def test_any_plain_values_are_a_message_or_a_protocol_error(plain: Any, tag: str) -> None:
    for value in (plain, {"t": tag, "id": plain, "params": plain}, {"t": tag, "protocol": plain}):
        assert is_read_or_refused(pack(value), decode_from_client)


@settings(max_examples=300, deadline=None)
@given(PLAIN, st.sampled_from([message for _, message in public_examples.TO_CLIENT]), st.data())
def test_a_frame_of_the_service_with_a_wrong_value_is_refused_in_the_same_words_as_one_of_a_client(
    wrong: Any, message: Any, data: st.DataObject
) -> None:
    """What reads fast says no more than that something is wrong; what reads with care says what."""
    values = plain(message)
    values[data.draw(st.sampled_from(sorted(values)))] = wrong
    frame = pack(values)

    def read(by: Callable[[bytes], Any]) -> Any:
        try:
            return by(frame)
        except ProtocolError as error:
            return str(error), error.param

    assert read(decode_to_client) == read(lambda frame: decode(frame, PublicOut))


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", BY_CODE)
def test_an_error_comes_out_of_the_wire_as_the_kind_that_went_in(code: str) -> None:
    again = from_wire(code, "because", 2.5, "top_p")
    assert type(again) is BY_CODE[code]
    assert (str(again), again.code) == ("because", code)
    if isinstance(again, Overloaded):
        assert again.retry_after_s == 2.5
    else:
        assert again.param == "top_p"


def test_an_error_of_a_later_version_comes_out_as_the_base_class_with_its_code() -> None:
    error = from_wire("out_of_coffee", "because")
    assert type(error) is SlipstreamError
    assert error.code == "out_of_coffee"


def test_an_error_survives_its_way_to_another_process() -> None:
    error = pickle.loads(pickle.dumps(InvalidRequest("no", param="prompt", code="context_length_exceeded")))
    assert (str(error), error.param, error.code) == ("no", "prompt", "context_length_exceeded")
    assert pickle.loads(pickle.dumps(Overloaded("full", 2.5))).retry_after_s == 2.5


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": [1, "two"]}, "prompt[1]"),
        ({"params": {"top_p": "most"}}, "top_p"),
        ({"params": {"tempreature": 1}}, "tempreature"),
        ({"params": {"logit_bias": {"5": "x"}}}, "logit_bias"),
        ({"mood": "good"}, "mood"),
        ({"messages": ["hello"]}, "messages[0]"),
        ({"id": None}, "id"),
        ({"t": "a field `x` - at `$.y`"}, "t"),
    ],
)
def test_a_wrong_value_is_told_with_the_field_that_has_it(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ProtocolError) as refused:
        decode_from_client(pack({"t": "generate", "id": "1"} | fields))
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("params", "param"),
    [
        *(({name: high + 1}, name) for name, (_, high, _) in RANGES.items() if not isinstance(high, str)),
        ({"max_tokens": 0}, "max_tokens"),
        ({"top_k": 1000}, "top_k"),
        ({"stop": ""}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop_token_ids": [100]}, "stop_token_ids"),
        ({"logit_bias": {"-1": 1.0}}, "logit_bias"),
        ({"logit_bias": {"1": 101.0}}, "logit_bias"),
        ({"cache_salt": "x" * 257}, "cache_salt"),
        ({"regex": "a", "choice": ["a"]}, "choice"),
        ({"choice": []}, "choice"),
        ({"regex": "\ud800"}, "regex"),
        ({"regex": "a" * 40_000}, "regex"),
        ({"json_schema": {"a": math.nan}}, "json_schema"),
    ],
)
def test_a_sampling_parameter_out_of_range_is_named_by_a_field_of_the_error(
    params: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        SamplingParams(**params).check(Limits(max_model_len=100, vocab_size=100, max_prompt_bytes=1000))
    assert refused.value.param == param


class Item(msgspec.Struct, forbid_unknown_fields=True):
    known: int
    items: list[Item] = []


@pytest.mark.parametrize("key", ["a", "a.b", "$"])
def test_a_null_of_an_unknown_field_is_as_good_as_none_whatever_its_name(key: str) -> None:
    plain = {"known": 1, "items": [{"known": 2, key: None}], key: None}
    assert convert(plain, Item) == Item(1, [Item(2)])
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        convert(plain | {key: 3}, Item)
