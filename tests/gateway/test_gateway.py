"""The gateway as it is: a pure actor that a test talks to, without a socket or a clock."""

from __future__ import annotations

import itertools
import math
import random
from array import array
from typing import Any

import pytest
from slipstream.actors.gateway.gateway import Gateway
from slipstream.actors.public import connections
from slipstream.actors.public.connections import PROBE_S, RETRY_S
from slipstream.actors.public.timelines import MAX_WAITING_TRACES, TRACE_TIMEOUT_S
from slipstream.protocol.client.timeline import Timeline
from slipstream.protocol.codec import encode
from slipstream.protocol.limits import (
    MAX_CHOICES,
    MAX_DEADLINE_S,
    MAX_LOGPROBS,
    MAX_REQUEST_ID_CHARS,
    MAX_SEED,
    Limits,
)
from slipstream.protocol.messages import (
    Abort,
    Actors,
    Cancel,
    ClientBlocked,
    ClientGone,
    ClientMessage,
    Delta,
    Deltas,
    Drain,
    DumpTrace,
    Ending,
    Envelope,
    Error,
    Finished,
    Generate,
    GetActors,
    GetStats,
    GetTrace,
    Hello,
    Opened,
    PeerUp,
    Ping,
    Pong,
    Refused,
    Spans,
    Stats,
    Submit,
    Texts,
    Tokenized,
    Trace,
    Usage,
    Welcome,
)
from slipstream.protocol.sampling import SamplingParams
from slipstream.protocol.trace import SPAN, Recorded
from slipstream.runtime.actor import Address, HostService, Send

LIMITS = Limits(max_model_len=100, vocab_size=256, max_prompt_bytes=1000, max_queued_requests=4)

ANN, BEN = b"ann", b"ben"


class Desk:
    """A gateway, and everything that it said, by receiver."""

    def __init__(self, **options: Any) -> None:
        self.gateway = Gateway("", "a-model", LIMITS, server="test 1", rng=random.Random(1), **options)
        self.now = 100.0
        self.said: dict[Address, list[Any]] = {}
        self.blocked: set[bytes] = set()
        """Clients that do not read."""
        self.gone: set[bytes] = set()
        self.steps = itertools.count()

    def deliver(self, sends: list[Send]) -> None:
        """What a host does with what an actor returns."""
        for to, message in sends:
            if to in self.blocked:
                assert isinstance(to, bytes)
                self.give(b"", ClientBlocked(to, message))
            elif to in self.gone:
                assert isinstance(to, bytes)
                self.give(b"", ClientGone(to))
            else:
                encode(Envelope("gateway", 1, 1, 0, message) if isinstance(to, str) else message)
                self.said.setdefault(to, []).append(message)

    def give(self, sender: Address, message: Any) -> None:
        self.deliver(self.gateway.receive(sender, message, self.now))
        self.pass_time(0.0)

    def ask(self, client: bytes, message: Any) -> None:
        self.give(client, ClientMessage(client, message))

    def pass_time(self, seconds: float) -> None:
        """Let time pass; the gateway is woken whenever it asked for it."""
        end = self.now + seconds
        while self.gateway.wake_at is not None and self.gateway.wake_at <= end:
            self.now = max(self.now, self.gateway.wake_at)
            self.deliver(self.gateway.wake(self.now))
        self.now = end

    def take(self, to: Address) -> list[Any]:
        return self.said.pop(to, [])

    def one(self, to: Address) -> Any:
        (message,) = self.take(to)
        return message

    def deltas(self, client: bytes) -> list[Delta]:
        return [
            item for message in self.take(client) if isinstance(message, Deltas) for item in message.items
        ]

    def submitted(self, client: bytes, id: str, **fields: Any) -> Submit:
        """Open a request; returns what the tokenizer gets."""
        told: dict[str, Any] = {"prompt": "Once"} | fields
        self.ask(client, Generate(id=id, **told))
        return self.one("tokenizer")

    def texts(
        self,
        rows: list[tuple[int, int, str]],
        *,
        opened: list[Opened] | None = None,
        finished: list[Finished] | None = None,
        tails: list[str] | None = None,
        counters: dict[str, float] | None = None,
    ) -> None:
        """One step's texts: rows of (request, token, text)."""
        message = Texts(
            next(self.steps),
            opened or [],
            array("q", [request for request, _, _ in rows]).tobytes(),
            array("i", [token for _, token, _ in rows]).tobytes(),
            [text for _, _, text in rows],
            finished or [],
            tails if tails is not None else [""] * len(finished or []),
            counters or {},
        )
        self.give("detokenizer", message)

    def open(self, *requests: int, attempt: int = 0) -> None:
        self.texts([], opened=[Opened(request, b"", 0, [], 0, 4, attempt) for request in requests])

    def nothing_left(self) -> bool:
        gateway = self.gateway
        return not gateway.ledger.requests and gateway.ledger.open_bytes == 0 and gateway.idle


@pytest.fixture
def desk() -> Desk:
    """A gateway that two clients have greeted."""
    desk = Desk()
    for client in (ANN, BEN):
        desk.ask(client, Hello(protocol=[1, 0]))
        desk.take(client)
    return desk


# --- hello --------------------------------------------------------------------------------------


def test_hello_is_answered_with_the_model_and_the_limits() -> None:
    desk = Desk()
    desk.ask(ANN, Hello(protocol=[1, 0]))
    assert desk.one(ANN) == Welcome(protocol=[1, 0], server="test 1", model="a-model", limits=LIMITS)


def test_a_client_of_a_later_minor_version_is_welcome() -> None:
    desk = Desk()
    desk.ask(ANN, Hello(protocol=[1, 7]))
    assert isinstance(desk.one(ANN), Welcome)


