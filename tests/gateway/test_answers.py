"""Several answers to one request, and their logprobs: from the device to the client, whatever crashes."""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from chorus import Chorus
from simulation import VOCAB, idle, random_params, random_prompt
from slipstream.actors.executor.step.emulated_runner import known_logprobs
from slipstream.actors.gateway.gateway import Gateway
from slipstream.actors.gateway.ledger import answer_params
from slipstream.protocol.client.outputs import Collector
from slipstream.protocol.client.session import Session
from slipstream.protocol.codec import decode_from_client, encode
from slipstream.protocol.events import ClientBlocked, ClientGone, ClientMessage
from slipstream.protocol.internal import Cancel, Finished, Opened, Refused, Submit, Texts, Tokenized
from slipstream.protocol.limits import MAX_CHOICES, MAX_LOGPROBS, MAX_SEED, Limits
from slipstream.protocol.messages import Abort, Delta, Deltas, Error, Generate, Hello, Usage, Welcome
from slipstream.protocol.sampling import SamplingParams
from slipstream.runtime.actor import Send

# --- through all actors -------------------------------------------------------------------------------


def chorus_params(rng: random.Random) -> SamplingParams:
    params = random_params(rng)
    return SamplingParams(
        max_tokens=params.max_tokens,
        seed=params.seed,
        ignore_eos=params.ignore_eos,
        stop_token_ids=params.stop_token_ids,
        n=rng.choice([1, 2, 3, 5]),
        logprobs=rng.choice([None, 0, 1, 5, MAX_LOGPROBS]),
    )


def chorus_load(world: Chorus, requests: int, *, aborts: float = 0.0) -> None:
    rng = world.rng
    clients = [b"ann", b"ben"]
    for client in clients:
        world.connect(client)
    for number in range(requests):
        client, id = rng.choice(clients), str(number)
        prompt, params = random_prompt(rng), chorus_params(rng)
        start = 0.01 + rng.random() * 0.05
        world.at(start, lambda c=client, i=id, p=prompt, s=params: world.ask(c, i, p, s))
        if rng.random() < aborts:
            world.at(start + rng.random() * 0.08, lambda c=client, i=id: world.abort(c, i))
    world.run(lambda: len(world.requests) == requests and world.over())
    world.run(lambda: not world.events or idle(world))
    world.check()
    world.check_nothing_left()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_each_of_n_answers_is_what_it_would_be_alone(depth: int) -> None:
    for seed in range(12):
        chorus_load(Chorus(seed, depth=depth), 12, aborts=0.15)


def test_answers_with_a_cache_of_a_fifth() -> None:
    for seed in range(8):
        chorus_load(Chorus(seed, slots=8, blocks=22, caching=seed % 2 == 0), 10)


@pytest.mark.parametrize("crashing", ["tokenizer", "scheduler", "executor", "detokenizer"])
def test_a_crash_at_any_instant_loses_and_repeats_no_token_and_no_logprob(crashing: str) -> None:
    for seed in range(10):
        world = Chorus(seed, depth=1 + seed % 3)
        for _ in range(world.rng.randrange(1, 5)):
            pause = world.rng.random() * 0.02
            world.at(0.01 + world.rng.random() * 0.2, lambda w=world, p=pause: w.crash(crashing, p))
        chorus_load(world, 12, aborts=0.1)


# --- the gateway --------------------------------------------------------------------------------------

BOUNDS = Limits(max_model_len=100, vocab_size=256, max_prompt_bytes=1000, max_queued_requests=8)
ANN = b"ann"


def gateway() -> Gateway:
    made = Gateway("", "a-model", BOUNDS, server="test", rng=random.Random(1))
    made.receive(ANN, ClientMessage(ANN, Hello(protocol=[1, 0])), 0.0)
    return made


def ask(made: Gateway, **fields: object) -> list[Send]:
    message = Generate(**({"id": "1", "prompt": "Once"} | fields))  # type: ignore[arg-type]
    return made.receive(ANN, ClientMessage(ANN, message), 0.0)


def submits(sends: list[Send]) -> list[Submit]:
    return [message for _, message in sends if isinstance(message, Submit)]


def ints(data: bytes) -> list[int]:
    return array("i", data).tolist()


def test_one_answer_goes_first_and_the_others_follow_with_its_token_ids() -> None:
    made = gateway()
    (first,) = submits(ask(made, params=SamplingParams(n=3, seed=7)))
    assert (first.prompt, first.prompt_ids, first.params.seed) == ("Once", b"", 7)
    ids = array("i", [1, 2, 3]).tobytes()
    others = submits(made.receive("tokenizer", Tokenized(first.request, ids), 0.0))
    assert [(other.prompt, other.prompt_ids) for other in others] == [(None, ids)] * 2
    assert len({first.params.seed, *(other.params.seed for other in others)}) == 3
    assert len({first.request, *(other.request for other in others)}) == 3
    assert not submits(made.receive("tokenizer", Tokenized(first.request, ids), 0.0))


