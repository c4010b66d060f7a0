"""The router's own promises, message by message: its services are scripted, its clock is the test's."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import pytest
from slipstream.actors.router.open_requests import Routed
from slipstream.actors.router.placement import MAX_LOSSES, WAIT_S
from slipstream.actors.router.replica import LOST_AFTER_S, MOVE_AFTER_S, POLL_S
from slipstream.actors.router.router import Router
from slipstream.protocol.client.session import PING_AFTER_S
from slipstream.protocol.codec import decode_from_client, encode
from slipstream.protocol.events import (
    ClientGone,
    ClientMessage,
    Drain,
    Ending,
    ServiceFrame,
    ServiceInterrupted,
    WatchedFile,
)
from slipstream.protocol.limits import Limits
from slipstream.protocol.messages import (
    Abort,
    Actors,
    ActorState,
    Delta,
    Deltas,
    Error,
    Generate,
    GetActors,
    GetStats,
    Hello,
    Pong,
    Stats,
    Usage,
    Welcome,
)
from slipstream.protocol.sampling import SamplingParams
from slipstream.runtime.actor import HostAddress, Send

BOUNDS = Limits(max_model_len=1000, vocab_size=500, max_prompt_bytes=100_000, max_queued_requests=8)
WELCOME = Welcome(protocol=[1, 0], server="test", model="small", limits=BOUNDS)
ANN = b"ann"
EAST, WEST = "ipc:///east", "ipc:///west"


class Desk:
    """A router, and what it says to whom."""

    def __init__(self, *services: str) -> None:
        self.router = Router("", "small", BOUNDS, services, server="router", rng=random.Random(0))
        self.now = 100.0
        self.told: list[Any] = []
        """What the client was sent."""
        self.log: list[str] = []
        self.sent: defaultdict[str, list[Any]] = defaultdict(list)
        """What each service was sent."""
        self.wait(0.0)
        for service in services:
            self.say(service, WELCOME)
            self.say(service, Stats(counters={}))
        self.give(ANN, ClientMessage(ANN, Hello(protocol=[1, 0])))
        self.told.clear()
        self.sent.clear()

    def take(self, sends: list[Send]) -> None:
        self.told += [message for to, message in sends if to == ANN]
        self.log += [message for to, message in sends if to is HostAddress.LOG]
        for endpoint, session in self.router.sessions.items():
            self.sent[endpoint] += map(decode_from_client, session.outbox)
            session.outbox.clear()

    def give(self, sender: Any, message: Any) -> None:
        self.take(self.router.receive(sender, message, self.now))
        self.turn()

    def turn(self) -> None:
        while self.router.wake_at is not None and self.router.wake_at <= self.now:
            self.take(self.router.wake(self.now))

    def wait(self, seconds: float, answering: tuple[str, ...] = ()) -> None:
        """Time passes; the services of ``answering`` show that they are there."""
        until = self.now + seconds
        while self.router.wake_at is not None and self.router.wake_at <= until:
            self.now = max(self.now, self.router.wake_at)
            self.turn()
            for service in answering:
                if any(isinstance(message, GetStats) for message in self.sent[service]):
                    self.sent[service] = [m for m in self.sent[service] if not isinstance(m, GetStats)]
                    self.say(service, Stats(counters={"requests_open": 0.0}))
        self.now = until

    def say(self, service: str, message: Any) -> None:
        """A service says something."""
        self.give(service, ServiceFrame(service, encode(message)))

    def ask(self, id: str = "a", **asked: Any) -> None:
        asked = {"prompt": "hello", **asked}
        self.give(ANN, ClientMessage(ANN, Generate(id=id, **asked)))

    def asked(self, service: str) -> list[Generate]:
        """The requests that a service was sent."""
        return [message for message in self.sent[service] if isinstance(message, Generate)]

    def placed(self) -> tuple[str, Generate]:
        """Where the newest request is, and how it was sent there."""
        found = [
            (service, request) for service in self.router.services.replicas for request in self.asked(service)
        ]
        return max(found, key=lambda one: int(one[1].id[1:]))

    def other(self, service: str) -> str:
        return WEST if service == EAST else EAST

    def answer(self, service: str, request: Generate, *tokens: int, finish: str | None = None) -> None:
        delta = Delta(id=request.id, token_ids=list(tokens), text="x" * len(tokens), finish_reason=finish)
        if finish is not None:
            delta.usage = Usage(prompt_tokens=5, completion_tokens=len(tokens))
        self.say(service, Deltas(items=[delta]))

    def open(self) -> list[Routed]:
        return list(self.router.open.by_number.values())

    def tokens(self) -> list[int]:
        """What the client got."""
        deltas = [message for message in self.told if isinstance(message, Deltas)]
        return [token for message in deltas for delta in message.items for token in delta.token_ids]

    def errors(self) -> list[Error]:
        return [message for message in self.told if isinstance(message, Error)]


@pytest.fixture
def desk() -> Desk:
    return Desk(EAST, WEST)


# --- one request --------------------------------------------------------------------------------


def test_an_answer_reaches_its_client_under_the_id_that_the_client_gave(desk: Desk) -> None:
    desk.ask("mine")
    service, request = desk.placed()
    desk.answer(service, request, 1, 2, finish="stop")
    (message,) = desk.told
    (delta,) = message.items
    assert (delta.id, delta.token_ids, delta.finish_reason) == ("mine", [1, 2], "stop")
    assert desk.open() == []


def test_a_seed_is_drawn_where_there_is_none_and_goes_with_the_request(desk: Desk) -> None:
    desk.ask()
    service, request = desk.placed()
    assert request.params.seed is not None
    desk.answer(service, request, 1, 2)
    desk.give(service, ServiceInterrupted(service))
    desk.wait(MOVE_AFTER_S, answering=(desk.other(service),))
    (moved,) = desk.asked(desk.other(service))
    assert moved.params.seed == request.params.seed
    assert moved.received == [1, 2]
    desk.ask("b", params=SamplingParams(seed=7))
    assert desk.placed()[1].params.seed == 7


def test_a_conversation_goes_on_as_it_was_rendered_and_prompt_ids_are_told_to_who_asks(desk: Desk) -> None:
    talk = [{"role": "user", "content": "hello"}]
    desk.ask(prompt=None, messages=talk, tools=[{"name": "f"}])
    service, request = desk.placed()
    assert request.return_prompt_ids
    desk.say(service, Deltas(items=[Delta(id=request.id, token_ids=[9], prompt_token_ids=[4, 5])]))
    desk.give(service, ServiceInterrupted(service))
    desk.wait(MOVE_AFTER_S, answering=(desk.other(service),))
    (moved,) = desk.asked(desk.other(service))
    assert (moved.prompt, moved.messages, moved.tools, moved.received) == ([4, 5], None, None, [9])
    assert all(delta.prompt_token_ids is None for message in desk.told for delta in message.items)


def test_an_abort_ends_the_request_where_it_runs(desk: Desk) -> None:
    desk.ask()
    service, request = desk.placed()
    desk.give(ANN, ClientMessage(ANN, Abort(id="a")))
    assert desk.sent[service][-1] == Abort(id=request.id)
    desk.answer(service, request, finish="abort")
    assert desk.told[-1].items[0].finish_reason == "abort"
    assert desk.open() == []


def test_an_abort_of_a_request_that_no_service_has_ends_it_at_once() -> None:
    desk = Desk()
    desk.ask()
    desk.give(ANN, ClientMessage(ANN, Abort(id="a")))
    assert [delta.finish_reason for message in desk.told for delta in message.items] == ["abort"]
    assert desk.open() == []


def test_what_was_aborted_is_not_sent_on(desk: Desk) -> None:
    desk.ask()
    service, _ = desk.placed()
    desk.give(ANN, ClientMessage(ANN, Abort(id="a")))
    desk.give(service, ServiceInterrupted(service))
    desk.wait(MOVE_AFTER_S, answering=(desk.other(service),))
    assert desk.asked(desk.other(service)) == []
    assert desk.told[-1].items[0].finish_reason == "abort"


def test_a_client_that_is_gone_is_answered_nowhere(desk: Desk) -> None:
    desk.ask()
    service, request = desk.placed()
    desk.give(b"", ClientGone(ANN))
    assert desk.sent[service][-1] == Abort(id=request.id)
    assert desk.open() == []


def test_a_request_that_no_service_has_ended_ends_by_its_deadline(desk: Desk) -> None:
    desk.ask(params=SamplingParams(deadline_s=2.0), age_s=0.5)
    desk.wait(2.0)
    (error,) = desk.errors()
    assert (error.code, error.id) == ("deadline_exceeded", "a")
    assert "deadline_s=2.0" in error.message


def test_what_is_refused_here_ends_nothing_that_is_open(desk: Desk) -> None:
    desk.ask("a")
    for id in ("a", "", "x" * 129):
        desk.ask(id)
    assert [(error.code, error.id, error.param) for error in desk.errors()] == [
        ("invalid_request", None, "id")
    ] * 3
    assert len(desk.open()) == 1


def test_more_than_all_services_hold_is_refused(desk: Desk) -> None:
    for number in range(16):
        desk.ask(str(number))
    assert desk.errors() == []
    desk.ask("more")
    (error,) = desk.errors()
    assert (error.code, error.id) == ("overloaded", "more")
    assert error.retry_after_s is not None


def test_a_router_that_drains_takes_nothing_new_and_finishes_what_it_has(desk: Desk) -> None:
    desk.ask()
    service, request = desk.placed()
    desk.give(b"", Drain())
    desk.ask("late")
    assert [(error.code, error.id) for error in desk.errors()] == [("unavailable", "late")]
    assert not desk.router.idle
    desk.answer(service, request, 1, finish="stop")
    assert desk.router.idle


def test_a_router_whose_last_incarnation_died_in_a_drain_takes_in_what_is_asked_again(desk: Desk) -> None:
    desk.give(b"", Drain(returning_s=2.0))
    assert not desk.router.idle
    desk.ask("new")
    assert [(error.code, error.id) for error in desk.errors()] == [("unavailable", "new")]
    desk.ask("again", age_s=3.0)
    service, request = desk.placed()
    desk.answer(service, request, 1, finish="stop")
    assert not desk.router.idle
    desk.wait(2.1)
    assert desk.router.idle


def test_the_end_of_the_router_answers_what_is_open(desk: Desk) -> None:
    desk.ask()
    desk.give(HostAddress.SUPERVISOR, Ending("the router has stopped"))
    (error,) = desk.errors()
    assert (error.code, error.id, error.message) == ("unavailable", "a", "the router has stopped")


def test_what_a_client_has_to_part_is_passed_on_as_it_came(desk: Desk) -> None:
    desk.ask(prompt=None, messages=[{"role": "user", "content": "hello"}], marks=True)
    service, request = desk.placed()
    assert request.marks
    desk.answer(service, request, 1, finish="stop")
    assert type(desk.told[-1].items[0]) is Delta


@pytest.mark.parametrize("cached", [0, 10**6], ids=["nothing", "more than there is"])
def test_a_service_whose_word_on_its_cache_does_not_fit_is_named_once_and_serves_on(cached: int) -> None:
    desk = Desk(EAST)

    def served(number: int, cached: int) -> None:
        desk.ask(f"{number}", prompt="the same beginning " * 20)
        service, request = desk.placed()
        usage = Usage(prompt_tokens=100, completion_tokens=1, cached_tokens=cached)
        delta = Delta(id=request.id, token_ids=[1], text="x", finish_reason="stop", usage=usage)
        desk.say(service, Deltas(items=[delta]))

    for number in range(40):
        served(number, cached)
    (line,) = [line for line in desk.log if "cache" in line]
    assert line.startswith(f"the service at {EAST} says that it finds little of what it was sent before")
    for number in range(40, 80):
        served(number, 100)
    _, line = [line for line in desk.log if "cache" in line]
    assert line.startswith(f"the service at {EAST} finds what it was sent before in its cache again")
    assert (len(desk.tokens()), desk.errors()) == (80, [])


# --- services that go -----------------------------------------------------------------------------


def test_a_silent_service_is_given_up_within_six_seconds(desk: Desk) -> None:
    desk.ask()
    service, request = desk.placed()
    desk.answer(service, request, 1)
    desk.wait(PING_AFTER_S + LOST_AFTER_S + 0.01, answering=(desk.other(service),))
    (moved,) = desk.asked(desk.other(service))
    assert moved.received == [1]
    assert PING_AFTER_S + LOST_AFTER_S < 6.0


def test_a_router_that_was_away_itself_takes_no_service_for_silent_until_it_has_listened_again(
    desk: Desk,
) -> None:
    desk.ask()
    service, request = desk.placed()
    desk.answer(service, request, 1)
    desk.wait(PING_AFTER_S + 0.1)  # a ping is on its way to the service
    desk.now += (
        2 * LOST_AFTER_S
    )  # the machine did something else, and what the services said waits to be read
    desk.turn()
    desk.answer(service, request, 2)
    desk.wait(0.1, answering=(EAST, WEST))
    assert desk.asked(desk.other(service)) == []
    assert desk.tokens() == [1, 2]
    desk.wait(PING_AFTER_S + LOST_AFTER_S + POLL_S, answering=(desk.other(service),))
    (moved,) = desk.asked(desk.other(service))
    assert moved.received == [1, 2]


def test_nothing_new_goes_to_a_service_that_owes_an_answer_while_others_speak(desk: Desk) -> None:
    desk.wait(4.0, answering=(EAST,))
    for number in range(4):
        desk.ask(str(number))
    assert len(desk.asked(EAST)) == 4


def test_a_service_that_is_back_at_once_keeps_its_streams(desk: Desk) -> None:
    desk.ask()
    service, request = desk.placed()
    desk.answer(service, request, 1, 2)
    desk.sent.clear()
    desk.give(service, ServiceInterrupted(service))
    desk.wait(MOVE_AFTER_S / 2)
    desk.say(service, WELCOME)
    (again,) = desk.asked(service)
    assert (again.id, again.received) == (request.id, [1, 2])
    desk.wait(MOVE_AFTER_S)
    assert desk.asked(desk.other(service)) == []


def test_a_service_that_drains_gets_nothing_new_and_what_it_cannot_finish_goes_on_elsewhere(
    desk: Desk,
) -> None:
    desk.ask("a")
    service, request = desk.placed()
    desk.answer(service, request, 1)
    desk.ask("b")
    desk.ask("c")
    refused = next(one for one in desk.asked(service) if one.id != request.id)
    desk.say(service, Error(code="unavailable", message="the service is stopping", id=refused.id))
    assert [one.id for one in desk.asked(desk.other(service))].count(refused.id) == 1
    before = len(desk.asked(service))
    for number in range(4):
        desk.ask(str(number))
    assert len(desk.asked(service)) == before
    desk.say(service, Error(code="unavailable", message="the service has stopped", id=request.id))
    moved = next(one for one in desk.asked(desk.other(service)) if one.id == request.id)
    assert moved.received == [1]
    assert desk.errors() == []


def test_a_service_without_room_is_passed_over_and_if_all_are_the_client_hears_it(desk: Desk) -> None:
    desk.ask()
    service, request = desk.placed()
    full = Error(code="overloaded", message="full", id=request.id, retry_after_s=3.0)
    desk.say(service, full)
    assert [one.id for one in desk.asked(desk.other(service))] == [request.id]
    assert desk.errors() == []
    desk.say(desk.other(service), full)
    (error,) = desk.errors()
    assert (error.code, error.id) == ("overloaded", "a")
    assert error.retry_after_s == pytest.approx(3.0)


def test_an_error_of_the_request_itself_is_its_end(desk: Desk) -> None:
    desk.ask()
    service, request = desk.placed()
    desk.say(service, Error(code="invalid_request", message="no", id=request.id, param="top_p"))
    (error,) = desk.errors()
    assert (error.code, error.id, error.param) == ("invalid_request", "a", "top_p")
    assert desk.asked(desk.other(service)) == []


def test_a_request_with_which_service_after_service_goes_is_not_tried_for_ever() -> None:
    services = [f"ipc:///{number}" for number in range(5)]
    desk = Desk(*services)
    desk.ask()
    for _ in range(MAX_LOSSES):
        (request,) = desk.open()
        assert request.replica is not None
        lost = request.replica.endpoint
        desk.give(lost, ServiceInterrupted(lost))
        desk.wait(MOVE_AFTER_S, answering=tuple(services))
    (error,) = desk.errors()
    assert (error.code, error.id) == ("quarantined", "a")
    assert desk.open() == []


def test_a_request_that_comes_forward_may_see_any_number_of_services_go() -> None:
    services = [f"ipc:///{number}" for number in range(6)]
    desk = Desk(*services)
    desk.ask()
    for token in range(5):
        (request,) = desk.open()
        assert request.replica is not None
        lost = request.replica.endpoint
        desk.answer(lost, request.stream.request, token)
        desk.give(lost, ServiceInterrupted(lost))
        desk.wait(MOVE_AFTER_S, answering=tuple(services))
    assert desk.errors() == []
    assert desk.open()[0].stream.received[0] == [0, 1, 2, 3, 4]


def test_a_request_waits_for_a_service_and_not_for_ever() -> None:
    desk = Desk(EAST)
    desk.give(EAST, ServiceInterrupted(EAST))
    desk.ask("a")
    desk.wait(POLL_S + 0.1)
    desk.say(EAST, WELCOME)
    assert [one.prompt for one in desk.asked(EAST)] == ["hello"]
    desk.give(EAST, ServiceInterrupted(EAST))
    desk.ask("b")
    desk.wait(WAIT_S + 1)
    errors = {error.id: error for error in desk.errors()}
    assert errors["b"].code == "unavailable"
    assert EAST in errors["b"].message


# --- services that are none of ours ---------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        Welcome(protocol=[1, 0], server="test", model="another", limits=BOUNDS),
        Welcome(
            protocol=[1, 0],
            server="test",
            model="small",
            limits=Limits(max_model_len=1000, vocab_size=501, max_prompt_bytes=1),
        ),
        Welcome(protocol=[2, 0], server="test", model="small", limits=BOUNDS),
    ],
    ids=["another model", "another vocabulary", "another protocol"],
)
def test_a_service_of_another_kind_is_named_and_gets_nothing(desk: Desk, wrong: Welcome) -> None:
    desk.give(WEST, ServiceInterrupted(WEST))
    desk.wait(POLL_S, answering=(EAST,))
    desk.say(WEST, wrong)
    assert any(WEST in line and ("start it with" in line or "protocol" in line) for line in desk.log)
    for number in range(4):
        desk.ask(str(number))
    assert len(desk.asked(EAST)) == 4
    assert desk.asked(WEST) == []


def test_streams_do_not_go_on_at_a_service_that_became_another(desk: Desk) -> None:
    desk.ask()
    service, request = desk.placed()
    desk.answer(service, request, 1)
    desk.sent.clear()
    desk.give(service, ServiceInterrupted(service))
    desk.say(service, Welcome(protocol=[1, 0], server="test", model="another", limits=BOUNDS))
    assert desk.asked(service) == []
    (moved,) = desk.asked(desk.other(service))
    assert moved.received == [1]


def test_an_endpoint_that_never_answers_is_named_once_and_all_else_goes_on(desk: Desk) -> None:
    nobody = "ipc:///nobody"
    desk.router.set_services([EAST, WEST, nobody])
    desk.wait(40.0, answering=(EAST, WEST))
    assert sum(nobody in line for line in desk.log) == 1
    desk.ask()
    service, request = desk.placed()
    desk.answer(service, request, 1, finish="stop")
    assert desk.tokens() == [1]


def test_a_service_that_sends_rubbish_loses_its_streams_to_the_others(desk: Desk) -> None:
    desk.ask()
    service, request = desk.placed()
    desk.answer(service, request, 1)
    desk.give(service, ServiceFrame(service, b"\xc1"))
    (moved,) = desk.asked(desk.other(service))
    assert moved.received == [1]
    assert desk.errors() == []


def test_a_service_that_is_taken_away_finishes_what_it_has_and_is_forgotten(desk: Desk) -> None:
    desk.ask()
    service, request = desk.placed()
    desk.router.set_services([desk.other(service)])
    desk.wait(POLL_S, answering=(EAST, WEST))
    desk.ask("b")
    assert desk.placed()[0] == desk.other(service)
    desk.answer(service, request, 1, finish="stop")
    desk.wait(2 * POLL_S, answering=(EAST, WEST))
    assert list(desk.router.sessions) == [desk.other(service)]


def test_a_file_of_services_says_which_there_are_from_now_on(desk: Desk) -> None:
    desk.give("file", WatchedFile(f"# ours\n{EAST}\n\nnonsense\nipc:///new\n"))
    assert any("nonsense" in line for line in desk.log)
    desk.wait(2 * POLL_S, answering=(EAST, WEST))
    assert list(desk.router.sessions) == [EAST, "ipc:///new"]


# --- looking inside -------------------------------------------------------------------------------


def test_counters_are_the_sums_of_the_services_and_gauges_those_of_who_is_there(desk: Desk) -> None:
    said = {"requests_finished": 3.0, "num_requests_running": 2.0, "kv_cache_usage_perc": 0.5}
    said |= {"kv_cache_blocks": 100.0, "kv_cache_block_size": 16.0}
    desk.wait(POLL_S)
    desk.say(EAST, Stats(counters=said))
    desk.say(WEST, Stats(counters=said | {"kv_cache_usage_perc": 0.1}))
    desk.give(ANN, ClientMessage(ANN, GetStats()))
    counters = desk.told[-1].counters
    assert counters["requests_finished"] == 6.0
    assert counters["num_requests_running"] == 4.0
    assert counters["kv_cache_usage_perc"] == pytest.approx(0.3)
    assert (counters["kv_cache_blocks"], counters["kv_cache_block_size"]) == (200.0, 16.0)
    assert counters["router_services_ready"] == 2.0
    desk.give(WEST, ServiceInterrupted(WEST))
    desk.give(ANN, ClientMessage(ANN, GetStats()))
    counters = desk.told[-1].counters
    assert (counters["requests_finished"], counters["num_requests_running"]) == (6.0, 2.0)
    assert counters["router_services_ready"] == 1.0


def test_the_services_are_among_the_actors_and_without_one_nothing_is_ready(desk: Desk) -> None:
    router = ActorState(name="router", state="ready", pid=1, epoch=1)
    for service in (EAST, WEST):
        desk.give(ANN, ClientMessage(ANN, GetActors()))
        desk.give(HostAddress.SUPERVISOR, Actors(actors=[router], live=True, ready=True))
        assert desk.told[-1].ready
        assert [actor.name for actor in desk.told[-1].actors] == ["router", EAST, WEST]
        desk.give(service, ServiceInterrupted(service))
    desk.give(ANN, ClientMessage(ANN, GetActors()))
    desk.give(HostAddress.SUPERVISOR, Actors(actors=[router], live=True, ready=True))
    assert not desk.told[-1].ready
    assert [actor.state for actor in desk.told[-1].actors] == ["ready", "dead", "dead"]


def test_a_client_that_waits_long_for_its_answer_hears_that_the_router_is_there(desk: Desk) -> None:
    desk.ask()
    desk.wait(1.5, answering=(EAST, WEST))
    assert Pong() in desk.told
