"""What a client does not read: it is cut off alone, and what waits for it is bounded."""

from __future__ import annotations

import pytest
from scripted import Scripted
from slipstream.actors.http.logprob_lists import MAX_OF_ONE_ANSWER
from slipstream.actors.http.service import MAX_GATEWAY_CLIENTS, GatewayClients, most_unread
from slipstream.protocol.client.session import Session
from slipstream.protocol.codec import decode_from_client, encode
from slipstream.protocol.errors import Overloaded
from slipstream.protocol.limits import Limits
from slipstream.protocol.messages import Abort, Delta, Deltas, Welcome

from slipstream import SamplingParams

HI = [{"role": "user", "content": "hi"}]

WELCOME = Welcome(
    protocol=[1, 0],
    server="s",
    model="m",
    limits=Limits(max_model_len=1024, vocab_size=2048, max_prompt_bytes=65536),
)


def ready() -> Session:
    session = Session("ipc:///x")
    session.ensure_connection(0.0)
    session.receive(encode(WELCOME), 0.0)
    session.outbox.clear()
    return session


def test_a_request_that_nobody_reads_ends_alone_and_keeps_nothing() -> None:
    session = ready()
    unread = session.ask(0.0, prompt="x", max_waiting=10)
    read = session.ask(0.0, prompt="x", max_waiting=10)
    session.outbox.clear()
    for _ in range(11):
        items = [Delta(id=each.request.id, token_ids=[1]) for each in (unread, read)]
        touched = session.receive(encode(Deltas(items=items)), 1.0)
        assert read in touched
        read.deltas.clear()
    assert isinstance(unread.error, Overloaded)
    assert "10" in str(unread.error)
    assert not unread.deltas
    assert list(session.streams.values()) == [read]
    assert [decode_from_client(frame) for frame in session.outbox] == [Abort(id=unread.request.id)]
    assert read.error is None


@pytest.mark.parametrize(
    ("params", "most"),
    [
        (SamplingParams(), 20_000),
        (SamplingParams(logprobs=0), 20_000),
        (SamplingParams(logprobs=19), 1000),
        (SamplingParams(logprobs=20, n=64), 64 * 64),
    ],
)
def test_how_much_may_wait_depends_on_what_is_told_of_each_token(params: SamplingParams, most: int) -> None:
    assert most_unread(params) == most


def test_an_answer_that_is_told_whole_is_not_cut_off_as_unread_if_it_may_be_kept() -> None:
    """Its client has nothing to read yet: the frontend itself is behind, by the third of a second."""
    assert most_unread(SamplingParams(logprobs=20, n=20), 21_000) == 1000
    assert most_unread(SamplingParams(n=20), 21_000) == 20_000
    for stream, held in ((False, MAX_OF_ONE_ANSWER // 21), (True, 952)):
        for path, body in (
            ("/v1/completions", {"prompt": "x", "logprobs": 20}),
            ("/v1/chat/completions", {"messages": HI, "logprobs": True, "top_logprobs": 20}),
        ):
            frontend = Scripted()
            frontend.post(path, body | {"n": 8, "max_tokens": 1000, "stream": stream})
            assert frontend.script.asked["max_waiting"] == held


def test_every_request_has_such_a_bound() -> None:
    frontend = Scripted()
    for path, fields in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ("/v1/completions", {"prompt": "x"}),
    ):
        assert frontend.post(path, fields).status == 200
        assert frontend.script.asked["max_waiting"] == 20_000


def test_clients_at_different_addresses_are_different_clients_of_the_gateway() -> None:
    made: list[object] = []

    def connect() -> object:
        made.append(object())
        return made[-1]

    clients = GatewayClients(connect)  # type: ignore[arg-type]
    assert clients.of("10.0.0.1") is clients.of("10.0.0.1")
    assert clients.of("10.0.0.1") is not clients.of("10.0.0.2")
    for number in range(1000):
        clients.of(f"10.0.{number % 256}.{number // 256}")
    assert len(made) == MAX_GATEWAY_CLIENTS + 1, "and one for the service's own questions"
