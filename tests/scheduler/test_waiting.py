"""Who is next, and who gives way: priorities, ageing, fairness between clients, and what requests share."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from checked_scheduler import FREE, VOCAB, CheckedScheduler, alone, pairs, prompt
from slipstream.actors.scheduler.planner import STEPS_BEFORE_PREEMPTION
from slipstream.actors.scheduler.sequence import Sequence
from slipstream.actors.scheduler.waiting import PRIORITY_S, PRIORITY_TOKENS, WaitingQueue, sort_key
from slipstream.protocol.internal import Cancel
from slipstream.protocol.sampling import SamplingParams


def sequence(request: int, client: int = 0, priority: int = 0, arrived: float = 0.0) -> Sequence:
    return Sequence(
        request=request,
        tokens=np.zeros(4, np.int32),
        prompt_len=4,
        max_length=8,
        params=SamplingParams(priority=priority, seed=0),
        stop_tokens=np.zeros(0, np.int32),
        eos=frozenset(),
        connection=client,
        sort_key=sort_key(arrived, priority),
    )


# --- the queue ----------------------------------------------------------------------------------


def served(queue: WaitingQueue, count: int, cost: int = 100) -> list[int]:
    """Take ``count`` in turn; each costs as much."""
    taken = []
    for _ in range(count):
        first = queue.pop()
        queue.charge(first, cost)
        taken.append(first.request)
    return taken


def test_the_requests_of_one_client_begin_in_the_order_in_which_they_came() -> None:
    queue = WaitingQueue()
    for request in range(10):
        queue.push(sequence(request, arrived=request * 0.1))
    assert served(queue, 10) == list(range(10))
    assert queue.first() is None


def test_a_queue_whose_first_has_to_wait_does_not_grow_with_those_that_come_and_go() -> None:
    queue = WaitingQueue()
    first = sequence(0, client=1, priority=1)
    queue.push(first)
    longest = 0
    for client in range(2, 10_000):
        passing = sequence(client, client=client)
        queue.push(passing)
        assert queue.first() is first
        passing.finished = True
        queue.remove(passing)
        longest = max(longest, len(queue.order))
    assert longest < 32
    assert queue.pop() is first
    assert queue.first() is None


def test_a_request_that_is_sent_again_at_the_time_at_which_it_ended_has_its_place_in_the_queue() -> None:
    queue = WaitingQueue()
    ended, again = sequence(1, arrived=1.0), sequence(1, arrived=1.0)
    for one in (sequence(0), ended, sequence(2, arrived=2.0)):
        queue.push(one)
    ended.finished = True
    queue.remove(ended)
    queue.push(again)
    assert served(queue, 3) == [0, 1, 2]


def test_clients_take_turns_however_many_requests_one_of_them_has() -> None:
    queue = WaitingQueue()
    for request in range(100):
        queue.push(sequence(request, client=1))
    for request in range(100, 103):
        queue.push(sequence(request, client=2))
    taken = served(queue, 6)
    assert sorted(taken) == [0, 1, 2, 100, 101, 102]


def test_a_client_whose_requests_cost_more_has_fewer_of_them_begin() -> None:
    queue = WaitingQueue()
    for request in range(200):
        queue.push(sequence(request, client=request % 2))
    counts = Counter[int]()
    for _ in range(60):
        first = queue.pop()
        counts[first.connection] += 1
        queue.charge(first, 200 if first.connection else 100)
    assert counts == {0: 40, 1: 20}


def test_a_client_that_comes_anew_begins_where_the_others_are() -> None:
    """It has no credit of the time when it asked for nothing, and waits for no one's turns."""
    queue = WaitingQueue()
    for request in range(100):
        queue.push(sequence(request, client=1))
    served(queue, 50)
    for request in range(100, 200):
        queue.push(sequence(request, client=2))
    assert sum(request >= 100 for request in served(queue, 10)) == 5


def test_who_waits_is_not_overtaken_for_ever_by_clients_that_come_anew() -> None:
    queue = WaitingQueue()
    for request in range(20):
        queue.push(sequence(request, client=1))
    queue.push(sequence(20, client=2))
    queue.charge(queue.pop(), 2000)  # its turn is over for a while
    taken = []
    for newcomer in range(100, 300):
        queue.push(sequence(newcomer, client=newcomer))
        first = queue.first()
        assert first is not None
        taken += served(queue, 1)
        queue.stop_running(first)
    assert 20 in taken[:3]
    assert 1 in taken[:50]


