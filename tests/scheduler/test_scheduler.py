"""The scheduler as it is: a pure actor, in front of a device that checks what it is asked to do."""

from __future__ import annotations

import random

import pytest
from checked_scheduler import EOS, FREE, VOCAB, CheckedScheduler, alone, int32, pairs, prompt
from slipstream.actors.scheduler.config import SchedulerConfig
from slipstream.actors.scheduler.scheduler import Scheduler
from slipstream.protocol.codec import encode
from slipstream.protocol.events import PeerUp
from slipstream.protocol.internal import Cancel, Capacity, Enqueue, Finished, Matched, Sampled
from slipstream.protocol.sampling import Grammar, SamplingParams

# --- the step protocol --------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 3, 8])
def test_as_many_plans_as_the_pipeline_is_deep_are_outstanding_and_never_more(depth: int) -> None:
    checked = CheckedScheduler(depth=depth)
    checked.ask(1, prompt(1, 10), max_tokens=50, **FREE)
    assert len(checked.outstanding) == depth  # no result has come, and more is planned than one step
    for _ in range(20):
        checked.finish_step()
        assert len(checked.outstanding) == depth
    checked.finish_all()
    assert checked.ends[1].reason == "length"


def test_what_the_executor_timed_tells_the_budget_of_the_first_prompts() -> None:
    checked = CheckedScheduler()
    checked.give(Capacity(65, 16, step_times=[(16, 5_000_000), (2016, 51_000_000)]))
    limit = checked.scheduler.planner.prefill_budget.limit(2048, 1, 1)
    assert limit == int((22_000_000 - 5_000_000) / (46_000_000 / 2016))


def test_a_step_has_at_most_the_tokens_that_the_executor_says_where_no_option_does() -> None:
    scheduler = Scheduler(SchedulerConfig(4, None, 256, 1, (EOS,)))
    with pytest.raises(RuntimeError, match="how many tokens a step may have"):
        scheduler.receive("executor", Capacity(65, 16), 1.0)
    scheduler.receive("executor", Capacity(65, 16, max_num_batched_tokens=32), 1.0)
    params = SamplingParams(seed=1, max_tokens=5)
    sent = scheduler.receive("tokenizer", Enqueue(1, int32(prompt(1, 100)), params, b""), 1.0)
    (plan,) = [message for to, message in sent if to == "executor"]
    assert pairs(plan.chunks) == [(0, 32)]


def test_prompts_that_wait_for_blocks_make_no_step_longer() -> None:
    """They could not run in it, however long it was."""
    checked = CheckedScheduler(depth=1, slots=8, blocks=1 + 16)
    counted: list[int] = []

    def limit(budget: int, prompts: int, streams: int) -> int:
        counted.append(prompts)
        return min(budget, 16)

    checked.scheduler.planner.prefill_budget.limit = limit
    checked.ask(1, prompt(1, 100), max_tokens=50, **FREE)
    while not checked.tokens.get(1):
        checked.finish_step()
    for request in range(2, 7):
        checked.ask(request, prompt(request, 60), max_tokens=50, **FREE)
    checked.finish_step()
    assert counted[0] == 2  # nine blocks are free, and each takes four
    for _ in range(4):
        checked.finish_step()
    assert max(counted) == 2


def test_a_prompt_is_cut_where_a_step_has_a_size_that_nothing_is_padded_to() -> None:
    checked = CheckedScheduler(depth=1)
    checked.give(Capacity(129, 16, max_num_batched_tokens=64, step_sizes=[16, 24, 32, 48, 64]))
    checked.scheduler.planner.prefill_budget.limit = lambda budget, prompts, streams: min(budget, 40)
    checked.ask(1, prompt(1, 10), max_tokens=50, **FREE)
    checked.finish_step()
    checked.ask(2, prompt(2, 100), max_tokens=50, **FREE)
    checked.ask(3, prompt(3, 30), max_tokens=50, **FREE)
    chunks = []
    for _ in range(4):
        checked.finish_step()
        chunks.append([tokens for _, tokens in pairs(checked.outstanding[-1].chunks)])
    # Beside the row that decodes 40 tokens would be padded to 48; 38 are the end of a prompt, and are not cut.
    assert chunks == [[31], [31], [38, 2], [28]]


