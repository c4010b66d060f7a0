"""The sans-IO core of the clients: what it sends, when, and what it makes of the answers."""

from __future__ import annotations

from typing import Any

import pytest
from fake_gateway import LIMITS, WELCOME
from slipstream.protocol.client.pending import Stream
from slipstream.protocol.client.request import encode_request
from slipstream.protocol.client.session import (
    HELLO_TIMEOUT_S,
    LOST_AFTER_S,
    MAX_UNANSWERED_CONNECTIONS,
    PING_AFTER_S,
    RECONNECT_DELAY_S,
    Session,
)
from slipstream.protocol.codec import decode_from_client, encode
from slipstream.protocol.messages import (
    Abort,
    Deltas,
    Error,
    Generate,
    GetStats,
    GetTrace,
    Hello,
    Ping,
    Pong,
    PublicIn,
    Stats,
    Trace,
    Welcome,
)

from slipstream import (
    Delta,
    InvalidRequest,
    ProtocolError,
    SamplingParams,
    ServiceUnavailable,
    SlipstreamError,
)

HELLO = [{"role": "user", "content": "hello"}]


def ready(now: float = 0.0) -> Session:
    session = Session("ipc:///x", timeout_s=10)
    session.inquire(now, Welcome)
    session.receive(encode(WELCOME), now)
    session.outbox.clear()
    return session


def sent(session: Session) -> list[PublicIn]:
    frames, session.outbox = list(session.outbox), type(session.outbox)()
    return [decode_from_client(frame) for frame in frames]


def test_hello_comes_first_and_requests_wait_for_welcome() -> None:
    session = Session("ipc:///x")
    session.ask(0.0, prompt="x", request_id="a")
    assert [type(message) for message in sent(session)] == [Hello]
    session.receive(encode(WELCOME), 0.1)
    assert [getattr(message, "id", None) for message in sent(session)] == ["a"]


def test_questions_of_one_kind_are_put_one_after_the_other() -> None:
    session = ready()
    one, two, three = (session.inquire(0.0, Trace, seconds=float(number)) for number in (1, 2, 3))
    other = session.inquire(0.0, Stats)
    assert sent(session) == [GetTrace(seconds=1.0), GetStats()]
    trace = encode(Trace(actors={}, since_ns=0, until_ns=0))
    assert session.receive(trace, 0.1) == [one]
    assert sent(session) == [GetTrace(seconds=2.0)]
    session.receive(encode(Error(code="protocol", message="say hello first")), 0.2)
    sent(session)
    session.receive(encode(WELCOME), 0.3)
    assert sent(session) == [GetTrace(seconds=2.0), GetStats()]
    assert session.receive(encode(Stats(counters={})), 0.4) == [other]
    assert sent(session) == []
    assert session.receive(trace, 0.5) == [two]
    assert sent(session) == [GetTrace(seconds=3.0)]
    assert session.receive(trace, 0.6) == [three]
    assert sent(session) == []


def test_silence_is_answered_with_a_ping_and_then_a_new_connection() -> None:
    session = ready(0.0)
    assert session.wake_at is None
    stream = session.ask(100.0, prompt="x")
    sent(session)
    assert session.wake_at == 100.0 + PING_AFTER_S
    session.receive(encode(Deltas(items=[Delta(id=stream.request.id, token_ids=[5])])), 101.5)
    assert session.tick(102.0) == []
    assert sent(session) == []
    session.tick(102.5)
    assert sent(session) == [Ping()]
    session.receive(encode(Pong()), 102.6)
    assert session.wake_at == 102.6 + PING_AFTER_S
    session.tick(103.6)
    assert sent(session) == [Ping()]
    before = session.connection
    session.tick(103.6 + LOST_AFTER_S)
    assert session.connection == before + 1
    assert [type(message) for message in sent(session)] == [Hello]
    session.tick(103.6 + LOST_AFTER_S + HELLO_TIMEOUT_S)
    assert session.connection == before + 2
    assert [type(message) for message in sent(session)] == [Hello]
    session.receive(encode(WELCOME), 113.0)
    (again,) = sent(session)
    assert isinstance(again, Generate)
    assert (again.id, again.received) == (stream.request.id, [5])


def test_a_broken_connection_is_not_waited_for() -> None:
    session = ready()
    assert not session.interrupted(1.0)
    assert session.state == "lost"  # nothing is open: the next request connects
    session = ready()
    stream = session.ask(1.0, prompt="x")
    session.receive(encode(Deltas(items=[Delta(id=stream.request.id, token_ids=[7])])), 1.0)
    session.outbox.clear()
    assert not session.interrupted(1.5)
    assert session.state == "greeting"
    assert isinstance(sent(session)[0], Hello)
    connection = session.connection
    session.interrupted(1.6)  # before the Welcome: it is tried again, but not at once
    assert session.wake_at == 1.6 + RECONNECT_DELAY_S
    session.tick(1.6 + RECONNECT_DELAY_S)
    assert session.connection == connection + 1