def test_the_seeds_of_answers_are_a_function_of_seed_and_index() -> None:
    seeds = {
        (seed, index): answer_params(SamplingParams(seed=seed, n=64), index).seed
        for seed in range(50)
        for index in range(64)
    }
    assert all(seeds[seed, 0] == seed for seed in range(50))
    derived = [value for (_, index), value in seeds.items() if index]
    assert len(set(derived)) == len(derived)
    assert all(value is not None and 0 <= value <= MAX_SEED for value in derived)
    assert seeds[3, 2] == answer_params(SamplingParams(seed=3, n=3), 2).seed


def test_an_answer_that_cannot_be_ends_the_whole_request() -> None:
    made = gateway()
    (first,) = submits(ask(made, params=SamplingParams(n=3)))
    others = submits(made.receive("tokenizer", Tokenized(first.request, b"\0" * 4), 0.0))
    sends = made.receive("tokenizer", Refused(others[0].request, "invalid_request", "too long"), 0.0)
    assert [type(message) for _, message in sends] == [Cancel, Error]
    assert sends[0][1].requests == [first.request, others[1].request]
    assert not made.ledger.requests
    assert not made.ledger.answers
    assert made.ledger.open_bytes == 0


def test_abort_ends_each_answer_and_says_the_usage_once() -> None:
    made = gateway()
    (first,) = submits(ask(made, params=SamplingParams(n=2)))
    made.receive("tokenizer", Tokenized(first.request, b"\0" * 4), 0.0)
    sends = made.receive(ANN, ClientMessage(ANN, Abort(id="1")), 0.0) + made.wake(1.0)
    (deltas,) = [message for _, message in sends if isinstance(message, Deltas)]
    assert [(delta.index, delta.finish_reason) for delta in deltas.items] == [(0, "abort"), (1, "abort")]
    assert [delta.usage for delta in deltas.items] == [None, Usage(prompt_tokens=1, completion_tokens=0)]
    assert not made.ledger.answers


def refuse(made: Gateway, first: Submit) -> None:
    made.receive("tokenizer", Refused(first.request, "invalid_request", "too long"), 0.0)


def abort(made: Gateway, first: Submit) -> None:
    made.receive(ANN, ClientMessage(ANN, Abort(id="1")), 0.0)


def abort_before_it_is_refused(made: Gateway, first: Submit) -> None:
    abort(made, first)
    refuse(made, first)


def lose_the_client(made: Gateway, first: Submit) -> None:
    made.receive(ANN, ClientGone(ANN), 0.0)


def let_the_deadline_pass(made: Gateway, first: Submit) -> None:
    made.wake(1e6)


@pytest.mark.parametrize("end", [refuse, abort_before_it_is_refused])
@pytest.mark.parametrize("n", [1, 3])
def test_of_a_request_that_never_started_nothing_stays(
    end: Callable[[Gateway, Submit], None], n: int
) -> None:
    """No end would come that its numbers could wait for."""
    made = gateway()
    (first,) = submits(ask(made, params=SamplingParams(n=n)))
    end(made, first)
    assert not made.ledger.answers
    assert not made.ledger.cancelled


@pytest.mark.parametrize("end", [abort, lose_the_client, let_the_deadline_pass])
@pytest.mark.parametrize("n", [1, 3])
def test_of_answers_that_never_started_nothing_stays(end: Callable[[Gateway, Submit], None], n: int) -> None:
    """The first is on its way to the scheduler, which will tell its end; of the others it will never hear."""
    made = gateway()
    (first,) = submits(ask(made, params=SamplingParams(n=n)))
    end(made, first)
    assert not made.ledger.answers
    assert made.ledger.cancelled == {first.request}
    made.receive("detokenizer", end_of(first.request), 0.0)
    assert not made.ledger.cancelled


def test_the_numbers_of_answers_that_started_wait_for_their_ends() -> None:
    made = gateway()
    (first,) = submits(ask(made, params=SamplingParams(n=2)))
    (other,) = submits(made.receive("tokenizer", Tokenized(first.request, b"\0" * 4), 0.0))
    abort(made, first)
    assert made.ledger.cancelled == {first.request, other.request}
    for request in (first.request, other.request):
        made.receive("detokenizer", end_of(request), 0.0)
    assert not made.ledger.cancelled