@pytest.mark.parametrize(("calls", "kind"), [("start: /c/", "calls"), ("", "regex")])
def test_the_grammar_of_calls_has_that_of_the_parameters_in_it(calls: str, kind: str) -> None:
    scheduler = Scheduler(SchedulerConfig(4, 64, 256, 1, (EOS,)))
    scheduler.receive("executor", Capacity(65, 16), 1.0)
    params = SamplingParams(seed=1, max_tokens=5, regex="a+")
    asked = Enqueue(1, int32(prompt(1, 10)), params, b"", before="before: /b/", calls=calls)
    sent = scheduler.receive("tokenizer", asked, 1.0)
    (plan,) = [message for to, message in sent if to == "executor"]
    (join,) = plan.joins
    assert join.grammar == Grammar(kind, calls or "a+", "before: /b/")


def test_steps_are_numbered_without_gaps() -> None:
    checked = CheckedScheduler(depth=3)
    for request in range(10):
        checked.ask(request, prompt(request, 20), max_tokens=1 + request, **FREE)
    checked.finish_all()
    assert [plan.step for plan in checked.plans] == list(range(len(checked.plans)))


def test_a_plan_is_the_same_whatever_tokens_the_device_samples() -> None:
    """So it cannot hold the value of a token that has not been sampled yet."""

    def plans(vocab: int) -> list[bytes]:
        checked = CheckedScheduler(depth=3, slots=3, vocab=vocab, caching=False)
        for request in range(6):
            checked.ask(request, prompt(request, 5 + 30 * request), max_tokens=20 + request, **FREE)
        checked.finish_all()
        assert len(checked.ends) == 6
        return [encode(plan) for plan in checked.plans]

    assert plans(VOCAB) == plans(vocab=777)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_an_end_by_length_wastes_no_row_and_no_step(depth: int) -> None:
    checked = CheckedScheduler(depth=depth)
    for request, most in enumerate([1, 2, 7, 30]):
        checked.ask(request, prompt(request, 10), max_tokens=most, **FREE)
    checked.finish_all()
    assert [len(checked.tokens[request]) for request in range(4)] == [1, 2, 7, 30]
    assert checked.scheduler.counters["wasted_rows"] == 0
    assert checked.scheduler.counters["scheduled_rows"] == 1 + 2 + 7 + 30
    assert len(checked.plans) == 30 + depth  # the first were made before the last request came
    checked.nothing_left()


def stop_after(prompt: list[int], seed: int, count: int) -> int:
    """The token that a request is answered as its ``count``-th, and not before."""
    answer = alone(prompt, seed, count, set(), VOCAB)
    assert answer.index(answer[-1]) == count - 1
    return answer[-1]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_ghost_token_after_a_stop_goes_no_further_and_is_counted(depth: int) -> None:
    """The steps that were launched before the stop token was known have a row of it: depth - 1 of them."""
    checked = CheckedScheduler(depth=depth)
    stop = stop_after(prompt(1, 10), 1, 5)
    checked.ask(1, prompt(1, 10), max_tokens=50, stop_token_ids=[stop], **FREE)
    checked.ask(2, prompt(2, 10), max_tokens=50, **FREE)
    checked.finish_all()
    assert checked.tokens[1] == alone(prompt(1, 10), 1, 5, {stop}, VOCAB)
    assert checked.ends[1] == Finished(1, "stop", stop)
    assert len(checked.tokens[2]) == 50
    assert checked.scheduler.counters["wasted_rows"] == depth - 1
    assert {type(value) for value in checked.scheduler.counters.values()} == {float}, "others cannot be sent"
    assert checked.scheduler.counters["generation_tokens"] == 55
    checked.nothing_left()


def test_the_models_own_end_token_ends_an_answer_without_being_named() -> None:
    checked = CheckedScheduler(vocab=7)
    checked.ask(1, prompt(1, 10), max_tokens=200)
    checked.finish_all()
    assert checked.tokens[1] == alone(prompt(1, 10), 1, 200, {EOS}, 7)
    assert checked.ends[1] == Finished(1, "stop", None)


