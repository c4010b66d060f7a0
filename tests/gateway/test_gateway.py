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
from slipstream.actors.public.traces import MAX_TRACE_QUESTIONS, TRACE_TIMEOUT_S
from slipstream.protocol.client.timeline import Timeline
from slipstream.protocol.codec import encode
from slipstream.protocol.events import (
    ClientBlocked,
    ClientGone,
    ClientMessage,
    Drain,
    Ending,
    PeerDown,
    PeerUp,
)
from slipstream.protocol.internal import (
    Cancel,
    DumpTrace,
    Envelope,
    Finished,
    Opened,
    Refused,
    Spans,
    Submit,
    Texts,
    Tokenized,
)
from slipstream.protocol.limits import (
    MAX_CHOICES,
    MAX_DEADLINE_S,
    MAX_GRAMMAR_BYTES,
    MAX_LOGPROBS,
    MAX_REQUEST_ID_CHARS,
    MAX_SEED,
    Limits,
)
from slipstream.protocol.messages import (
    Abort,
    Actors,
    Delta,
    Deltas,
    Error,
    Generate,
    GetActors,
    GetStats,
    GetTrace,
    Hello,
    LoadAdapter,
    Ping,
    Pong,
    Stats,
    Trace,
    Usage,
    Welcome,
)
from slipstream.protocol.sampling import SamplingParams
from slipstream.protocol.trace import SPAN, Recorded
from slipstream.runtime.actor import Address, HostAddress, Send

LIMITS = Limits(max_model_len=100, vocab_size=256, max_prompt_bytes=1000, max_queued_requests=4)

ANN, BEN = b"ann", b"ben"


class Harness:
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
def harness() -> Harness:
    """A gateway that two clients have greeted."""
    harness = Harness()
    for client in (ANN, BEN):
        harness.ask(client, Hello(protocol=[1, 0]))
        harness.take(client)
    return harness


# --- hello --------------------------------------------------------------------------------------


def test_hello_is_answered_with_the_model_and_the_limits() -> None:
    harness = Harness()
    harness.ask(ANN, Hello(protocol=[1, 0]))
    assert harness.one(ANN) == Welcome(protocol=[1, 0], server="test 1", model="a-model", limits=LIMITS)


def test_a_client_of_a_later_minor_version_is_welcome() -> None:
    harness = Harness()
    harness.ask(ANN, Hello(protocol=[1, 7]))
    assert isinstance(harness.one(ANN), Welcome)


@pytest.mark.parametrize(
    ("spoken", "shown"), [([2, 0], "2.0"), ([0, 9], "0.9"), ([], "none"), ([2**63], f"{2**63}")]
)
def test_another_major_version_is_refused_with_both_versions(spoken: list[int], shown: str) -> None:
    harness = Harness()
    harness.ask(ANN, Hello(protocol=spoken))
    error = harness.one(ANN)
    assert isinstance(error, Error)
    assert error.code == "protocol"
    assert error.message == f"protocol {shown} is not spoken here; this service speaks 1.0"
    harness.ask(ANN, Ping())
    assert harness.one(ANN).message == "say hello first"


def test_whoever_did_not_say_hello_is_told_so_and_which_request_it_concerns() -> None:
    harness = Harness()
    harness.ask(ANN, Generate(id="1", prompt="Once"))
    assert harness.one(ANN) == Error(code="protocol", message="say hello first", id="1")
    harness.ask(ANN, GetStats())
    assert harness.one(ANN) == Error(code="protocol", message="say hello first")
    assert harness.nothing_left()


def test_saying_hello_again_forgets_no_request(harness: Harness) -> None:
    submit = harness.submitted(ANN, "1")
    harness.ask(ANN, Hello(protocol=[1, 0]))
    assert isinstance(harness.one(ANN), Welcome)
    harness.open(submit.request)
    harness.texts([(submit.request, 5, "x")])
    assert [delta.text for delta in harness.deltas(ANN)] == ["x"]