@pytest.mark.parametrize(
    ("spoken", "shown"), [([2, 0], "2.0"), ([0, 9], "0.9"), ([], "none"), ([2**63], f"{2**63}")]
)
def test_another_major_version_is_refused_with_both_versions(spoken: list[int], shown: str) -> None:
    desk = Desk()
    desk.ask(ANN, Hello(protocol=spoken))
    error = desk.one(ANN)
    assert isinstance(error, Error)
    assert error.code == "protocol"
    assert error.message == f"protocol {shown} is not spoken here; this service speaks 1.0"
    desk.ask(ANN, Ping())
    assert desk.one(ANN).message == "say hello first"


def test_whoever_did_not_say_hello_is_told_so_and_which_request_it_concerns() -> None:
    desk = Desk()
    desk.ask(ANN, Generate(id="1", prompt="Once"))
    assert desk.one(ANN) == Error(code="protocol", message="say hello first", id="1")
    desk.ask(ANN, GetStats())
    assert desk.one(ANN) == Error(code="protocol", message="say hello first")
    assert desk.nothing_left()


def test_saying_hello_again_forgets_no_request(desk: Desk) -> None:
    submit = desk.submitted(ANN, "1")
    desk.ask(ANN, Hello(protocol=[1, 0]))
    assert isinstance(desk.one(ANN), Welcome)
    desk.open(submit.request)
    desk.texts([(submit.request, 5, "x")])
    assert [delta.text for delta in desk.deltas(ANN)] == ["x"]


def test_a_flood_of_connections_never_pushes_out_one_that_has_a_request(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 10)
    desk.submitted(ANN, "1")
    for number in range(100):
        desk.ask(b"%d" % number, Hello(protocol=[1, 0]))
    assert len(desk.gateway.connections.known) <= 10
    assert ANN in desk.gateway.connections.known
    assert BEN not in desk.gateway.connections.known


def test_a_ping_is_answered_with_its_number(desk: Desk) -> None:
    desk.ask(ANN, Ping(nonce=77))
    assert desk.one(ANN) == Pong(nonce=77)


# --- bad input ----------------------------------------------------------------------------------

BAD: list[tuple[dict[str, Any], list[str]]] = [
    ({"id": ""}, ["id", "0", "1", str(MAX_REQUEST_ID_CHARS)]),
    ({"id": "x" * 200}, ["id", "200", str(MAX_REQUEST_ID_CHARS)]),
    ({"prompt": None}, ["prompt", "messages"]),
    ({"messages": [{"role": "user", "content": "x"}]}, ["either prompt or messages"]),
    ({"prompt": None, "messages": []}, ["messages is empty"]),
    ({"prompt": "x" * 1001}, ["1001", "1000"]),
    ({"prompt": "é" * 501}, ["1002", "1000"]),
    ({"prompt": [1, 256]}, ["prompt", "256", "0 to 255"]),
    ({"prompt": [-1]}, ["prompt", "-1", "0 to 255"]),
    ({"prompt": [2**40]}, [str(2**40), "0 to 255"]),
    ({"received": [300]}, ["received", "300", "0 to 255"]),
]

BAD_PARAMS: list[tuple[dict[str, Any], list[str]]] = [
    ({"max_tokens": 0}, ["max_tokens=0", "at least 1", "100"]),
    ({"max_tokens": 101}, ["max_tokens=101", "at most 100"]),
    ({"max_tokens": 2**64 - 1}, [f"max_tokens={2**64 - 1}", "at most 100"]),
    ({"min_tokens": -1}, ["min_tokens=-1", "at least 0"]),
    ({"min_tokens": 9, "max_tokens": 8}, ["min_tokens=9", "at most 8"]),
    ({"temperature": -0.1}, ["temperature=-0.1", "at least 0.0"]),
    ({"temperature": 2.1}, ["temperature=2.1", "at most 2.0"]),
    ({"temperature": math.nan}, ["temperature=nan", "at most 2.0"]),
    ({"temperature": math.inf}, ["temperature=inf", "at most 2.0"]),
    ({"top_p": 0.0}, ["top_p=0.0", "above 0.0"]),
    ({"top_p": math.nan}, ["top_p=nan", "at most 1.0"]),
    ({"top_p": 1.1}, ["top_p=1.1", "at most 1.0"]),
    ({"top_k": -2}, ["top_k=-2", "at least -1"]),
    ({"top_k": 257}, ["top_k=257", "at most 256"]),
    ({"min_p": -0.5}, ["min_p=-0.5", "at least 0.0"]),
    ({"min_p": math.nan}, ["min_p=nan", "at most 1.0"]),
    ({"seed": -1}, ["seed=-1", "at least 0"]),
    ({"seed": MAX_SEED + 1}, [f"seed={MAX_SEED + 1}", f"at most {MAX_SEED}"]),
    ({"deadline_s": 0.0}, ["deadline_s=0.0", "above 0"]),
    ({"deadline_s": math.nan}, ["deadline_s=nan", str(MAX_DEADLINE_S)]),
    ({"deadline_s": 1e9}, ["deadline_s=1000000000.0", str(MAX_DEADLINE_S)]),
    ({"stop": ["a"] * 17}, ["stop", "17", "16"]),
    ({"stop": ""}, ["stop", "empty"]),
    ({"stop": ["ok", ""]}, ["stop", "empty"]),
    ({"stop": "s" * 257}, ["stop", "257", "256"]),
    ({"stop_token_ids": [1] * 65}, ["stop_token_ids", "65", "64"]),
    ({"stop_token_ids": [256]}, ["stop_token_ids", "256", "0 to 255"]),
    ({"n": 0}, ["n=0", "at least 1"]),
    ({"n": MAX_CHOICES + 1}, [f"n={MAX_CHOICES + 1}", f"at most {MAX_CHOICES}"]),
    ({"logprobs": -1}, ["logprobs=-1", "at least 0"]),
    ({"logprobs": MAX_LOGPROBS + 1}, [f"logprobs={MAX_LOGPROBS + 1}", f"at most {MAX_LOGPROBS}"]),
    ({"presence_penalty": math.nan}, ["presence_penalty=nan", "at most 2.0"]),
    ({"frequency_penalty": -2.5}, ["frequency_penalty=-2.5", "at least -2.0"]),
    ({"repetition_penalty": math.inf}, ["repetition_penalty=inf", "at most"]),
    ({"logit_bias": {"256": 1.0}}, ["logit_bias", "256", "0 to 255"]),
    ({"logit_bias": {"five": 1.0}}, ["logit_bias", "'five'", "0 to 255"]),
    ({"logit_bias": {"5": math.nan}}, ["logit_bias", "nan", "token 5"]),
    ({"priority": 1001}, ["priority=1001", "at most 1000"]),
]