def test_a_long_prompt_runs_in_chunks_beside_the_others_decoding_within_one_budget() -> None:
    checked = CheckedScheduler(budget=16, length=512)
    for request in (1, 2):
        checked.ask(request, prompt(request, 5), max_tokens=100, **FREE)
    checked.finish_step()
    checked.finish_step()
    checked.ask(3, prompt(3, 200), max_tokens=5, **FREE)
    before = len(checked.plans)
    while not checked.tokens.get(3):
        had = [len(checked.tokens[request]) for request in (1, 2)]
        checked.finish_step()
        assert [len(checked.tokens[request]) for request in (1, 2)] == [count + 1 for count in had]
    chunks = [[count for _, count in pairs(plan.chunks)] for plan in checked.plans[before:]]
    sizes = [count for of_plan in chunks for count in of_plan]
    assert sum(sizes) == 200
    assert sizes[:-1] == [16 - 2] * (len(sizes) - 1)
    checked.finish_all()
    assert checked.tokens[3] == alone(prompt(3, 200), 3, 5, set(), VOCAB)


def test_several_prompts_share_a_step_as_far_as_the_budget_goes() -> None:
    checked = CheckedScheduler(budget=50, depth=1, slots=8)
    checked.ask(0, prompt(0, 4), max_tokens=20, **FREE)
    for request in range(1, 5):
        checked.ask(request, prompt(request, 20), max_tokens=3, **FREE)
    checked.finish_step()
    counts = [count for _, count in pairs(checked.plans[-1].chunks)]
    assert counts == [20, 20, 9]  # and one for the request that decodes


@pytest.mark.parametrize("depth", [1, 2])
def test_a_steady_decode_plan_is_as_small_for_256_rows_as_for_2(depth: int) -> None:
    def sizes(rows: int) -> list[int]:
        checked = CheckedScheduler(slots=256, budget=4096, length=512, size=256, blocks=1000, depth=depth)
        for request in range(rows):
            checked.ask(request, prompt(request, 4), max_tokens=40, **FREE)
        checked.finish_all()
        assert len(checked.ends) == rows
        return [len(encode(plan)) for plan in checked.plans[10:36]]

    few, many = sizes(2), sizes(256)
    assert few == many
    assert max(many) < 20


# --- who runs, and who waits --------------------------------------------------------------------


def test_requests_begin_in_the_order_in_which_they_came() -> None:
    checked = CheckedScheduler(slots=2)
    for request in range(8):
        checked.ask(request, prompt(request, 10), max_tokens=3, **FREE)
    checked.finish_all()
    assert [opened.request for opened in checked.opened] == list(range(8))


def test_a_request_that_can_never_fit_is_refused_with_what_it_needs_and_what_there_is() -> None:
    checked = CheckedScheduler(blocks=5, size=16)
    checked.ask(1, prompt(1, 60), max_tokens=5)
    end = checked.ends[1]
    assert end.reason == "context_length_exceeded"
    for part in ("60 tokens", "max_tokens up to 5", "room for 65 tokens", "holds 64"):
        assert part in end.message
    checked.ask(2, prompt(2, 59), max_tokens=5, **FREE)
    checked.finish_all()
    assert len(checked.tokens[2]) == 5
    checked.nothing_left()


def test_requests_that_came_before_the_executor_are_refused_too_if_they_cannot_fit() -> None:
    scheduler = Scheduler(SchedulerConfig(4, 64, 256, 2, (EOS,)))
    scheduler.receive("tokenizer", Enqueue(1, int32(prompt(1, 100)), SamplingParams(seed=1), b""), 1.0)
    sent = scheduler.receive("executor", Capacity(3, 16), 2.0)
    (finished,) = [end for to, message in sent if to == "detokenizer" for end in message.finished]
    assert finished.reason == "context_length_exceeded"
    assert "holds 32" in finished.message