def test_a_stranger_whose_end_comes_with_its_token_is_not_kept() -> None:
    made = gateway()
    news = end_of(99)
    news.requests, news.tokens, news.texts = array("q", [99]).tobytes(), array("i", [5]).tobytes(), ["x"]
    assert not made.receive("detokenizer", news, 0.0)
    assert not made.ledger.cancelled


def end_of(request: int) -> Texts:
    return Texts(0, finished=[Finished(request, "abort")], tails=[""])


def test_answers_that_a_lost_connection_had_go_on_each_from_its_own() -> None:
    made = gateway()
    (first,) = submits(
        ask(made, params=SamplingParams(n=3, seed=1), received=[5], received_of_others=[[6, 7]])
    )
    others = submits(made.receive("tokenizer", Tokenized(first.request, b"\0" * 4), 0.0))
    assert [ints(submit.delivered) for submit in [first, *others]] == [[5], [6, 7], []]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"params": SamplingParams(n=9)}, "n=9 answers; this service holds at most 8"),
        ({"params": SamplingParams(n=MAX_CHOICES + 1)}, f"at most {MAX_CHOICES}"),
        (
            {"received_of_others": [[1]]},
            "received_of_others has 1 lists; there are 0 answers after the first",
        ),
        (
            {"params": SamplingParams(n=2), "received_of_others": [[300]]},
            "received_of_others has token id 300",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, object], named: str) -> None:
    ((_, error),) = ask(gateway(), **fields)
    assert isinstance(error, Error)
    assert error.code == "invalid_request"
    assert named in error.message


def test_answers_count_as_requests_for_admission() -> None:
    made = gateway()
    ask(made, params=SamplingParams(n=6))
    ((_, error),) = ask(made, id="2", params=SamplingParams(n=3))
    assert (error.code, error.id) == ("overloaded", "2")
    assert submits(ask(made, id="3", params=SamplingParams(n=2)))


def test_a_client_that_does_not_read_gets_each_answer_merged_with_its_logprobs() -> None:
    made = gateway()
    (first,) = submits(ask(made, params=SamplingParams(n=2, logprobs=1)))
    (second,) = submits(made.receive("tokenizer", Tokenized(first.request, b"\0" * 4), 0.0))
    numbers = [first.request, second.request]
    opened = [Opened(number, b"", 0, [], 0, 1) for number in numbers]
    for step in range(3):
        texts = Texts(
            step,
            opened if step == 0 else [],
            array("q", numbers).tobytes(),
            array("i", [step, 10 + step]).tobytes(),
            ["a", "b"],
            [Finished(number, "length") for number in numbers] if step == 2 else [],
            ["", ""] if step == 2 else [],
            logprob_tokens=array("i", [step, 99, 10 + step, 99]).tobytes(),
            logprobs=array("f", [-1.0, -0.5, -2.0, -0.5]).tobytes(),
        )
        sends = made.receive("detokenizer", texts, step) + made.wake(step)
        for to, message in sends:
            if isinstance(message, Deltas):
                assert isinstance(to, bytes)
                made.receive(b"", ClientBlocked(to, message), step)
    (deltas,) = [message for _, message in made.wake(10.0) if isinstance(message, Deltas)]
    one, two = deltas.items
    assert (one.index, one.text, one.token_ids, one.usage) == (0, "aaa", [0, 1, 2], None)
    assert one.logprobs == [{str(token): -1.0, "99": -0.5} for token in range(3)]
    assert (two.index, two.text, two.token_ids) == (1, "bbb", [10, 11, 12])
    assert two.logprobs == [{str(token): -2.0, "99": -0.5} for token in (10, 11, 12)]
    assert two.usage == Usage(prompt_tokens=1, completion_tokens=6)


# --- the client ---------------------------------------------------------------------------------------


def ready() -> Session:
    session = Session("ipc:///x")
    session.inquire(0.0, Welcome)
    session.receive(encode(Welcome(protocol=[1, 0], server="s", model="m", limits=BOUNDS)), 0.0)
    session.outbox.clear()
    return session


def give(session: Session, *items: Delta) -> None:
    session.receive(encode(Deltas(items=list(items))), 1.0)


def resent(session: Session) -> list[Generate]:
    """What is sent after a restart of the gateway."""
    session.outbox.clear()
    session.receive(encode(Error(code="protocol", message="say hello first")), 1.0)
    session.receive(encode(Welcome(protocol=[1, 0], server="s", model="m", limits=BOUNDS)), 1.0)
    sent = [decode_from_client(frame) for frame in session.outbox]
    return [message for message in sent if isinstance(message, Generate)]