def asking(fields: dict[str, Any]) -> Generate:
    told: dict[str, Any] = {"id": "1", "prompt": "Once"} | fields
    return Generate(**told)


@pytest.mark.parametrize(
    ("message", "named"),
    [
        *[(asking(fields), named) for fields, named in BAD],
        *[(asking({"params": SamplingParams(**fields)}), named) for fields, named in BAD_PARAMS],
    ],
    ids=[repr(fields)[:40] for fields, _ in [*BAD, *BAD_PARAMS]],
)
def test_bad_input_is_refused_at_once_with_the_value_and_the_limit(
    desk: Desk, message: Generate, named: list[str]
) -> None:
    desk.ask(ANN, message)
    error = desk.one(ANN)
    assert isinstance(error, Error)
    assert error.code == "invalid_request"
    assert error.id == (message.id if 0 < len(message.id) <= MAX_REQUEST_ID_CHARS else None)
    for part in named:
        assert part in error.message
    assert len(error.message) < 300
    assert desk.said == {}
    assert desk.nothing_left()


@pytest.mark.parametrize("field", ["messages", "json_schema"])
@pytest.mark.parametrize("depth", [33, 400, 900])
def test_a_value_nested_too_deep_is_refused_and_not_the_end_of_the_gateway(
    desk: Desk, field: str, depth: int
) -> None:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    if field == "messages":
        desk.ask(ANN, Generate(id="1", messages=[{"role": "user", "content": value}]))
    else:
        desk.ask(ANN, Generate(id="1", prompt="x", params=SamplingParams(json_schema={"a": value})))
    error = desk.one(ANN)
    assert error.code == "invalid_request"
    assert field in error.message
    assert desk.submitted(BEN, "1").prompt == "Once"


def test_what_is_refused_harms_no_request_that_runs(desk: Desk) -> None:
    running = desk.submitted(ANN, "good").request
    desk.open(running)
    desk.ask(ANN, asking({"params": SamplingParams(temperature=9.0)}))
    assert desk.one(ANN).id == "1"
    desk.texts([(running, 5, "x")])
    assert [delta.id for delta in desk.deltas(ANN)] == ["good"]


def test_an_id_that_is_in_use_is_refused_and_free_again_after_the_end(desk: Desk) -> None:
    first = desk.submitted(ANN, "1").request
    desk.ask(ANN, Generate(id="1", prompt="x"))
    error = desk.one(ANN)
    assert (error.code, error.message, error.id) == (
        "invalid_request",
        "id '1' is in use by an open request of this connection",
        None,  # with the id, it would be the end of the request that is open
    )
    assert desk.submitted(BEN, "1").request != first  # ids belong to a connection
    desk.open(first)
    desk.texts([], finished=[Finished(first, "length")])
    assert desk.submitted(ANN, "1").request > first


# --- admission ----------------------------------------------------------------------------------


def test_one_request_too_many_is_refused_with_the_limit_and_a_time_to_retry(desk: Desk) -> None:
    for number in range(LIMITS.max_queued_requests):
        desk.submitted(ANN if number % 2 else BEN, str(number))
    desk.ask(ANN, Generate(id="more", prompt="Once"))
    error = desk.one(ANN)
    assert (error.code, error.id) == ("overloaded", "more")
    assert "4 requests" in error.message
    assert error.retry_after_s is not None
    assert error.retry_after_s > 0
    desk.ask(BEN, Abort(id="0"))
    assert desk.take("tokenizer") == [Cancel([0])]
    assert desk.submitted(ANN, "more").prompt == "Once"


def test_open_requests_are_bounded_in_bytes_too() -> None:
    desk = Desk(max_open_bytes=1500)
    desk.ask(ANN, Hello(protocol=[1, 0]))
    desk.take(ANN)
    desk.submitted(ANN, "1", prompt="x" * 900)
    desk.ask(ANN, Generate(id="2", prompt="x" * 900))
    error = desk.one(ANN)
    assert error.code == "overloaded"
    assert "900 bytes" in error.message
    assert "1500 bytes" in error.message
    messages = [{"role": "user", "content": "y" * 700}]
    desk.ask(ANN, Generate(id="3", messages=messages))
    assert desk.one(ANN).code == "overloaded"
    desk.submitted(ANN, "4", prompt="x" * 500)


def test_a_request_without_a_seed_is_given_one_that_every_attempt_keeps(desk: Desk) -> None:
    first = desk.submitted(ANN, "1")
    second = desk.submitted(ANN, "2", params=SamplingParams(seed=7))
    assert first.params.seed is not None
    assert second.params.seed == 7
    desk.give("", PeerUp("scheduler", 9))
    again = desk.take("tokenizer")
    assert [submit.params.seed for submit in again] == [first.params.seed, 7]