def test_when_the_cache_is_full_the_newest_gives_way_and_every_token_is_as_it_would_have_been() -> None:
    checked = CheckedScheduler(blocks=9, size=8, slots=4, length=64)
    for request in range(4):
        checked.ask(request, prompt(request, 10), max_tokens=40, **FREE)
    checked.finish_all()
    assert checked.scheduler.counters["num_preemptions"] > 0
    for request in range(4):
        assert checked.tokens[request] == alone(prompt(request, 10), request, 40, set(), VOCAB)
    assert list(checked.ends) == [0, 1, 2, 3]
    checked.nothing_left()


def test_cancelling_ends_a_request_wherever_it_stands_and_frees_what_it_held() -> None:
    checked = CheckedScheduler(slots=2, budget=16)
    checked.ask(1, prompt(1, 5), max_tokens=100, **FREE)  # decodes
    checked.ask(2, prompt(2, 100), max_tokens=100, **FREE)  # prefills
    checked.ask(3, prompt(3, 5), max_tokens=100, **FREE)  # waits
    checked.finish_step()
    checked.finish_step()
    checked.give(Cancel([1, 2, 3, 77]))
    assert {request: end.reason for request, end in checked.ends.items()} == dict.fromkeys((1, 2, 3), "abort")
    checked.finish_all()
    checked.nothing_left()
    assert checked.scheduler.gauges()["kv_cache_usage_perc"] == 0.0
    assert checked.news[-1].counters["num_requests_running"] == 0.0


def test_a_request_that_met_a_stop_text_ends_without_another_word_of_it() -> None:
    """The detokenizer, which found the text, has told the gateway."""
    checked = CheckedScheduler()
    checked.ask(1, prompt(1, 5), max_tokens=100, **FREE)
    checked.finish_step()
    checked.give(Matched([1], [0]))
    checked.finish_all()
    assert checked.ends == {}
    checked.nothing_left()


def test_a_stop_text_that_an_earlier_attempt_met_ends_no_later_one() -> None:
    """It is late news: what the later attempt has met will be told again, once all of it is."""
    checked = CheckedScheduler()
    params = SamplingParams(max_tokens=20, seed=1, ignore_eos=True)
    checked.ask(1, prompt(1, 5), max_tokens=20, **FREE)
    checked.finish_step()
    checked.give(Enqueue(1, int32(prompt(1, 5)), params, b"", 0, attempt=2))
    checked.give(Matched([1], [1]))
    checked.finish_step()
    checked.give(Matched([1], [2]))
    checked.finish_all()
    assert checked.ends == {}
    checked.nothing_left()
    checked.give(Enqueue(1, int32(prompt(1, 5)), params, b"", 0, attempt=4))
    checked.give(Matched([1], [3]))
    checked.finish_all()
    assert checked.ends[1].reason == "length"


def test_a_request_sent_again_continues_behind_what_was_delivered() -> None:
    answer = alone(prompt(1, 10), 1, 20, set(), VOCAB)
    checked = CheckedScheduler()
    params = SamplingParams(seed=1, max_tokens=20, ignore_eos=True)
    checked.give(Enqueue(1, int32(prompt(1, 10)), params, int32(answer[:12]), 0, 1))
    checked.finish_all()
    assert checked.tokens[1] == answer[12:]
    assert [(opened.delivered, opened.prompt_tokens, opened.attempt) for opened in checked.opened] == [
        (12, 10, 1)
    ]


def test_a_new_executor_is_given_everything_again_and_no_token_changes() -> None:
    checked = CheckedScheduler()
    for request in range(3):
        checked.ask(request, prompt(request, 30), max_tokens=20, **FREE)
    for _ in range(6):
        checked.finish_step()
    checked.outstanding.clear()
    checked.rows.clear()
    checked.cache.clear()
    checked.give(PeerUp("executor", 9))
    assert not checked.outstanding
    gauges = checked.scheduler.gauges()
    assert (gauges["num_requests_running"], gauges["num_requests_waiting"]) == (0, 3)
    checked.give(Capacity(65, 16))
    idle = checked.scheduler.counters["device_idle_s"]
    plan, long_after = checked.outstanding[0], 10**12
    checked.give(
        Sampled(plan.step, int32(checked.compute(checked.outstanding.popleft())), long_after, long_after + 1)
    )
    assert checked.scheduler.counters["device_idle_s"] == idle, "without an executor no device waits"
    checked.finish_all()
    for request in range(3):
        assert checked.tokens[request] == alone(prompt(request, 30), request, 20, set(), VOCAB)