def test_a_flood_of_connections_never_pushes_out_one_that_has_a_request(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MAX_REMEMBERED", 10)
    harness.submitted(ANN, "1")
    for number in range(100):
        harness.ask(b"%d" % number, Hello(protocol=[1, 0]))
    assert len(harness.gateway.connections.known) <= 10
    assert ANN in harness.gateway.connections.known
    assert BEN not in harness.gateway.connections.known


def test_a_ping_is_answered_with_its_number(harness: Harness) -> None:
    harness.ask(ANN, Ping(nonce=77))
    assert harness.one(ANN) == Pong(nonce=77)


# --- bad input ----------------------------------------------------------------------------------

BAD: list[tuple[dict[str, Any], list[str]]] = [
    ({"id": ""}, ["id", "0", "1", str(MAX_REQUEST_ID_CHARS)]),
    ({"id": "x" * 200}, ["id", "200", str(MAX_REQUEST_ID_CHARS)]),
    ({"prompt": None}, ["prompt", "messages"]),
    ({"messages": [{"role": "user", "content": "x"}]}, ["either prompt or messages"]),
    ({"prompt": None, "messages": []}, ["messages is empty"]),
    ({"prompt": "x" * 1001}, ["1001", "1000", "shorten it"]),
    ({"prompt": "é" * 501}, ["1002", "1000", "shorten it"]),
    ({"prompt": [1, 256]}, ["prompt", "256", "0 to 255"]),
    ({"prompt": [-1]}, ["prompt", "-1", "0 to 255"]),
    ({"prompt": [2**40]}, [str(2**40), "0 to 255"]),
    ({"received": [300]}, ["received", "300", "0 to 255"]),
    ({"calls": {"now": {}}}, ["calls", "marks=true"]),
    ({"marks": True, "calls": {"now": {"enum": ["x" * 40_000]}}}, ["calls", str(MAX_GRAMMAR_BYTES)]),
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
    harness: Harness, message: Generate, named: list[str]
) -> None:
    harness.ask(ANN, message)
    error = harness.one(ANN)
    assert isinstance(error, Error)
    assert error.code == ("context_length_exceeded" if "shorten it" in named else "invalid_request")
    assert error.id == (message.id if 0 < len(message.id) <= MAX_REQUEST_ID_CHARS else None)
    for part in named:
        assert part in error.message
    assert len(error.message) < 300
    assert harness.said == {}
    assert harness.nothing_left()


@pytest.mark.parametrize("field", ["messages", "json_schema"])
@pytest.mark.parametrize("depth", [33, 400, 900])
def test_a_value_nested_too_deep_is_refused_and_not_the_end_of_the_gateway(
    harness: Harness, field: str, depth: int
) -> None:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    if field == "messages":
        harness.ask(ANN, Generate(id="1", messages=[{"role": "user", "content": value}]))
    else:
        harness.ask(ANN, Generate(id="1", prompt="x", params=SamplingParams(json_schema={"a": value})))
    error = harness.one(ANN)
    assert error.code == "invalid_request"
    assert field in error.message
    assert harness.submitted(BEN, "1").prompt == "Once"


def test_what_is_refused_harms_no_request_that_runs(harness: Harness) -> None:
    running = harness.submitted(ANN, "good").request
    harness.open(running)
    harness.ask(ANN, asking({"params": SamplingParams(temperature=9.0)}))
    assert harness.one(ANN).id == "1"
    harness.texts([(running, 5, "x")])
    assert [delta.id for delta in harness.deltas(ANN)] == ["good"]


def test_an_id_that_is_in_use_is_refused_and_free_again_after_the_end(harness: Harness) -> None:
    first = harness.submitted(ANN, "1").request
    harness.ask(ANN, Generate(id="1", prompt="x"))
    error = harness.one(ANN)
    assert (error.code, error.message, error.id) == (
        "invalid_request",
        "id '1' is in use by an open request of this connection",
        None,  # with the id, it would be the end of the request that is open
    )
    assert harness.submitted(BEN, "1").request != first  # ids belong to a connection
    harness.open(first)
    harness.texts([], finished=[Finished(first, "length")])
    assert harness.submitted(ANN, "1").request > first


# --- admission ----------------------------------------------------------------------------------


def test_one_request_too_many_is_refused_with_the_limit_and_a_time_to_retry(harness: Harness) -> None:
    for number in range(LIMITS.max_queued_requests):
        harness.submitted(ANN if number % 2 else BEN, str(number))
    harness.ask(ANN, Generate(id="more", prompt="Once"))
    error = harness.one(ANN)
    assert (error.code, error.id) == ("overloaded", "more")
    assert "4 requests" in error.message
    assert error.retry_after_s is not None
    assert error.retry_after_s > 0
    harness.ask(BEN, Abort(id="0"))
    assert harness.take("tokenizer") == [Cancel([0])]
    assert harness.submitted(ANN, "more").prompt == "Once"


def test_open_requests_are_bounded_in_bytes_too() -> None:
    harness = Harness(max_open_bytes=1500)
    harness.ask(ANN, Hello(protocol=[1, 0]))
    harness.take(ANN)
    harness.submitted(ANN, "1", prompt="x" * 900)
    harness.ask(ANN, Generate(id="2", prompt="x" * 900))
    error = harness.one(ANN)
    assert error.code == "overloaded"
    assert "900 bytes" in error.message
    assert "1500 bytes" in error.message
    messages = [{"role": "user", "content": "y" * 700}]
    harness.ask(ANN, Generate(id="3", messages=messages))
    assert harness.one(ANN).code == "overloaded"
    harness.submitted(ANN, "4", prompt="x" * 500)


def test_a_request_without_a_seed_is_given_one_that_every_attempt_keeps(harness: Harness) -> None:
    first = harness.submitted(ANN, "1")
    second = harness.submitted(ANN, "2", params=SamplingParams(seed=7))
    assert first.params.seed is not None
    assert second.params.seed == 7
    harness.give("", PeerUp("scheduler", 9))
    again = harness.take("tokenizer")
    assert [submit.params.seed for submit in again] == [first.params.seed, 7]


def test_what_calls_are_held_to_is_part_of_every_attempt(harness: Harness) -> None:
    calls = {"now": {"type": "object"}}
    assert harness.submitted(ANN, "1", marks=True, calls=calls).calls == calls
    harness.give("", PeerUp("scheduler", 9))
    assert [submit.calls for submit in harness.take("tokenizer")] == [calls]


# --- the stream ---------------------------------------------------------------------------------


def test_each_step_brings_each_client_one_message_with_all_that_is_its_own(harness: Harness) -> None:
    a1, a2 = harness.submitted(ANN, "1").request, harness.submitted(ANN, "2").request
    b1 = harness.submitted(BEN, "1").request
    harness.open(a1, a2, b1)
    harness.texts([(a1, 5, "x"), (b1, 6, "y"), (a2, 7, "")])
    assert harness.one(ANN) == Deltas(
        items=[Delta(id="1", text="x", token_ids=[5]), Delta(id="2", token_ids=[7])]
    )
    assert harness.one(BEN) == Deltas(items=[Delta(id="1", text="y", token_ids=[6])])


def test_the_last_delta_has_the_end_what_was_held_back_and_the_usage(harness: Harness) -> None:
    request = harness.submitted(ANN, "1").request
    harness.give("tokenizer", Tokenized(request, array("i", range(20)).tobytes()))
    harness.texts([(request, 5, "x")], opened=[Opened(request, b"", 0, [], 16, 20)])
    harness.texts([(request, 6, "y")], finished=[Finished(request, "stop", "END")], tails=["z"])
    first, last = harness.deltas(ANN)
    assert (first.text, first.finish_reason, first.usage) == ("x", None, None)
    assert last == Delta(
        id="1",
        text="yz",
        token_ids=[6],
        finish_reason="stop",
        stop_reason="END",
        usage=Usage(prompt_tokens=20, completion_tokens=2, cached_tokens=16),
    )
    assert harness.nothing_left()


def test_the_usage_is_right_even_if_the_answer_is_quicker_than_the_tokenizers_note(harness: Harness) -> None:
    """The two come on different ways, and nothing orders them."""
    request = harness.submitted(ANN, "1").request
    opened = [Opened(request, b"", 0, [], 0, 20)]
    harness.texts([(request, 5, "x")], opened=opened, finished=[Finished(request, "length")])
    (delta,) = harness.deltas(ANN)
    assert delta.usage == Usage(prompt_tokens=20, completion_tokens=1)


def test_the_prompts_token_ids_come_once_and_only_if_asked_for(harness: Harness) -> None:
    asked = harness.submitted(ANN, "1", return_prompt_ids=True).request
    other = harness.submitted(ANN, "2").request
    for request in (asked, other):
        harness.give("tokenizer", Tokenized(request, array("i", [7, 8]).tobytes()))
    harness.open(asked, other)
    for _ in range(2):
        harness.texts([(asked, 5, "x"), (other, 5, "x")])
    assert [delta.prompt_token_ids for delta in harness.deltas(ANN)] == [[7, 8], None, None, None]


@pytest.mark.parametrize("peer", [None, "tokenizer"], ids=["late", "lost with the tokenizer"])
def test_an_answer_that_is_quicker_than_its_prompts_token_ids_waits_for_them(
    harness: Harness, peer: str | None
) -> None:
    request = harness.submitted(ANN, "1", return_prompt_ids=True).request
    opened = [Opened(request, b"", 0, [], 0, 2)]
    harness.texts([(request, 5, "x")], opened=opened, finished=[Finished(request, "length")])
    assert harness.deltas(ANN) == []
    if peer is not None:
        harness.give("", PeerUp(peer, 9))
        (again,) = harness.take("tokenizer")
        assert array("i", again.delivered).tolist() == [5]
    harness.give("tokenizer", Tokenized(request, array("i", [7, 8]).tobytes()))
    (delta,) = harness.deltas(ANN)
    assert (delta.text, delta.finish_reason, delta.prompt_token_ids) == ("x", "length", [7, 8])
    assert delta.usage == Usage(prompt_tokens=2, completion_tokens=1)
    assert harness.nothing_left()


@pytest.mark.parametrize("abort", [False, True])
def test_deltas_that_are_quicker_than_their_prompts_token_ids_wait_for_them(
    harness: Harness, abort: bool
) -> None:
    """The first delta has the ids: who streams them has no place for them later."""
    request = harness.submitted(ANN, "1", return_prompt_ids=True).request
    harness.open(request)
    harness.texts([(request, 5, "x")])
    harness.texts([(request, 6, "y")])
    assert harness.deltas(ANN) == []
    if abort:
        harness.ask(ANN, Abort(id="1"))
    else:
        harness.give("tokenizer", Tokenized(request, array("i", [7, 8]).tobytes()))
    (delta,) = harness.deltas(ANN)
    assert (delta.text, delta.token_ids) == ("xy", [5, 6])
    assert delta.prompt_token_ids == (None if abort else [7, 8])
    assert delta.finish_reason == ("abort" if abort else None)
    if not abort:
        harness.texts([(request, 9, "z")], finished=[Finished(request, "length")])
        (delta,) = harness.deltas(ANN)
        assert (delta.text, delta.prompt_token_ids, delta.finish_reason) == ("z", None, "length")
    assert harness.nothing_left()


def test_an_answer_that_waits_for_its_prompts_token_ids_can_be_aborted(harness: Harness) -> None:
    request = harness.submitted(ANN, "1", return_prompt_ids=True).request
    opened = [Opened(request, b"", 0, [], 0, 2)]
    harness.texts([(request, 5, "x")], opened=opened, finished=[Finished(request, "length")])
    harness.ask(ANN, Abort(id="1"))
    (delta,) = harness.deltas(ANN)
    assert (delta.text, delta.finish_reason) == ("x", "length")
    harness.give("tokenizer", Tokenized(request, array("i", [7, 8]).tobytes()))
    assert harness.deltas(ANN) == []
    assert harness.nothing_left()


def test_what_the_tokenizer_refuses_ends_the_request_with_its_reason(harness: Harness) -> None:
    request = harness.submitted(ANN, "1").request
    harness.give("tokenizer", Refused(request, "invalid_request", "the prompt is empty"))
    assert harness.one(ANN) == Error(code="invalid_request", message="the prompt is empty", id="1")
    assert harness.nothing_left()


@pytest.mark.parametrize(
    ("code", "logged"), [("internal", True), ("quarantined", True), ("invalid_request", False)]
)
def test_a_fault_of_the_service_is_logged_with_the_id_of_its_request(
    harness: Harness, code: str, logged: bool
) -> None:
    request = harness.submitted(ANN, "chatcmpl-mine-1").request
    harness.give("tokenizer", Refused(request, code, "it broke"))
    assert harness.one(ANN) == Error(code=code, message="it broke", id="chatcmpl-mine-1")
    lines = harness.said.get(HostAddress.LOG, [])
    assert lines == ([f"request chatcmpl-mine-1 failed ({code}): it broke"] if logged else [])


def test_what_the_scheduler_refuses_ends_the_request_with_its_reason(harness: Harness) -> None:
    """It never opened the sequence."""
    request = harness.submitted(ANN, "1").request
    harness.texts([], finished=[Finished(request, "context_length_exceeded", None, "the KV cache holds 32")])
    assert harness.one(ANN) == Error(code="context_length_exceeded", message="the KV cache holds 32", id="1")
    assert harness.nothing_left()


# --- abort, and clients that leave --------------------------------------------------------------


def test_abort_gives_exactly_one_last_delta_however_often_it_is_said(harness: Harness) -> None:
    request = harness.submitted(ANN, "1").request
    harness.open(request)
    harness.texts([(request, 5, "x")])
    harness.take(ANN)
    for _ in range(3):
        harness.ask(ANN, Abort(id="1"))
    (delta,) = harness.deltas(ANN)
    assert (delta.finish_reason, delta.text, delta.token_ids) == ("abort", "", [])
    assert delta.usage == Usage(prompt_tokens=4, completion_tokens=1)
    assert harness.take("tokenizer") == [Cancel([request])]
    harness.texts([(request, 6, "y")], finished=[Finished(request, "abort")])  # was on its way
    assert harness.said == {}
    assert harness.nothing_left()


def test_abort_of_nothing_and_of_another_clients_request_does_nothing(harness: Harness) -> None:
    harness.submitted(ANN, "1")
    harness.ask(ANN, Abort(id="2"))
    harness.ask(BEN, Abort(id="1"))
    assert harness.said == {}
    assert len(harness.gateway.ledger.requests) == 1


def test_the_requests_of_a_client_that_is_gone_are_cancelled_together(harness: Harness) -> None:
    mine = [harness.submitted(ANN, str(number)).request for number in range(2)]
    other = harness.submitted(BEN, "1").request
    harness.open(*mine, other)
    harness.gone.add(ANN)
    harness.texts([(request, 5, "x") for request in [*mine, other]])
    assert harness.take("tokenizer") == [Cancel(mine)]
    assert [delta.text for delta in harness.deltas(BEN)] == ["x"]
    assert list(harness.gateway.ledger.requests) == [other]
    assert harness.gateway.ledger.open_bytes == len("Once")
    harness.ask(BEN, Abort(id="1"))
    assert harness.nothing_left()


def test_a_client_that_is_sent_nothing_is_probed_while_it_has_a_request(harness: Harness) -> None:
    """Only a send can tell that a client is gone; a request that waits would hold its place for ever."""
    harness.submitted(ANN, "1")
    harness.pass_time(2 * PROBE_S)
    assert Pong() in harness.take(ANN)
    assert harness.take(BEN) == []
    harness.gone.add(ANN)
    harness.pass_time(2 * PROBE_S)
    assert harness.take("tokenizer") == [Cancel([0])]
    assert harness.nothing_left()


def test_a_gateway_without_a_request_asks_for_no_wake(harness: Harness) -> None:
    request = harness.submitted(ANN, "1").request
    harness.open(request)
    harness.texts([], finished=[Finished(request, "length")])
    harness.pass_time(10 * PROBE_S)
    assert harness.gateway.wake_at is None


# --- a client that does not read ----------------------------------------------------------------


def test_the_deltas_of_a_client_that_does_not_read_merge_and_nothing_is_lost_or_out_of_order(
    harness: Harness,
) -> None:
    rng = random.Random(3)
    requests = [harness.submitted(ANN, str(number)).request for number in range(3)]
    for request in requests:
        harness.give("tokenizer", Tokenized(request, array("i", [1]).tobytes()))
    harness.open(*requests)
    expected = {str(number): "" for number in range(3)}
    got = {str(number): "" for number in range(3)}
    tokens: dict[str, list[int]] = {str(number): [] for number in range(3)}
    most = 0

    def read() -> None:
        nonlocal most
        messages = harness.take(ANN)
        most = max(most, len(messages))
        for message in messages:
            for delta in message.items:
                got[delta.id] += delta.text
                tokens[delta.id] += delta.token_ids

    for step in range(500):
        rows = [(r, step % 256, f"{r}.{step} ") for r in requests if rng.random() < 0.7]
        for request, _, text in rows:
            expected[str(requests.index(request))] += text
        harness.texts(rows)
        if rng.random() < 0.1:
            harness.blocked ^= {ANN}
        harness.pass_time(rng.random() * RETRY_S)
        if ANN not in harness.blocked:
            read()
    harness.blocked.clear()
    harness.pass_time(2 * RETRY_S)
    read()
    assert got == expected
    assert [len(tokens[str(number)]) for number in range(3)] == [
        len(expected[str(number)].split()) for number in range(3)
    ]
    assert most <= 3


def test_what_waited_for_a_client_comes_as_one_delta_per_request_with_its_end(harness: Harness) -> None:
    request = harness.submitted(ANN, "1", return_prompt_ids=True).request
    harness.open(request)
    harness.blocked.add(ANN)
    harness.texts([(request, 5, "a")])
    harness.give("tokenizer", Tokenized(request, array("i", [7, 8]).tobytes()))
    harness.texts([(request, 6, "b")])
    harness.texts([(request, 7, "c")], finished=[Finished(request, "stop", 7)])
    harness.blocked.clear()
    assert harness.said == {}
    harness.pass_time(2 * RETRY_S)
    (delta,) = harness.deltas(ANN)
    assert (delta.text, delta.token_ids, delta.finish_reason, delta.stop_reason) == (
        "abc",
        [5, 6, 7],
        "stop",
        7,
    )
    assert delta.prompt_token_ids == [7, 8]
    assert delta.usage is not None


def test_the_first_of_the_deltas_that_waited_has_the_prompts_token_ids(harness: Harness) -> None:
    """They came with answer 0, whose end comes last of all."""
    first = harness.submitted(ANN, "1", return_prompt_ids=True, params=SamplingParams(n=2)).request
    harness.give("tokenizer", Tokenized(first, array("i", [7, 8]).tobytes()))
    (other,) = harness.take("tokenizer")
    harness.open(first, other.request)
    harness.blocked.add(ANN)
    harness.texts([(first, 5, "a"), (other.request, 6, "b")], finished=[Finished(other.request, "length")])
    harness.texts([(first, 7, "c")], finished=[Finished(first, "length")])
    harness.blocked.clear()
    harness.pass_time(2 * RETRY_S)
    ended, last = harness.deltas(ANN)
    assert (ended.index, ended.text, ended.prompt_token_ids) == (1, "b", [7, 8])
    assert (last.index, last.text, last.prompt_token_ids, last.usage is not None) == (0, "ac", None, True)


def test_an_error_waits_for_a_client_too_and_comes_after_the_deltas_of_its_request(harness: Harness) -> None:
    """Lost, it would leave the client to wait for ever."""
    running = harness.submitted(ANN, "1", params=SamplingParams(deadline_s=0.5)).request
    harness.open(running)
    harness.blocked.add(ANN)
    harness.texts([(running, 5, "a")])
    harness.ask(ANN, Generate(id="2", prompt=[999]))
    harness.ask(ANN, GetStats())
    harness.pass_time(1.0)
    harness.blocked.clear()
    harness.pass_time(2 * RETRY_S)
    told = harness.take(ANN)
    assert told[0] == Deltas(items=[Delta(id="1", text="a", token_ids=[5])])
    assert [(e.code, e.id) for e in told if isinstance(e, Error)] == [
        ("invalid_request", "2"),
        ("deadline_exceeded", "1"),
    ]
    assert sum(isinstance(message, Stats) for message in told) == 1


def test_an_id_is_in_use_until_its_client_was_told_of_the_end(harness: Harness) -> None:
    request = harness.submitted(ANN, "1").request
    harness.open(request)
    harness.blocked.add(ANN)
    harness.texts([(request, 5, "a")], finished=[Finished(request, "length")])
    harness.ask(ANN, Generate(id="1", prompt="x"))
    harness.blocked.clear()
    harness.pass_time(2 * RETRY_S)
    last, error = harness.take(ANN)
    assert last.items[0].finish_reason == "length"
    assert "in use" in error.message


@pytest.mark.parametrize("what", ["deltas", "errors"])
def test_a_client_that_never_reads_is_cut_off_at_the_bound_and_its_requests_end(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(connections, "MAX_WAITING_TOKENS", 50)
    monkeypatch.setattr(connections, "MAX_WAITING_MESSAGES", 50)
    mine = [harness.submitted(ANN, str(number)).request for number in range(2)]
    other = harness.submitted(BEN, "1").request
    harness.open(*mine, other)
    harness.blocked.add(ANN)
    for step in range(60):
        if what == "deltas":
            harness.texts([(mine[0], step, "x"), (other, step, "y")])
        else:
            harness.ask(ANN, Generate(id="0", prompt="x"))
    assert harness.take("tokenizer") == [Cancel(mine)]
    assert list(harness.gateway.ledger.requests) == [other]
    assert len(harness.deltas(BEN)) == (60 if what == "deltas" else 0)
    harness.blocked.clear()
    harness.pass_time(5.0)
    harness.ask(ANN, Ping())
    assert harness.take(ANN)[-1].message == "say hello first"


def test_a_client_that_asks_for_trace_after_trace_and_never_reads_one_is_cut_off(harness: Harness) -> None:
    harness.submitted(ANN, "1")
    connections_ = harness.gateway.connections
    client = connections_.known[ANN]
    client.blocked = True
    for _ in range(connections.MAX_UNREAD_TRACES):
        connections_.send_to(client, Trace(actors={}, since_ns=0, until_ns=0))
    assert ANN in connections_.known
    connections_.send_to(client, Trace(actors={}, since_ns=0, until_ns=0))
    assert ANN not in connections_.known
    assert not harness.gateway.ledger.requests


def test_a_step_that_both_cuts_a_client_off_and_fails_its_request_is_survived(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MAX_WAITING_TOKENS", 1)
    first, second = harness.submitted(ANN, "1").request, harness.submitted(ANN, "2").request
    harness.open(first, second)
    harness.blocked.add(ANN)
    harness.texts([(first, 5, "x")])
    harness.texts([(first, 6, "y")], finished=[Finished(second, "internal", None, "a fault")])
    assert harness.nothing_left()


# --- deadlines ----------------------------------------------------------------------------------


def test_a_request_that_is_not_finished_by_its_deadline_ends_then_and_names_it(harness: Harness) -> None:
    early = harness.submitted(ANN, "1", params=SamplingParams(deadline_s=2.5)).request
    late = harness.submitted(ANN, "2", params=SamplingParams(deadline_s=50.0)).request
    harness.open(early, late)
    harness.pass_time(2.4)
    assert not any(isinstance(message, Error) for message in harness.take(ANN))
    harness.pass_time(0.2)
    (error,) = [message for message in harness.take(ANN) if isinstance(message, Error)]
    assert (error.code, error.id) == ("deadline_exceeded", "1")
    assert "deadline_s=2.5" in error.message
    assert harness.take("tokenizer") == [Cancel([early])]
    harness.texts([(early, 5, "x"), (late, 5, "x")])
    assert [delta.id for delta in harness.deltas(ANN)] == ["2"]


def test_deadlines_of_requests_that_are_over_are_not_kept(harness: Harness) -> None:
    for number in range(5000):
        request = harness.submitted(ANN, str(number), params=SamplingParams(deadline_s=80_000.0)).request
        harness.texts([], opened=[Opened(request, b"", 0, [], 0, 1)], finished=[Finished(request, "length")])
        harness.take(ANN)
    assert len(harness.gateway.ledger.deadlines.heap) < 1100


def test_a_request_that_is_sent_again_keeps_its_deadline(harness: Harness) -> None:
    harness.submitted(ANN, "1", params=SamplingParams(deadline_s=50.0), age_s=40.0)
    harness.submitted(ANN, "2", params=SamplingParams(deadline_s=50.0))
    harness.ask(ANN, Generate(id="3", prompt="Once", params=SamplingParams(deadline_s=5.0), age_s=40.0))
    harness.pass_time(10.5)
    ended = {message.id: message.code for message in harness.take(ANN) if isinstance(message, Error)}
    assert ended == {"1": "deadline_exceeded", "3": "deadline_exceeded"}


@pytest.mark.parametrize("age", [-1.0, math.nan, math.inf])
def test_an_age_that_is_none_is_refused(harness: Harness, age: float) -> None:
    harness.ask(ANN, Generate(id="1", prompt="Once", age_s=age))
    assert "age_s" in harness.one(ANN).message


def test_a_request_without_a_deadline_has_that_of_the_service() -> None:
    harness = Harness(default_deadline_s=20.0)
    harness.ask(ANN, Hello(protocol=[1, 0]))
    harness.submitted(ANN, "1")
    harness.pass_time(19.0)
    assert not any(isinstance(message, Error) for message in harness.take(ANN))
    harness.pass_time(2.0)
    (error,) = [message for message in harness.take(ANN) if isinstance(message, Error)]
    assert (error.code, error.id) == ("deadline_exceeded", "1")
    assert "20 s" in error.message


def test_last_words_answer_every_open_request(harness: Harness) -> None:
    first, second = harness.submitted(ANN, "1").request, harness.submitted(BEN, "2").request
    harness.open(first, second)
    harness.give(HostAddress.SUPERVISOR, Ending("the service failed: x"))
    for client, id in ((ANN, "1"), (BEN, "2")):
        assert harness.one(client) == Error(code="unavailable", message="the service failed: x", id=id)
    assert harness.nothing_left()


# --- peers that restart -------------------------------------------------------------------------


@pytest.mark.parametrize("peer", ["tokenizer", "scheduler", "detokenizer"])
def test_every_open_request_is_sent_again_to_a_new_peer_with_what_was_delivered(
    harness: Harness, peer: str
) -> None:
    first, second = harness.submitted(ANN, "1"), harness.submitted(BEN, "1", prompt=[1, 2, 3])
    harness.open(first.request, second.request)
    harness.texts([(first.request, 5, "x"), (second.request, 6, "y"), (first.request, 7, "z")])
    harness.give("", PeerUp(peer, 9))
    again = harness.take("tokenizer")
    assert [submit.request for submit in again] == [first.request, second.request]
    assert [submit.attempt for submit in again] == [1, 1]
    assert [array("i", submit.delivered).tolist() for submit in again] == [[5, 7], [6]]
    assert [submit.prompt for submit in again] == ["Once", None]
    assert array("i", again[1].prompt_ids).tolist() == [1, 2, 3]


def test_a_conversation_is_rendered_but_once(harness: Harness) -> None:
    """Its template may print the date, which is another one after midnight."""
    conversation = [{"role": "user", "content": "x"}]
    submit = harness.submitted(ANN, "1", prompt=None, messages=conversation)
    harness.give("", PeerUp("tokenizer", 8))
    assert harness.one("tokenizer").prompt == conversation, "nobody has said yet what it was rendered to"
    harness.give("tokenizer", Tokenized(submit.request, array("i", [4, 5, 6]).tobytes()))
    harness.give("", PeerUp("tokenizer", 9))
    again = harness.one("tokenizer")
    assert again.prompt is None
    assert array("i", again.prompt_ids).tolist() == [4, 5, 6]


def test_nothing_is_sent_again_for_a_new_executor(harness: Harness) -> None:
    harness.submitted(ANN, "1")
    harness.give("", PeerUp("executor", 9))
    assert harness.said == {}


def test_what_an_older_attempt_still_brings_is_dropped(harness: Harness) -> None:
    request = harness.submitted(ANN, "1").request
    harness.open(request)
    harness.texts([(request, 5, "a")])
    harness.give("", PeerUp("detokenizer", 9))
    harness.texts([(request, 6, "b")])
    harness.texts([(request, 7, "c")], finished=[Finished(request, "length")])
    harness.open(request, attempt=0)
    harness.texts([(request, 8, "d")])
    assert [delta.text for delta in harness.deltas(ANN)] == ["a"]
    harness.open(request, attempt=1)
    harness.texts([(request, 6, "b"), (request, 7, "c")])
    harness.texts([], finished=[Finished(request, "stop", 7)])
    deltas = harness.deltas(ANN)
    assert "".join(delta.text for delta in deltas) == "bc"
    assert deltas[-1].usage == Usage(prompt_tokens=4, completion_tokens=3)
    assert harness.nothing_left()


def test_a_client_that_comes_again_with_what_it_received_gets_only_the_rest(harness: Harness) -> None:
    submit = harness.submitted(ANN, "1", received=[5, 6])
    assert array("i", submit.delivered).tolist() == [5, 6]
    harness.texts([(submit.request, 7, "c")], opened=[Opened(submit.request, b"", 2, [], 0, 4)])
    harness.texts([], finished=[Finished(submit.request, "length")])
    deltas = harness.deltas(ANN)
    assert [delta.token_ids for delta in deltas] == [[7], []]
    assert deltas[-1].usage == Usage(prompt_tokens=4, completion_tokens=3)


# --- drain --------------------------------------------------------------------------------------


def test_a_draining_gateway_finishes_what_runs_and_takes_nothing_new(harness: Harness) -> None:
    request = harness.submitted(ANN, "1").request
    harness.open(request)
    harness.give(b"", Drain())
    assert not harness.gateway.idle
    harness.ask(BEN, Generate(id="2", prompt="Once"))
    error = harness.one(BEN)
    assert (error.code, error.id) == ("unavailable", "2")
    assert "stopping" in error.message
    harness.texts([(request, 5, "x")], finished=[Finished(request, "length")])
    assert harness.deltas(ANN)[-1].finish_reason == "length"
    assert harness.gateway.idle


@pytest.mark.parametrize(
    "again", [{"age_s": 3.0}, {"received": [5]}, {"received_of_others": [[5]], "params": SamplingParams(n=2)}]
)
def test_a_gateway_whose_last_incarnation_died_in_a_drain_waits_for_those_who_ask_again(
    harness: Harness, again: dict[str, Any]
) -> None:
    harness.give(b"", Drain(returning_s=2.0))
    harness.pass_time(1.5)
    assert not harness.gateway.idle
    harness.ask(BEN, Generate(id="new", prompt="Once"))
    assert harness.one(BEN).code == "unavailable"
    request = harness.submitted(ANN, "again", **again).request
    harness.open(request)
    harness.pass_time(0.6)
    assert not harness.gateway.idle
    harness.ask(BEN, Generate(id="late", prompt="Once", age_s=3.0))
    assert harness.one(BEN).code == "unavailable"
    harness.ask(ANN, Abort(id="again"))
    assert harness.gateway.idle


def test_a_gateway_that_nobody_comes_back_to_ends_its_drain_by_itself(harness: Harness) -> None:
    harness.give(b"", Drain(returning_s=2.0))
    assert not harness.gateway.idle
    harness.gateway.wake_by(harness.now + 1.0)  # something else is due before
    harness.pass_time(2.1)
    assert harness.gateway.idle


def test_a_draining_gateway_waits_until_a_slow_client_has_its_end(harness: Harness) -> None:
    request = harness.submitted(ANN, "1").request
    harness.open(request)
    harness.give(b"", Drain())
    harness.blocked.add(ANN)
    harness.texts([(request, 5, "x")], finished=[Finished(request, "length")])
    assert not harness.gateway.idle
    harness.blocked.clear()
    harness.pass_time(2 * RETRY_S)
    assert harness.deltas(ANN)[-1].finish_reason == "length"
    assert harness.gateway.idle


# --- looking inside -----------------------------------------------------------------------------


def test_the_counters_tell_what_became_of_each_request(harness: Harness) -> None:
    finished = harness.submitted(ANN, "finished").request
    refused = harness.submitted(ANN, "failed").request
    harness.submitted(ANN, "aborted")
    harness.ask(ANN, Abort(id="aborted"))
    harness.ask(ANN, Generate(id="refused"))
    harness.give("tokenizer", Refused(refused, "invalid_request", "no"))
    harness.open(finished)
    harness.texts([], finished=[Finished(finished, "length")], counters={"steps": 60.0})
    harness.take(ANN)
    harness.ask(ANN, GetStats())
    told = harness.one(ANN)
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


def give_trace(harness: Harness, name: str, since_ns: int) -> None:
    """The trace of one actor, in two parts."""
    harness.give(name, Spans(name, part_of(name, 1), since_ns))
    harness.give(name, Spans(name, part_of(name, 2), since_ns, last=True))


def traced(message: Any) -> dict[str, list[int]]:
    """The steps in a trace, by track."""
    assert isinstance(message, Trace)
    return {track: [span.step for span in spans] for track, spans in Timeline.of(message).tracks.items()}


def test_a_trace_has_the_parts_of_every_actor_and_who_asks_meanwhile_gets_the_next(harness: Harness) -> None:
    for name in ("tokenizer", "scheduler"):
        harness.give("", PeerUp(name, 5))
    asked = ["gateway", "scheduler", "tokenizer"]
    harness.ask(ANN, GetTrace())
    assert [harness.one(name) for name in asked] == [DumpTrace()] * 3
    harness.ask(BEN, GetTrace(seconds=4.0))
    harness.ask(BEN, GetTrace(seconds=8.0))
    since_ns = 0
    for client, answers in ((ANN, 1), (BEN, 2)):
        for name in asked:
            assert harness.take(client) == []
            give_trace(harness, name, since_ns)
        traces = harness.take(client)
        assert [traced(trace) for trace in traces] == [{name: [1, 2] for name in asked}] * answers
        if client == ANN:
            question = harness.one("gateway")
            assert isinstance(question, DumpTrace)
            assert [harness.one(name) for name in asked[1:]] == [question] * 2
            since_ns = question.since_ns
    assert traces[0].until_ns - since_ns == pytest.approx(8e9)
    assert harness.said == {}


def test_a_trace_does_not_wait_for_ever_for_an_actor_that_is_gone(harness: Harness) -> None:
    harness.give("", PeerUp("scheduler", 5))
    harness.ask(ANN, GetTrace())
    give_trace(harness, "gateway", 0)
    harness.pass_time(TRACE_TIMEOUT_S + 0.1)
    assert traced(harness.one(ANN)) == {"gateway": [1, 2]}
    give_trace(harness, "scheduler", 0)  # too late, and no harm
    assert harness.said == {"gateway": [DumpTrace()], "scheduler": [DumpTrace()]}


def test_a_client_that_asks_for_traces_without_reading_them_is_refused_the_next(harness: Harness) -> None:
    harness.ask(ANN, GetTrace())  # is gathered at once
    harness.one("gateway")
    for _ in range(MAX_TRACE_QUESTIONS):
        harness.ask(ANN, GetTrace())
        assert harness.take(ANN) == []
    harness.ask(ANN, GetTrace())
    refused = harness.one(ANN)
    assert isinstance(refused, Error)
    assert (refused.code, refused.id, refused.retry_after_s) == ("overloaded", None, TRACE_TIMEOUT_S)
    harness.ask(BEN, GetTrace())
    assert harness.take(BEN) == []
    give_trace(harness, "gateway", 0)
    assert [traced(trace) for trace in harness.take(ANN)] == [{"gateway": [1, 2]}]


def test_who_asks_after_the_actors_is_told_what_the_supervisor_says() -> None:
    harness = Harness()
    for client in (ANN, BEN):
        harness.ask(client, Hello(protocol=[1, 0]))
        harness.ask(client, GetActors())
    harness.said.clear()
    told = Actors(actors=[], live=True, ready=True)
    harness.give(HostAddress.SUPERVISOR, told)
    assert harness.one(ANN) == told
    assert harness.one(BEN) == told
    harness.give(HostAddress.SUPERVISOR, told)
    assert not harness.take(ANN), "each question has one answer"


def test_who_asks_after_the_actors_of_a_service_whose_supervisor_is_stopped_is_told_that_it_is_not_well() -> (
    None
):
    harness = Harness()
    for client in (ANN, BEN):
        harness.ask(client, Hello(protocol=[1, 0]))
    harness.said.clear()
    harness.ask(ANN, GetActors())
    harness.pass_time(3.0)
    harness.ask(BEN, GetActors())
    harness.pass_time(2.5)
    assert harness.one(ANN) == Actors(actors=[], live=False, ready=False)
    assert not harness.take(BEN)
    harness.pass_time(3.0)
    assert harness.one(BEN) == Actors(actors=[], live=False, ready=False)
    harness.give(HostAddress.SUPERVISOR, Actors(actors=[], live=True, ready=True))
    assert not harness.take(ANN), "each question has one answer"
    harness.ask(ANN, GetActors())
    told = Actors(actors=[], live=True, ready=True)
    harness.give(HostAddress.SUPERVISOR, told)
    assert harness.take(ANN)[-1] == told


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan])
def test_a_trace_of_no_time_at_all_is_refused(harness: Harness, seconds: float) -> None:
    harness.ask(ANN, GetTrace(seconds=seconds))
    refused = harness.one(ANN)
    assert isinstance(refused, Error)
    assert f"seconds={seconds}" in refused.message
    assert harness.said == {}


def test_counters_do_not_go_back_when_the_scheduler_is_new_and_gauges_do(harness: Harness) -> None:
    def told() -> dict[str, float]:
        harness.ask(ANN, GetStats())
        counters = harness.one(ANN).counters
        return {name: counters[name] for name in ("steps", "num_requests_running")}

    harness.texts([], counters={"steps": 60.0, "num_requests_running": 3.0})
    for epoch in (8, 9):
        harness.give("", PeerDown("scheduler", own_fault=False))
        harness.give("", PeerUp("scheduler", epoch))
        assert told() == {"steps": 60.0 if epoch == 8 else 65.0, "num_requests_running": 0.0}
        harness.texts([], counters={"steps": 5.0, "num_requests_running": 1.0})
    assert told() == {"steps": 70.0, "num_requests_running": 1.0}
    harness.give("", PeerUp("tokenizer", 10))
    assert told() == {"steps": 70.0, "num_requests_running": 1.0}


@pytest.mark.parametrize("steps", [0.0, 60.0])
def test_what_a_new_scheduler_tells_before_it_is_known_to_be_there_stays(
    harness: Harness, steps: float
) -> None:
    """It comes by way of the detokenizer, and it may be all that comes until the next step."""
    harness.texts([], counters={"steps": steps, "kv_cache_blocks": 9.0})
    harness.give("", PeerDown("scheduler", own_fault=False))
    harness.texts([], counters={"steps": 0.0, "kv_cache_blocks": 8.0})
    harness.give("", PeerUp("scheduler", 9))
    harness.ask(ANN, GetStats())
    told = harness.one(ANN).counters
    assert (told["steps"], told["kv_cache_blocks"]) == (steps, 8.0)


@pytest.mark.parametrize("name", ["a-model", "big"])
def test_no_adapter_has_a_name_of_the_model_itself(name: str) -> None:
    """A request by that name would be answered without the adapter."""
    harness = Harness(lora_updates=True, other_names=("big", "small"))
    harness.ask(ANN, Hello(protocol=[1, 0]))
    harness.ask(ANN, LoadAdapter(name=name, path="/a"))
    assert harness.said[ANN][-1].error == f"name={name!r} is that of the model itself; take another"
    assert "scheduler" not in harness.said