def test_a_stream_that_lost_its_blocks_goes_on_before_newcomers_begin() -> None:
    queue = WaitingQueue()
    stream = sequence(0, client=1)
    queue.push(stream)
    queue.push(sequence(1, client=2))
    queue.charge(queue.pop(), PRIORITY_TOKENS)
    stream.resumes = True
    queue.push(stream)
    queue.push(sequence(2, client=1))
    assert served(queue, 3, cost=0) == [0, 1, 2]


def test_a_higher_priority_is_first_within_a_client_and_between_clients() -> None:
    queue = WaitingQueue()
    for request in range(5):
        queue.push(sequence(request, client=1))
    queue.push(sequence(5, client=1, priority=1, arrived=1.0))
    queue.push(sequence(6, client=2, priority=2, arrived=2.0))
    assert served(queue, 2) == [6, 5]


def test_a_level_of_priority_is_worth_seconds_of_waiting_so_that_nothing_starves() -> None:
    queue = WaitingQueue()
    queue.push(sequence(0, priority=-1, arrived=0.0))
    taken = []
    for request in range(1, 200):
        now = request * 0.1
        queue.push(sequence(request, arrived=now))
        taken += served(queue, 1)
    begun = taken.index(0)
    assert begun * 0.1 == pytest.approx(PRIORITY_S, abs=0.2)


def test_a_level_of_priority_is_worth_tokens_between_clients_so_that_nothing_starves() -> None:
    queue = WaitingQueue()
    for request in range(1, 500):
        queue.push(sequence(request, client=1))
    queue.push(sequence(0, client=2, priority=-1))
    taken = served(queue, 100)
    assert taken.index(0) * 100 == pytest.approx(PRIORITY_TOKENS, abs=200)


def test_the_queue_agrees_with_a_plain_one_whatever_comes_and_goes() -> None:
    """The plain one looks at everybody each time."""
    for seed in range(100):
        rng = random.Random(seed)
        queue = WaitingQueue()
        waiting: list[Sequence] = []
        running: list[Sequence] = []
        for request in range(200):
            kind = rng.random()
            if kind < 0.5:
                new = sequence(request, rng.randrange(4), rng.choice((0, 0, 1, -2)), request * 0.3)
                queue.push(new)
                waiting.append(new)
            elif kind < 0.65 and waiting:
                gone = waiting.pop(rng.randrange(len(waiting)))
                gone.finished = True
                queue.remove(gone)
            elif kind < 0.75 and running:
                queue.stop_running(running.pop(rng.randrange(len(running))))
            elif kind < 0.8 and running:
                back = running.pop(rng.randrange(len(running)))
                queue.push(back)
                queue.stop_running(back)
                waiting.append(back)
            elif waiting:
                first = queue.first()
                assert first is not None
                firsts = {s.connection: s for s in sorted(waiting, key=Sequence.order, reverse=True)}
                scores = {client: queue.clients[client].score_of(s) for client, s in firsts.items()}
                assert scores[first.connection] == min(scores.values())
                assert first is firsts[first.connection]
                assert queue.pop() is first
                queue.charge(first, rng.randrange(3000))
                waiting.remove(first)
                running.append(first)
            assert len(queue) == len(waiting)
            assert set(queue.clients) == {s.connection for s in waiting + running}


def test_requests_that_are_aborted_while_they_wait_leave_nothing_behind() -> None:
    queue = WaitingQueue()
    stays = sequence(0)
    queue.push(stays)
    for request in range(1, 10_000):
        gone = sequence(request)
        queue.push(gone)
        gone.finished = True
        queue.remove(gone)
    assert len(queue) == 1
    assert len(queue.clients[0].heap) < 100
    assert len(queue.order) < 100


# --- under load ---------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [8, 64], ids=["all of the budget decodes", "some is left"])
def test_one_client_with_ten_thousand_requests_delays_anothers_first_token_by_a_few_steps(
    budget: int,
) -> None:
    """Even if all slots are its own, and none of them ends soon."""
    checked = CheckedScheduler(slots=8, blocks=200, budget=budget)
    for request in range(10_000):
        checked.ask(request, prompt(request, 10), client=1, max_tokens=200, **FREE)
    for _ in range(20):
        checked.finish_step()
    checked.ask(10_000, prompt(1, 12), client=2, max_tokens=5, **FREE)
    steps = 0
    while not checked.tokens.get(10_000):
        checked.finish_step()
        steps += 1
    assert steps <= STEPS_BEFORE_PREEMPTION + 2 * checked.depth + 2 + 12 // (
        budget - 7
    )  # its prompt has 12 tokens
    while 10_000 not in checked.ends:
        checked.finish_step()
    assert checked.scheduler.counters["num_preemptions_for_fairness"] == 1
    for _ in range(200 * 3):  # who gave way goes on where it was
        checked.finish_step()
    assert all(checked.tokens[r] == alone(prompt(r, 10), r, 200, set(), VOCAB) for r in range(8))