# --- the stream ---------------------------------------------------------------------------------


def test_each_step_brings_each_client_one_message_with_all_that_is_its_own(desk: Desk) -> None:
    a1, a2 = desk.submitted(ANN, "1").request, desk.submitted(ANN, "2").request
    b1 = desk.submitted(BEN, "1").request
    desk.open(a1, a2, b1)
    desk.texts([(a1, 5, "x"), (b1, 6, "y"), (a2, 7, "")])
    assert desk.one(ANN) == Deltas(
        items=[Delta(id="1", text="x", token_ids=[5]), Delta(id="2", token_ids=[7])]
    )
    assert desk.one(BEN) == Deltas(items=[Delta(id="1", text="y", token_ids=[6])])


def test_the_last_delta_has_the_end_what_was_held_back_and_the_usage(desk: Desk) -> None:
    request = desk.submitted(ANN, "1").request
    desk.give("tokenizer", Tokenized(request, array("i", range(20)).tobytes()))
    desk.texts([(request, 5, "x")], opened=[Opened(request, b"", 0, [], 16, 20)])
    desk.texts([(request, 6, "y")], finished=[Finished(request, "stop", "END")], tails=["z"])
    first, last = desk.deltas(ANN)
    assert (first.text, first.finish_reason, first.usage) == ("x", None, None)
    assert last == Delta(
        id="1",
        text="yz",
        token_ids=[6],
        finish_reason="stop",
        stop_reason="END",
        usage=Usage(prompt_tokens=20, completion_tokens=2, cached_tokens=16),
    )
    assert desk.nothing_left()


def test_the_usage_is_right_even_if_the_answer_is_quicker_than_the_tokenizers_note(desk: Desk) -> None:
    """The two come on different ways, and nothing orders them."""
    request = desk.submitted(ANN, "1").request
    opened = [Opened(request, b"", 0, [], 0, 20)]
    desk.texts([(request, 5, "x")], opened=opened, finished=[Finished(request, "length")])
    (delta,) = desk.deltas(ANN)
    assert delta.usage == Usage(prompt_tokens=20, completion_tokens=1)


def test_the_prompts_token_ids_come_once_and_only_if_asked_for(desk: Desk) -> None:
    asked = desk.submitted(ANN, "1", return_prompt_ids=True).request
    other = desk.submitted(ANN, "2").request
    for request in (asked, other):
        desk.give("tokenizer", Tokenized(request, array("i", [7, 8]).tobytes()))
    desk.open(asked, other)
    for _ in range(2):
        desk.texts([(asked, 5, "x"), (other, 5, "x")])
    assert [delta.prompt_token_ids for delta in desk.deltas(ANN)] == [[7, 8], None, None, None]


@pytest.mark.parametrize("peer", [None, "tokenizer"], ids=["late", "lost with the tokenizer"])
def test_an_answer_that_is_quicker_than_its_prompts_token_ids_waits_for_them(
    desk: Desk, peer: str | None
) -> None:
    request = desk.submitted(ANN, "1", return_prompt_ids=True).request
    opened = [Opened(request, b"", 0, [], 0, 2)]
    desk.texts([(request, 5, "x")], opened=opened, finished=[Finished(request, "length")])
    assert desk.deltas(ANN) == []
    if peer is not None:
        desk.give("", PeerUp(peer, 9))
        (again,) = desk.take("tokenizer")
        assert array("i", again.delivered).tolist() == [5]
    desk.give("tokenizer", Tokenized(request, array("i", [7, 8]).tobytes()))
    (delta,) = desk.deltas(ANN)
    assert (delta.text, delta.finish_reason, delta.prompt_token_ids) == ("x", "length", [7, 8])
    assert delta.usage == Usage(prompt_tokens=2, completion_tokens=1)
    assert desk.nothing_left()


def test_an_answer_that_waits_for_its_prompts_token_ids_can_be_aborted(desk: Desk) -> None:
    request = desk.submitted(ANN, "1", return_prompt_ids=True).request
    opened = [Opened(request, b"", 0, [], 0, 2)]
    desk.texts([(request, 5, "x")], opened=opened, finished=[Finished(request, "length")])
    desk.ask(ANN, Abort(id="1"))
    (delta,) = desk.deltas(ANN)
    assert (delta.text, delta.finish_reason) == ("x", "length")
    desk.give("tokenizer", Tokenized(request, array("i", [7, 8]).tobytes()))
    assert desk.deltas(ANN) == []
    assert desk.nothing_left()


def test_what_the_tokenizer_refuses_ends_the_request_with_its_reason(desk: Desk) -> None:
    request = desk.submitted(ANN, "1").request
    desk.give("tokenizer", Refused(request, "invalid_request", "the prompt is empty"))
    assert desk.one(ANN) == Error(code="invalid_request", message="the prompt is empty", id="1")
    assert desk.nothing_left()


def test_what_the_scheduler_refuses_ends_the_request_with_its_reason(desk: Desk) -> None:
    """It never opened the sequence."""
    request = desk.submitted(ANN, "1").request
    desk.texts([], finished=[Finished(request, "invalid_request", None, "the KV cache holds 32")])
    assert desk.one(ANN) == Error(code="invalid_request", message="the KV cache holds 32", id="1")
    assert desk.nothing_left()


# --- abort, and clients that leave --------------------------------------------------------------