def test_a_stream_is_over_when_every_answer_is() -> None:
    session = ready()
    stream = session.ask(0.0, prompt="x", params=SamplingParams(n=2))
    give(session, Delta(id=stream.request.id, index=1, token_ids=[7], finish_reason="stop"))
    assert stream.unfinished == {0}
    usage = Usage(prompt_tokens=1, completion_tokens=2)
    give(session, Delta(id=stream.request.id, token_ids=[8], finish_reason="length", usage=usage))
    assert not stream.unfinished
    assert not session.streams


def test_the_last_delta_has_the_usage_even_if_an_answer_that_had_ended_is_made_again_and_ends_last() -> None:
    session = ready()
    stream = session.ask(0.0, prompt="x", params=SamplingParams(n=2))
    id = stream.request.id
    give(session, Delta(id=id, token_ids=[7], finish_reason="stop"))
    resent(session)
    give(session, Delta(id=id, index=1, token_ids=[8], finish_reason="length"))
    assert [delta.index for delta in stream.deltas] == [0]
    resent(session)
    give(session, Delta(id=id, index=1, finish_reason="length"))
    give(session, Delta(id=id, finish_reason="stop", usage=Usage(prompt_tokens=1, completion_tokens=2)))
    last = stream.deltas[-1]
    assert (last.index, last.token_ids, last.usage and last.usage.completion_tokens) == (1, [8], 2)
    assert len(stream.deltas) == 2
    assert not session.streams


def test_a_stream_is_sent_again_with_what_each_answer_has() -> None:
    session = ready()
    stream = session.ask(0.0, prompt="x", params=SamplingParams(n=3))
    id = stream.request.id
    assert resent(session)[0] == msgspec.structs.replace(stream.request, age_s=1.0)
    give(session, Delta(id=id, index=2, token_ids=[7, 8], finish_reason="stop"))
    (again,) = resent(session)
    assert (again.received, again.received_of_others) == ([], [[], [7, 8]])
    give(session, Delta(id=id, index=2, finish_reason="stop"), Delta(id=id, index=0, token_ids=[9]))
    assert stream.unfinished == {0, 1}
    assert [delta.index for delta in stream.deltas] == [2, 0], "the end of an answer is told once"


def test_a_conversation_is_sent_again_as_the_token_ids_that_it_was_rendered_to() -> None:
    """Its template may print the date, which is another one after midnight."""
    session = ready()
    stream = session.ask(0.0, messages=[{"role": "user", "content": "x"}], chat_template_kwargs={"a": 1})
    give(session, Delta(id=stream.request.id, token_ids=[7], prompt_token_ids=[1, 2, 3]))
    (again,) = resent(session)
    assert (again.prompt, again.messages, again.received) == ([1, 2, 3], None, [7])
    assert (again.tools, again.chat_template_kwargs) == (None, {})


def test_an_aborted_stream_ends_each_open_answer_when_the_gateway_is_new() -> None:
    session = ready()
    stream = session.ask(0.0, prompt="x", params=SamplingParams(n=3))
    give(session, Delta(id=stream.request.id, index=1, finish_reason="stop"))
    session.abort(stream.request.id)
    assert resent(session) == []
    assert [(delta.index, delta.finish_reason) for delta in stream.deltas] == [
        (1, "stop"),
        (0, "abort"),
        (2, "abort"),
    ]


def test_the_finished_result_has_every_answer_and_its_logprobs() -> None:
    collector = Collector("1", "x")
    collector.add(Delta(id="1", index=1, token_ids=[5], logprobs=[{"5": -1.0, "6": -0.5}]))
    collector.add(Delta(id="1", index=0, token_ids=[6], text="a", finish_reason="stop"))
    assert not collector.output().finished or len(collector.output().outputs) < 2
    last = Delta(
        id="1", index=1, token_ids=[6, 7], logprobs=[{"6": -0.5}, {"7": -2.0}], finish_reason="length"
    )
    collector.add(last)
    output = collector.output()
    assert output.finished
    assert [answer.index for answer in output.outputs] == [0, 1]
    assert (output.outputs[0].logprobs, output.outputs[0].cumulative_logprob) == (None, None)
    assert output.outputs[1].logprobs == [{5: -1.0, 6: -0.5}, {6: -0.5}, {7: -2.0}]
    assert output.outputs[1].cumulative_logprob == pytest.approx(-3.5)


def test_the_emulated_logprobs_are_a_distribution() -> None:
    _, values = known_logprobs(np.array([5]), 1 + MAX_LOGPROBS, VOCAB)
    assert math.isclose(values[0, 0], values[0, 1])
    assert np.exp(values[0, 1:]).sum() <= 1.0