def test_clients_have_equal_shares_of_what_is_computed_while_all_of_them_wait() -> None:
    checked = CheckedScheduler(slots=6, blocks=200, budget=64)
    for request in range(900):
        client = request % 3 if request < 300 else 0
        checked.ask(request, prompt(request, 5), client=client, max_tokens=10 + 20 * client, **FREE)
    had = Counter[int]()
    while (
        checked.scheduler.holdings.waiting.clients[1].waiting
        and checked.scheduler.holdings.waiting.clients[2].waiting
    ):
        checked.finish_step()
    for request, tokens in checked.tokens.items():
        had[request % 3 if request < 300 else 0] += len(prompt(request, 5)) + len(tokens)
    assert min(had.values()) > 0.9 * max(had.values()), had


@pytest.mark.parametrize(("step_ms", "token_us", "gap_ms"), [(16, 60, 32), (5, 22.5, 22)])
def test_when_a_prompt_of_4000_tokens_comes_the_gaps_of_running_streams_at_most_double_or_are_not_felt(
    step_ms: int, token_us: float, gap_ms: float
) -> None:
    """On a device that needs ``step_ms`` to read its weights, and ``token_us`` for a token of a prompt."""
    checked = CheckedScheduler(
        length=5000,
        blocks=2000,
        budget=2048,
        slots=8,
        step_ns=lambda prefill: int(step_ms * 1_000_000 + token_us * 1000 * prefill),
    )
    checked.ask(0, prompt(0, 700), max_tokens=2, **FREE)
    checked.finish_all()  # it is known what a prompt costs
    for request in range(1, 5):
        checked.ask(request, prompt(request, 10), max_tokens=1000, **FREE)
    for _ in range(50):
        checked.finish_step()
    before = len(checked.times)
    checked.ask(5, prompt(5, 4000), max_tokens=1, **FREE)
    while 5 not in checked.ends:
        had = [len(checked.tokens[request]) for request in range(1, 5)]
        checked.finish_step()
        assert [len(checked.tokens[request]) for request in range(1, 5)] == [count + 1 for count in had]
    assert max(checked.times[before:]) <= gap_ms * 1_000_000
    assert len(checked.times) - before < 30  # nor does the prompt wait longer than that costs


def test_a_client_with_one_slot_takes_none_from_another_with_one() -> None:
    checked = CheckedScheduler(slots=3, blocks=200)
    for request in range(9):
        checked.ask(request, prompt(request, 5), client=request % 3, max_tokens=60, **FREE)
    checked.ask(9, prompt(9, 5), client=9, max_tokens=5, **FREE)
    checked.finish_all()
    assert checked.scheduler.counters["num_preemptions"] == 0


def test_nobody_of_a_higher_priority_gives_way_for_fairness() -> None:
    checked = CheckedScheduler(slots=2, blocks=200)
    for request in range(4):
        checked.ask(request, prompt(request, 5), client=1, priority=1, max_tokens=60, **FREE)
    checked.ask(4, prompt(4, 5), client=2, max_tokens=5, **FREE)
    checked.finish_all()
    assert checked.scheduler.counters["num_preemptions"] == 0


def test_of_those_that_run_the_newest_of_the_lowest_priority_gives_way_when_the_cache_is_full() -> None:
    checked = CheckedScheduler(blocks=13, size=8, slots=3, length=96)
    for request, priority in ((0, 0), (1, 0), (2, 5)):
        checked.ask(request, prompt(request, 10), priority=priority, max_tokens=40, **FREE)
    checked.finish_all()
    assert checked.scheduler.counters["num_preemptions"] > 0
    assert list(checked.ends)[-1] == 1
    for request in range(3):
        assert checked.tokens[request] == alone(prompt(request, 10), request, 40, set(), VOCAB)


def test_a_request_is_aborted_while_it_waits_again_after_a_preemption_and_while_its_last_step_runs() -> None:
    for steps in range(12):
        checked = CheckedScheduler(slots=2, blocks=40)
        for request in range(2):
            checked.ask(request, prompt(request, 10), max_tokens=50, **FREE)
        for _ in range(4):
            checked.finish_step()
        holdings = checked.scheduler.holdings
        holdings.preempt(checked.scheduler.sequences[1])
        checked.ask(5, prompt(5, 10), client=7, max_tokens=3, **FREE)
        for _ in range(steps):
            checked.finish_step()
        for _ in range(2):
            checked.give(Cancel([1]))
        checked.finish_all()
        assert checked.ends[1].reason == "abort"
        assert checked.tokens[0] == alone(prompt(0, 10), 0, 50, set(), VOCAB)
        checked.nothing_left()