def test_answers_that_stand_still_are_computed_again_in_full_steps_and_new_prompts_are_not() -> None:
    """On a device whose steps are so long that it is given the least of a prompt beside others."""
    checked = CheckedScheduler(
        slots=9, budget=64, length=512, blocks=129, step_ns=lambda prefill: 10**8 * (1 + prefill)
    )
    for request in range(8):
        checked.ask(request, prompt(request, 60), max_tokens=200, **FREE)
    while not all(checked.tokens.get(request) for request in range(8)):
        checked.finish_step()
    for _ in range(20):
        checked.finish_step()

    def tokens_of_prompts(since: int) -> list[int]:
        return [sum(count for _, count in pairs(plan.chunks)) for plan in checked.plans[since:]]

    checked.outstanding.clear()
    checked.rows.clear()
    checked.cache.clear()
    checked.give(PeerUp("executor", 9))
    before = len(checked.plans)
    had = {request: len(checked.tokens[request]) for request in range(8)}
    checked.give(Capacity(129, 16))
    while any(len(checked.tokens[request]) == had[request] for request in range(8)):
        checked.finish_step()
    again = [count for count in tokens_of_prompts(before) if count]
    assert all(count > 64 - 8 for count in again[:-1])
    checked.ask(8, prompt(8, 60), max_tokens=5, **FREE)
    before = len(checked.plans)
    while not checked.tokens.get(8):
        checked.finish_step()
    assert max(tokens_of_prompts(before)) <= 16


def test_while_an_answer_waits_for_blocks_other_prompts_have_no_full_steps() -> None:
    checked = CheckedScheduler(
        slots=3, budget=64, length=512, blocks=20, step_ns=lambda prefill: 10**8 * (1 + prefill)
    )
    for request in (0, 1):
        checked.ask(request, prompt(request, 16), max_tokens=100, **FREE)
    for _ in range(8):
        checked.finish_step()
    checked.ask(2, prompt(2, 240), max_tokens=2, priority=1, **FREE)
    before = len(checked.plans)
    while not checked.tokens.get(2):
        checked.finish_step()
    assert checked.scheduler.counters["num_preemptions"] == 1
    chunks = [[count for _, count in pairs(plan.chunks)] for plan in checked.plans[before:]]
    assert max(sum(of_plan) for of_plan in chunks) <= 16


def test_a_result_of_another_step_than_the_oldest_is_a_fault_that_names_both() -> None:
    checked = CheckedScheduler()
    checked.ask(1, prompt(1, 5), max_tokens=9, **FREE)
    with pytest.raises(RuntimeError, match="answered step 1; step 0 is the oldest"):
        checked.give(Sampled(1, int32([5]), 0, 1))


# --- the prefix cache ---------------------------------------------------------------------------


def test_a_prompt_that_begins_like_a_running_one_shares_its_blocks() -> None:
    checked = CheckedScheduler(size=16)
    shared = prompt(1, 64)
    checked.ask(1, shared + [5] * 6, max_tokens=30, **FREE)
    checked.finish_step()
    checked.ask(2, shared + [6] * 6, max_tokens=30, **FREE)
    checked.finish_step()
    first, second = (join for plan in checked.plans for join in plan.joins)
    assert (first.start, second.start) == (0, 64)
    mine: dict[int, list[int]] = {}
    for plan in checked.plans:
        for slot, block in pairs(plan.blocks):
            mine.setdefault(slot, []).append(block)
    assert mine[first.slot][:4] == mine[second.slot][:4]
    assert set(mine[first.slot][4:]).isdisjoint(mine[second.slot][4:])
    checked.finish_all()
    assert [opened.cached_tokens for opened in checked.opened] == [0, 64]
    assert checked.tokens[2] == alone(shared + [6] * 6, 2, 30, set(), VOCAB)
    assert checked.scheduler.counters["prefix_cache_hits"] == 64
    checked.nothing_left()