def test_a_gateway_that_forgets_us_at_once_is_given_up() -> None:
    session = ready()
    stream = session.ask(0.0, prompt="x")
    for _ in range(MAX_UNANSWERED_CONNECTIONS):
        assert session.receive(encode(Error(code="protocol", message="say hello first")), 1.0) == []
        session.receive(encode(WELCOME), 1.0)
        assert stream.error is None
    assert session.receive(encode(Error(code="protocol", message="say hello first")), 1.0) == [stream]
    assert isinstance(stream.error, ServiceUnavailable)


def test_a_restart_after_progress_never_counts_against_the_gateway() -> None:
    session = ready()
    stream = session.ask(0.0, prompt="x")
    for _ in range(5 * MAX_UNANSWERED_CONNECTIONS):
        session.receive(encode(Deltas(items=[Delta(id=stream.request.id, token_ids=[1])])), 1.0)
        session.receive(encode(Error(code="protocol", message="say hello first")), 1.0)
        session.receive(encode(WELCOME), 1.0)
    assert stream.error is None
    assert stream.received == {0: [1] * 5 * MAX_UNANSWERED_CONNECTIONS}


def test_a_request_aborted_before_the_connection_was_lost_is_not_sent_again() -> None:
    session = ready()
    stream = session.ask(0.0, prompt="x")
    session.abort(stream.request.id)
    session.abort(stream.request.id)
    assert [type(message) for message in sent(session)] == [Generate, Abort]
    session.receive(encode(Error(code="protocol", message="say hello first")), 1.0)
    assert session.receive(encode(WELCOME), 1.0) == [stream]
    assert [type(message) for message in sent(session)] == [Hello]
    assert stream.deltas[0].finish_reason == "abort"


def test_a_complaint_about_the_connection_ends_everything() -> None:
    session = ready()
    streams = [session.ask(0.0, prompt="x") for _ in range(3)]
    assert session.receive(encode(Error(code="unavailable", message="stopping")), 1.0) == streams
    assert all(isinstance(stream.error, ServiceUnavailable) for stream in streams)
    assert len({id(stream.error) for stream in streams}) == 3
    assert session.state == "lost"


def test_other_major_version_is_refused() -> None:
    session = Session("ipc:///x")
    question = session.inquire(0.0, Welcome)
    other = Welcome(protocol=[2, 0], server="s", model="m", limits=LIMITS)
    assert session.receive(encode(other), 0.1) == [question]
    assert isinstance(question.error, ProtocolError)


def test_strangers_and_late_messages_are_ignored() -> None:
    session = ready()
    stream = session.ask(0.0, prompt="x")
    session.leave(stream)
    for late in (
        Deltas(items=[Delta(id=stream.request.id, text="late", finish_reason="stop")]),
        Error(id="unknown", code="invalid_request", message="?"),
        Pong(nonce=9),
        Stats(counters={}),
        WELCOME,
    ):
        assert session.receive(encode(late), 1.0) == []
    assert session.state == "ready"


def test_request_ids() -> None:
    session = ready()
    assert isinstance(session.ask(0.0, prompt="x", request_id="a"), Stream)
    with pytest.raises(InvalidRequest, match="in use"):
        session.ask(0.0, prompt="x", request_id="a")
    with pytest.raises(SlipstreamError, match="1 to 128"):
        session.ask(0.0, prompt="x", request_id="")
    assert session.ask(0.0, prompt="x").request.id != session.ask(0.0, prompt="x").request.id


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"prompt": [5, 2**70]}, "prompt[1]"),
        (
            {"params": SamplingParams(json_schema={"allOf": [{"minimum": 10**400}]})},
            "json_schema.allOf[0].minimum",
        ),
        ({"params": SamplingParams(stop_token_ids=[1, -(2**63) - 1])}, "stop_token_ids[1]"),
        ({"messages": [{"role": "user", "content": "x", "age": 2**64}]}, "messages[0].age"),
    ],
    ids=["prompt", "schema", "parameter", "message"],
)
def test_a_number_that_no_frame_can_hold_is_refused_by_its_place(asked: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot be sent: a whole number is") as refused:
        encode_request(Generate(id="a", **asked))
    assert refused.value.param == param
    assert str(refused.value).startswith(param)


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        (
            {"messages": HELLO, "chat_template_kwargs": {str(n): 1 for n in range(90_000)}},
            "chat_template_kwargs",
        ),
        ({"messages": [{"role": "user", "content": "a\ud800"}]}, "messages"),
        ({"prompt": "a" * (17 << 20)}, "prompt"),
        ({"prompt": "a", "params": SamplingParams(stop=["a\ud800"])}, "stop"),
        ({"messages": HELLO, "tools": [{"a": [[] for _ in range(100_001)]}]}, "tools"),
        (
            {"prompt": [1] * 999_999, "params": SamplingParams(stop_token_ids=[1] * 1_000_001)},
            "stop_token_ids",
        ),
        ({"messages": [{"role": "user", "content": object()}]}, "messages"),
    ],
    ids=["keys", "surrogate", "bytes", "parameter", "containers", "items", "type"],
)
def test_what_cannot_be_sent_is_refused_by_its_field(asked: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        encode_request(Generate(id="a", **asked))
    assert refused.value.param == param