def test_abort_gives_exactly_one_last_delta_however_often_it_is_said(desk: Desk) -> None:
    request = desk.submitted(ANN, "1").request
    desk.open(request)
    desk.texts([(request, 5, "x")])
    desk.take(ANN)
    for _ in range(3):
        desk.ask(ANN, Abort(id="1"))
    (delta,) = desk.deltas(ANN)
    assert (delta.finish_reason, delta.text, delta.token_ids) == ("abort", "", [])
    assert delta.usage == Usage(prompt_tokens=4, completion_tokens=1)
    assert desk.take("tokenizer") == [Cancel([request])]
    desk.texts([(request, 6, "y")], finished=[Finished(request, "abort")])  # was on its way
    assert desk.said == {}
    assert desk.nothing_left()


def test_abort_of_nothing_and_of_another_clients_request_does_nothing(desk: Desk) -> None:
    desk.submitted(ANN, "1")
    desk.ask(ANN, Abort(id="2"))
    desk.ask(BEN, Abort(id="1"))
    assert desk.said == {}
    assert len(desk.gateway.ledger.requests) == 1


def test_the_requests_of_a_client_that_is_gone_are_cancelled_together(desk: Desk) -> None:
    mine = [desk.submitted(ANN, str(number)).request for number in range(2)]
    other = desk.submitted(BEN, "1").request
    desk.open(*mine, other)
    desk.gone.add(ANN)
    desk.texts([(request, 5, "x") for request in [*mine, other]])
    assert desk.take("tokenizer") == [Cancel(mine)]
    assert [delta.text for delta in desk.deltas(BEN)] == ["x"]
    assert list(desk.gateway.ledger.requests) == [other]
    assert desk.gateway.ledger.open_bytes == len("Once")
    desk.ask(BEN, Abort(id="1"))
    assert desk.nothing_left()


def test_a_client_that_is_sent_nothing_is_probed_while_it_has_a_request(desk: Desk) -> None:
    """Only a send can tell that a client is gone; a request that waits would hold its place for ever."""
    desk.submitted(ANN, "1")
    desk.pass_time(2 * PROBE_S)
    assert Pong() in desk.take(ANN)
    assert desk.take(BEN) == []
    desk.gone.add(ANN)
    desk.pass_time(2 * PROBE_S)
    assert desk.take("tokenizer") == [Cancel([0])]
    assert desk.nothing_left()


def test_a_gateway_without_a_request_asks_for_no_wake(desk: Desk) -> None:
    request = desk.submitted(ANN, "1").request
    desk.open(request)
    desk.texts([], finished=[Finished(request, "length")])
    desk.pass_time(10 * PROBE_S)
    assert desk.gateway.wake_at is None


# --- a client that does not read ----------------------------------------------------------------


def test_the_deltas_of_a_client_that_does_not_read_merge_and_nothing_is_lost_or_out_of_order(
    desk: Desk,
) -> None:
    rng = random.Random(3)
    requests = [desk.submitted(ANN, str(number)).request for number in range(3)]
    for request in requests:
        desk.give("tokenizer", Tokenized(request, array("i", [1]).tobytes()))
    desk.open(*requests)
    expected = {str(number): "" for number in range(3)}
    got = {str(number): "" for number in range(3)}
    tokens: dict[str, list[int]] = {str(number): [] for number in range(3)}
    most = 0

    def read() -> None:
        nonlocal most
        messages = desk.take(ANN)
        most = max(most, len(messages))
        for message in messages:
            for delta in message.items:
                got[delta.id] += delta.text
                tokens[delta.id] += delta.token_ids

    for step in range(500):
        rows = [(r, step % 256, f"{r}.{step} ") for r in requests if rng.random() < 0.7]
        for request, _, text in rows:
            expected[str(requests.index(request))] += text
        desk.texts(rows)
        if rng.random() < 0.1:
            desk.blocked ^= {ANN}
        desk.pass_time(rng.random() * RETRY_S)
        if ANN not in desk.blocked:
            read()
    desk.blocked.clear()
    desk.pass_time(2 * RETRY_S)
    read()
    assert got == expected
    assert [len(tokens[str(number)]) for number in range(3)] == [
        len(expected[str(number)].split()) for number in range(3)
    ]
    assert most <= 3


def test_what_waited_for_a_client_comes_as_one_delta_per_request_with_its_end(desk: Desk) -> None:
    request = desk.submitted(ANN, "1", return_prompt_ids=True).request
    desk.open(request)
    desk.blocked.add(ANN)
    desk.texts([(request, 5, "a")])
    desk.give("tokenizer", Tokenized(request, array("i", [7, 8]).tobytes()))
    desk.texts([(request, 6, "b")])
    desk.texts([(request, 7, "c")], finished=[Finished(request, "stop", 7)])
    desk.blocked.clear()
    assert desk.said == {}
    desk.pass_time(2 * RETRY_S)
    (delta,) = desk.deltas(ANN)
    assert (delta.text, delta.token_ids, delta.finish_reason, delta.stop_reason) == (
        "abc",
        [5, 6, 7],
        "stop",
        7,
    )
    assert delta.prompt_token_ids == [7, 8]
    assert delta.usage is not None


def test_an_error_waits_for_a_client_too_and_comes_after_the_deltas_of_its_request(desk: Desk) -> None:
    """Lost, it would leave the client to wait for ever."""
    running = desk.submitted(ANN, "1", params=SamplingParams(deadline_s=0.5)).request
    desk.open(running)
    desk.blocked.add(ANN)
    desk.texts([(running, 5, "a")])
    desk.ask(ANN, Generate(id="2", prompt=[999]))
    desk.ask(ANN, GetStats())
    desk.pass_time(1.0)
    desk.blocked.clear()
    desk.pass_time(2 * RETRY_S)
    told = desk.take(ANN)
    assert told[0] == Deltas(items=[Delta(id="1", text="a", token_ids=[5])])
    assert [(e.code, e.id) for e in told if isinstance(e, Error)] == [
        ("invalid_request", "2"),
        ("deadline_exceeded", "1"),
    ]
    assert sum(isinstance(message, Stats) for message in told) == 1