def test_an_equal_prompt_still_computes_its_last_token() -> None:
    checked = CheckedScheduler(size=16)
    checked.ask(1, prompt(1, 64), max_tokens=3, **FREE)
    checked.finish_all()
    checked.ask(2, prompt(1, 64), max_tokens=3, seed=1, **FREE)
    checked.finish_all()
    assert [opened.cached_tokens for opened in checked.opened] == [0, 63]
    assert checked.tokens[2] == checked.tokens[1]


def test_of_a_request_sent_again_no_more_is_told_as_cached_than_its_prompt_has() -> None:
    """What was delivered may be in the cache too, where the gateway that had asked for it has died."""
    answer = alone(prompt(1, 10), 1, 60, set(), VOCAB)
    checked = CheckedScheduler(size=16)
    checked.ask(1, prompt(1, 10), max_tokens=60, ignore_eos=True)
    checked.finish_all()
    params = SamplingParams(seed=1, max_tokens=60, ignore_eos=True)
    checked.give(Enqueue(2, int32(prompt(1, 10)), params, int32(answer[:40]), 0, 1))
    checked.finish_all()
    assert checked.tokens[2] == answer[40:]
    assert [(opened.cached_tokens, opened.prompt_tokens) for opened in checked.opened] == [(0, 10), (10, 10)]
    assert checked.scheduler.counters["prefix_cache_hits"] > 10


def test_without_prefix_caching_nothing_is_shared() -> None:
    checked = CheckedScheduler(caching=False)
    for request in (1, 2):
        checked.ask(request, prompt(1, 64), max_tokens=3, **FREE)
        checked.finish_all()
    assert [opened.cached_tokens for opened in checked.opened] == [0, 0]
    assert checked.scheduler.counters["prefix_cache_hits"] == 0


def test_a_request_that_found_its_beginning_but_no_room_frees_nothing_that_a_step_still_uses() -> None:
    """Block reuse has one rule: not before the last step that touched the block is over."""
    checked = CheckedScheduler(blocks=5, size=16)
    prefix = prompt(1, 40)
    checked.ask(1, prefix, max_tokens=1, **FREE)  # its only step, which is outstanding, uses three of four
    checked.ask(2, [*prefix[:32], *prompt(2, 28)], max_tokens=1, **FREE)  # finds two, lacks one
    assert len(checked.outstanding) == 1
    blocks = checked.scheduler.holdings.blocks
    assert blocks is not None
    assert blocks.available == 1
    checked.give(Cancel([2]))
    checked.ask(3, prompt(3, 40), max_tokens=1, **FREE)
    assert len(checked.outstanding) == 1
    checked.finish_all()
    assert checked.tokens[3] == alone(prompt(3, 40), 3, 1, set(), VOCAB)
    checked.nothing_left()


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_in_random_crowds_every_row_attends_to_its_own_past_and_to_nothing_else(depth: int) -> None:
    preempted = hits = wasted = 0.0
    for seed in range(25):
        rng = random.Random(seed)
        checked = CheckedScheduler(slots=5, budget=24, length=120, depth=depth, blocks=26, size=8, vocab=40)
        most: dict[int, int] = {}
        cancelled: set[int] = set()
        while len(most) < 25 or checked.outstanding:
            if len(most) < 25 and rng.random() < 0.5:
                request = len(most)
                asked = prompt(rng.randrange(3), rng.randrange(1, 70))
                most[request] = rng.randrange(1, 50)
                checked.ask(request, asked, max_tokens=most[request])
            elif most and rng.random() < 0.05:
                request = rng.choice(list(most))
                if request not in checked.ends:
                    cancelled.add(request)
                checked.give(Cancel([request]))
            elif checked.outstanding:
                checked.finish_step()
        for request, count in most.items():
            expected = alone(checked.prompts[request], request, count, {EOS}, 40)
            got = checked.tokens.get(request, [])
            if request in cancelled:
                assert got == expected[: len(got)]
            else:
                assert got == expected
        assert len(checked.ends) == 25
        checked.nothing_left()
        counters = checked.scheduler.counters
        preempted += counters["num_preemptions"]
        hits += counters["prefix_cache_hits"]
        wasted += counters["wasted_rows"]
    assert preempted > 0
    assert hits > 0
    assert wasted > 0