# --- what requests share ------------------------------------------------------------------------


def joins(checked: CheckedScheduler) -> list[tuple[int, int]]:
    """Slot and first position of each sequence that joined."""
    return [(join.slot, join.start) for plan in checked.plans for join in plan.joins]


@pytest.mark.parametrize("length", [5, 16, 17, 18, 40, 64])
def test_n_answers_share_their_prompts_blocks_and_copy_the_one_that_they_write_on(length: int) -> None:
    checked = CheckedScheduler(size=16, slots=4)
    shared = prompt(1, length)
    checked.ask(0, shared, max_tokens=30, **FREE)
    checked.finish_step()
    for request in (1, 2, 3):
        checked.ask(request, shared, max_tokens=30, **FREE)
    checked.finish_step()
    assert [start for _, start in joins(checked)] == [0, *[length - 1] * 3]
    counters = checked.scheduler.counters
    assert counters["prefill_tokens"] == length + 3
    copied = (length - 1) % 16 > 0  # else there is nothing before the last token in its block
    assert counters["num_block_copies"] == (3 if copied else 0)
    holdings = checked.scheduler.holdings
    assert holdings.blocks is not None
    full = (length - 1) // 16
    heads = {tuple(holdings.holder(slot).block_list.blocks[:full]) for slot, _ in joins(checked)}
    tails = {holdings.holder(slot).block_list.blocks[full] for slot, _ in joins(checked)}
    assert len(heads) == 1
    assert len(tails) == 4
    checked.finish_all()
    for request in range(4):
        assert checked.tokens[request] == alone(shared, request, 30, set(), VOCAB)
    checked.nothing_left()


def test_answers_that_join_in_the_same_step_share_the_full_blocks_that_it_computes() -> None:
    checked = CheckedScheduler(size=16, slots=4, depth=1, budget=128)
    checked.ask(9, prompt(9, 4), max_tokens=3, **FREE)  # the others come while its step runs
    for request in range(3):
        checked.ask(request, prompt(1, 40), max_tokens=30, **FREE)
    checked.finish_step()
    assert [start for _, start in joins(checked)[1:]] == [0, 32, 32]
    assert len({plan.step for plan in checked.plans if plan.joins}) == 2
    checked.finish_all()
    for request in range(3):
        assert checked.tokens[request] == alone(prompt(1, 40), request, 30, set(), VOCAB)


def test_requests_of_different_salts_share_nothing() -> None:
    checked = CheckedScheduler(size=16, slots=4)
    for request, salt in enumerate(["", "ann", "ben", "ann"]):
        checked.ask(request, prompt(1, 64), cache_salt=salt, max_tokens=3, **FREE)
        checked.finish_all()
    assert [start for _, start in joins(checked)] == [0, 0, 0, 63]


def test_a_prompt_whose_answer_has_filled_its_block_is_found_by_the_next_request() -> None:
    """What an answer leaves behind was written by its last step, not by the next one."""
    checked = CheckedScheduler(size=16, slots=4)
    for request in range(3):
        checked.ask(request, prompt(1, 6), max_tokens=24, **FREE)
        checked.finish_all()
        assert checked.tokens[request] == alone(prompt(1, 6), request, 24, set(), VOCAB)
    assert [start for _, start in joins(checked)] == [0, 5, 5]


def test_a_copy_that_does_not_fit_is_computed_instead() -> None:
    """The source cannot be held beside it in a cache that the request needs as a whole."""
    checked = CheckedScheduler(blocks=5, size=16, slots=2)
    for request in range(2):
        checked.ask(request, prompt(1, 60), max_tokens=4, **FREE)
        checked.finish_all()
    assert [start for _, start in joins(checked)] == [0, 48]
    assert checked.tokens[1] == alone(prompt(1, 60), 1, 4, set(), VOCAB)


def test_a_full_cache_never_stands_still() -> None:
    """Every request needs nearly all of it, and all of them come at once."""
    checked = CheckedScheduler(blocks=9, size=8, slots=6, length=64)
    for request in range(12):
        checked.ask(request, prompt(request % 3, 30), client=request % 4, max_tokens=34, **FREE)
    checked.finish_all()
    assert len(checked.ends) == 12
    for request in range(12):
        assert checked.tokens[request] == alone(prompt(request % 3, 30), request, 34, set(), VOCAB)
    assert pairs(checked.plans[0].chunks)