def test_an_id_is_in_use_until_its_client_was_told_of_the_end(desk: Desk) -> None:
    request = desk.submitted(ANN, "1").request
    desk.open(request)
    desk.blocked.add(ANN)
    desk.texts([(request, 5, "a")], finished=[Finished(request, "length")])
    desk.ask(ANN, Generate(id="1", prompt="x"))
    desk.blocked.clear()
    desk.pass_time(2 * RETRY_S)
    last, error = desk.take(ANN)
    assert last.items[0].finish_reason == "length"
    assert "in use" in error.message


@pytest.mark.parametrize("what", ["deltas", "errors"])
def test_a_client_that_never_reads_is_cut_off_at_the_bound_and_its_requests_end(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(connections, "MAX_WAITING_TOKENS", 50)
    monkeypatch.setattr(connections, "MAX_WAITING_MESSAGES", 50)
    mine = [desk.submitted(ANN, str(number)).request for number in range(2)]
    other = desk.submitted(BEN, "1").request
    desk.open(*mine, other)
    desk.blocked.add(ANN)
    for step in range(60):
        if what == "deltas":
            desk.texts([(mine[0], step, "x"), (other, step, "y")])
        else:
            desk.ask(ANN, Generate(id="0", prompt="x"))
    assert desk.take("tokenizer") == [Cancel(mine)]
    assert list(desk.gateway.ledger.requests) == [other]
    assert len(desk.deltas(BEN)) == (60 if what == "deltas" else 0)
    desk.blocked.clear()
    desk.pass_time(5.0)
    desk.ask(ANN, Ping())
    assert desk.take(ANN)[-1].message == "say hello first"


def test_a_client_that_asks_for_trace_after_trace_and_never_reads_one_is_cut_off(desk: Desk) -> None:
    desk.submitted(ANN, "1")
    connections_ = desk.gateway.connections
    client = connections_.known[ANN]
    client.blocked = True
    for _ in range(connections.MAX_WAITING_TRACES):
        connections_.send_to(client, Trace(actors={}, since_ns=0, until_ns=0))
    assert ANN in connections_.known
    connections_.send_to(client, Trace(actors={}, since_ns=0, until_ns=0))
    assert ANN not in connections_.known
    assert not desk.gateway.ledger.requests


def test_a_step_that_both_cuts_a_client_off_and_fails_its_request_is_survived(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MAX_WAITING_TOKENS", 1)
    first, second = desk.submitted(ANN, "1").request, desk.submitted(ANN, "2").request
    desk.open(first, second)
    desk.blocked.add(ANN)
    desk.texts([(first, 5, "x")])
    desk.texts([(first, 6, "y")], finished=[Finished(second, "internal", None, "a fault")])
    assert desk.nothing_left()


# --- deadlines ----------------------------------------------------------------------------------


def test_a_request_that_is_not_finished_by_its_deadline_ends_then_and_names_it(desk: Desk) -> None:
    early = desk.submitted(ANN, "1", params=SamplingParams(deadline_s=2.5)).request
    late = desk.submitted(ANN, "2", params=SamplingParams(deadline_s=50.0)).request
    desk.open(early, late)
    desk.pass_time(2.4)
    assert not any(isinstance(message, Error) for message in desk.take(ANN))
    desk.pass_time(0.2)
    (error,) = [message for message in desk.take(ANN) if isinstance(message, Error)]
    assert (error.code, error.id) == ("deadline_exceeded", "1")
    assert "deadline_s=2.5" in error.message
    assert desk.take("tokenizer") == [Cancel([early])]
    desk.texts([(early, 5, "x"), (late, 5, "x")])
    assert [delta.id for delta in desk.deltas(ANN)] == ["2"]


def test_deadlines_of_requests_that_are_over_are_not_kept(desk: Desk) -> None:
    for number in range(5000):
        request = desk.submitted(ANN, str(number), params=SamplingParams(deadline_s=80_000.0)).request
        desk.texts([], opened=[Opened(request, b"", 0, [], 0, 1)], finished=[Finished(request, "length")])
        desk.take(ANN)
    assert len(desk.gateway.ledger.deadlines.heap) < 1100


def test_a_request_that_is_sent_again_keeps_its_deadline(desk: Desk) -> None:
    desk.submitted(ANN, "1", params=SamplingParams(deadline_s=50.0), age_s=40.0)
    desk.submitted(ANN, "2", params=SamplingParams(deadline_s=50.0))
    desk.ask(ANN, Generate(id="3", prompt="Once", params=SamplingParams(deadline_s=5.0), age_s=40.0))
    desk.pass_time(10.5)
    ended = {message.id: message.code for message in desk.take(ANN) if isinstance(message, Error)}
    assert ended == {"1": "deadline_exceeded", "3": "deadline_exceeded"}


@pytest.mark.parametrize("age", [-1.0, math.nan, math.inf])
def test_an_age_that_is_none_is_refused(desk: Desk, age: float) -> None:
    desk.ask(ANN, Generate(id="1", prompt="Once", age_s=age))
    assert "age_s" in desk.one(ANN).message


def test_a_request_without_a_deadline_has_that_of_the_service() -> None:
    desk = Desk(default_deadline_s=20.0)
    desk.ask(ANN, Hello(protocol=[1, 0]))
    desk.submitted(ANN, "1")
    desk.pass_time(19.0)
    assert not any(isinstance(message, Error) for message in desk.take(ANN))
    desk.pass_time(2.0)
    (error,) = [message for message in desk.take(ANN) if isinstance(message, Error)]
    assert (error.code, error.id) == ("deadline_exceeded", "1")
    assert "20 s" in error.message


def test_last_words_answer_every_open_request(desk: Desk) -> None:
    first, second = desk.submitted(ANN, "1").request, desk.submitted(BEN, "2").request
    desk.open(first, second)
    desk.give(HostService.SUPERVISOR, Ending("the service failed: x"))
    for client, id in ((ANN, "1"), (BEN, "2")):
        assert desk.one(client) == Error(code="unavailable", message="the service failed: x", id=id)
    assert desk.nothing_left()


# --- peers that restart -------------------------------------------------------------------------


@pytest.mark.parametrize("peer", ["tokenizer", "scheduler", "detokenizer"])
def test_every_open_request_is_sent_again_to_a_new_peer_with_what_was_delivered(
    desk: Desk, peer: str
) -> None:
    first, second = desk.submitted(ANN, "1"), desk.submitted(BEN, "1", prompt=[1, 2, 3])
    desk.open(first.request, second.request)
    desk.texts([(first.request, 5, "x"), (second.request, 6, "y"), (first.request, 7, "z")])
    desk.give("", PeerUp(peer, 9))
    again = desk.take("tokenizer")
    assert [submit.request for submit in again] == [first.request, second.request]
    assert [submit.attempt for submit in again] == [1, 1]
    assert [array("i", submit.delivered).tolist() for submit in again] == [[5, 7], [6]]
    assert [submit.prompt for submit in again] == ["Once", None]
    assert array("i", again[1].prompt_ids).tolist() == [1, 2, 3]


def test_a_conversation_is_rendered_but_once(desk: Desk) -> None:
    """Its template may print the date, which is another one after midnight."""
    conversation = [{"role": "user", "content": "x"}]
    submit = desk.submitted(ANN, "1", prompt=None, messages=conversation)
    desk.give("", PeerUp("tokenizer", 8))
    assert desk.one("tokenizer").prompt == conversation, "nobody has said yet what it was rendered to"
    desk.give("tokenizer", Tokenized(submit.request, array("i", [4, 5, 6]).tobytes()))
    desk.give("", PeerUp("tokenizer", 9))
    again = desk.one("tokenizer")
    assert again.prompt is None
    assert array("i", again.prompt_ids).tolist() == [4, 5, 6]


def test_nothing_is_sent_again_for_a_new_executor(desk: Desk) -> None:
    desk.submitted(ANN, "1")
    desk.give("", PeerUp("executor", 9))
    assert desk.said == {}


def test_what_an_older_attempt_still_brings_is_dropped(desk: Desk) -> None:
    request = desk.submitted(ANN, "1").request
    desk.open(request)
    desk.texts([(request, 5, "a")])
    desk.give("", PeerUp("detokenizer", 9))
    desk.texts([(request, 6, "b")])
    desk.texts([(request, 7, "c")], finished=[Finished(request, "length")])
    desk.open(request, attempt=0)
    desk.texts([(request, 8, "d")])
    assert [delta.text for delta in desk.deltas(ANN)] == ["a"]
    desk.open(request, attempt=1)
    desk.texts([(request, 6, "b"), (request, 7, "c")])
    desk.texts([], finished=[Finished(request, "stop", 7)])
    deltas = desk.deltas(ANN)
    assert "".join(delta.text for delta in deltas) == "bc"
    assert deltas[-1].usage == Usage(prompt_tokens=4, completion_tokens=3)
    assert desk.nothing_left()


def test_a_client_that_comes_again_with_what_it_received_gets_only_the_rest(desk: Desk) -> None:
    submit = desk.submitted(ANN, "1", received=[5, 6])
    assert array("i", submit.delivered).tolist() == [5, 6]
    desk.texts([(submit.request, 7, "c")], opened=[Opened(submit.request, b"", 2, [], 0, 4)])
    desk.texts([], finished=[Finished(submit.request, "length")])
    deltas = desk.deltas(ANN)
    assert [delta.token_ids for delta in deltas] == [[7], []]
    assert deltas[-1].usage == Usage(prompt_tokens=4, completion_tokens=3)


# --- drain --------------------------------------------------------------------------------------


def test_a_draining_gateway_finishes_what_runs_and_takes_nothing_new(desk: Desk) -> None:
    request = desk.submitted(ANN, "1").request
    desk.open(request)
    desk.give(b"", Drain())
    assert not desk.gateway.idle
    desk.ask(BEN, Generate(id="2", prompt="Once"))
    error = desk.one(BEN)
    assert (error.code, error.id) == ("unavailable", "2")
    assert "stopping" in error.message
    desk.texts([(request, 5, "x")], finished=[Finished(request, "length")])
    assert desk.deltas(ANN)[-1].finish_reason == "length"
    assert desk.gateway.idle


def test_a_draining_gateway_waits_until_a_slow_client_has_its_end(desk: Desk) -> None:
    request = desk.submitted(ANN, "1").request
    desk.open(request)
    desk.give(b"", Drain())
    desk.blocked.add(ANN)
    desk.texts([(request, 5, "x")], finished=[Finished(request, "length")])
    assert not desk.gateway.idle
    desk.blocked.clear()
    desk.pass_time(2 * RETRY_S)
    assert desk.deltas(ANN)[-1].finish_reason == "length"
    assert desk.gateway.idle


# --- looking inside -----------------------------------------------------------------------------


def test_the_counters_tell_what_became_of_each_request(desk: Desk) -> None:
    finished = desk.submitted(ANN, "finished").request
    refused = desk.submitted(ANN, "failed").request
    desk.submitted(ANN, "aborted")
    desk.ask(ANN, Abort(id="aborted"))
    desk.ask(ANN, Generate(id="refused"))
    desk.give("tokenizer", Refused(refused, "invalid_request", "no"))
    desk.open(finished)
    desk.texts([], finished=[Finished(finished, "length")], counters={"steps": 60.0})
    desk.take(ANN)
    desk.ask(ANN, GetStats())
    told = desk.one(ANN)
    assert isinstance(told, Stats)
    expected = {
        "steps": 60.0,
        "dead_letters": 0.0,
        "stale": 0.0,
        "malformed": 0.0,
        "requests_accepted": 3.0,
        "requests_refused": 1.0,
        "requests_finished": 1.0,
        "requests_failed": 1.0,
        "requests_aborted": 1.0,
        "requests_open": 0.0,
        "request_success_length": 1.0,
    }
    assert {name: told.counters[name] for name in expected} == expected


def part_of(name: str, step: int) -> Recorded:
    return Recorded(pid=7, names=["Texts"], spans={name: SPAN.pack(101 * 10**9, 10**9, step, 0)})


def give_trace(desk: Desk, name: str, since_ns: int) -> None:
    """The trace of one actor, in two parts."""
    desk.give(name, Spans(name, part_of(name, 1), since_ns))
    desk.give(name, Spans(name, part_of(name, 2), since_ns, last=True))


def traced(message: Any) -> dict[str, list[int]]:
    """The steps in a trace, by track."""
    assert isinstance(message, Trace)
    return {track: [span.step for span in spans] for track, spans in Timeline.of(message).tracks.items()}


def test_a_trace_has_the_parts_of_every_actor_and_who_asks_meanwhile_gets_the_next(desk: Desk) -> None:
    for name in ("tokenizer", "scheduler"):
        desk.give("", PeerUp(name, 5))
    asked = ["gateway", "scheduler", "tokenizer"]
    desk.ask(ANN, GetTrace())
    assert [desk.one(name) for name in asked] == [DumpTrace()] * 3
    desk.ask(BEN, GetTrace(seconds=4.0))
    desk.ask(BEN, GetTrace(seconds=8.0))
    since_ns = 0
    for client, answers in ((ANN, 1), (BEN, 2)):
        for name in asked:
            assert desk.take(client) == []
            give_trace(desk, name, since_ns)
        traces = desk.take(client)
        assert [traced(trace) for trace in traces] == [{name: [1, 2] for name in asked}] * answers
        if client == ANN:
            question = desk.one("gateway")
            assert isinstance(question, DumpTrace)
            assert [desk.one(name) for name in asked[1:]] == [question] * 2
            since_ns = question.since_ns
    assert traces[0].until_ns - since_ns == pytest.approx(8e9)
    assert desk.said == {}


def test_a_trace_does_not_wait_for_ever_for_an_actor_that_is_gone(desk: Desk) -> None:
    desk.give("", PeerUp("scheduler", 5))
    desk.ask(ANN, GetTrace())
    give_trace(desk, "gateway", 0)
    desk.pass_time(TRACE_TIMEOUT_S + 0.1)
    assert traced(desk.one(ANN)) == {"gateway": [1, 2]}
    give_trace(desk, "scheduler", 0)  # too late, and no harm
    assert desk.said == {"gateway": [DumpTrace()], "scheduler": [DumpTrace()]}


def test_a_client_that_asks_for_traces_without_reading_them_is_refused_the_next(desk: Desk) -> None:
    desk.ask(ANN, GetTrace())  # is gathered at once
    desk.one("gateway")
    for _ in range(MAX_WAITING_TRACES):
        desk.ask(ANN, GetTrace())
        assert desk.take(ANN) == []
    desk.ask(ANN, GetTrace())
    refused = desk.one(ANN)
    assert isinstance(refused, Error)
    assert (refused.code, refused.id, refused.retry_after_s) == ("overloaded", None, TRACE_TIMEOUT_S)
    desk.ask(BEN, GetTrace())
    assert desk.take(BEN) == []
    give_trace(desk, "gateway", 0)
    assert [traced(trace) for trace in desk.take(ANN)] == [{"gateway": [1, 2]}]


def test_who_asks_after_the_actors_is_told_what_the_supervisor_says() -> None:
    desk = Desk()
    for client in (ANN, BEN):
        desk.ask(client, Hello(protocol=[1, 0]))
        desk.ask(client, GetActors())
    desk.said.clear()
    told = Actors(actors=[], live=True, ready=True)
    desk.give(HostService.SUPERVISOR, told)
    assert desk.one(ANN) == told
    assert desk.one(BEN) == told
    desk.give(HostService.SUPERVISOR, told)
    assert not desk.take(ANN), "each question has one answer"


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan])
def test_a_trace_of_no_time_at_all_is_refused(desk: Desk, seconds: float) -> None:
    desk.ask(ANN, GetTrace(seconds=seconds))
    refused = desk.one(ANN)
    assert isinstance(refused, Error)
    assert f"seconds={seconds}" in refused.message
    assert desk.said == {}


def test_counters_do_not_go_back_when_the_scheduler_is_new_and_gauges_do(desk: Desk) -> None:
    def told() -> dict[str, float]:
        desk.ask(ANN, GetStats())
        counters = desk.one(ANN).counters
        return {name: counters[name] for name in ("steps", "num_requests_running")}

    desk.texts([], counters={"steps": 60.0, "num_requests_running": 3.0})
    for epoch in (8, 9):
        desk.give("", PeerUp("scheduler", epoch))
        assert told() == {"steps": 60.0 if epoch == 8 else 65.0, "num_requests_running": 0.0}
        desk.texts([], counters={"steps": 5.0, "num_requests_running": 1.0})
    assert told() == {"steps": 70.0, "num_requests_running": 1.0}
    desk.give("", PeerUp("tokenizer", 10))
    assert told() == {"steps": 70.0, "num_requests_running": 1.0}
