"""A request that kills the executor is found among others, and nobody else suffers for it."""

from __future__ import annotations

import itertools
import os
import random
import signal
from array import array
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import Planted
from recovery_faults import EXECUTOR_DEATHS, QUARANTINE, Fault, planted
from slipstream.actors.scheduler.config import SchedulerConfig
from slipstream.actors.scheduler.scheduler import Scheduler
from slipstream.protocol.events import PeerUp
from slipstream.protocol.internal import Cancel, Capacity, Enqueue, Plan, Sampled, Tokens
from slipstream.protocol.sampling import SamplingParams

from slipstream import Client, Quarantined

LONG = 30
"""Tokens of each answer."""


class Mortal:
    """A scheduler, and an executor that dies of a poison token: in a prompt, or as one that it sampled.

    The token at each position of a sequence is a known function of its prompt's first token.
    """

    def __init__(
        self,
        *,
        depth: int = 2,
        slots: int = 64,
        budget: int = 256,
        deadly: Callable[[int, int], bool] = lambda first, position: False,
    ) -> None:
        self.scheduler = Scheduler(SchedulerConfig(slots, budget, 200, depth, (1,)))
        self.deadly = deadly
        self.plans: deque[Plan] = deque()
        self.tokens: dict[int, list[int]] = {}
        self.ends: dict[int, str] = {}
        self.deaths = 0
        self.epoch = 0
        self.widths: list[int] = []
        """How many sequences each step that ran had on the device."""
        self.speechless = False
        """The next executor dies before it says anything."""
        self.restart(crashed=False)

    def restart(self, *, crashed: bool) -> None:
        self.epoch += 1
        self.slots: dict[int, tuple[int, int, int, bool]] = {}
        """First token, tokens computed, tokens known, whether it decodes, by slot."""
        self.plans.clear()
        self.deliver(self.scheduler.receive("executor", PeerUp("executor", self.epoch), 1.0))
        if not self.speechless:
            self.deliver(self.scheduler.receive("executor", Capacity(2000, 8, crashed), 1.0))

    def deliver(self, sends: list[tuple[Any, Any]]) -> None:
        for _, message in sends:
            if isinstance(message, Plan):
                self.plans.append(message)
            elif isinstance(message, Tokens):
                for request, token in zip(
                    array("q", message.requests), array("i", message.tokens), strict=True
                ):
                    self.tokens.setdefault(request, []).append(token)
                for finished in message.finished:
                    assert finished.request not in self.ends, "a request ends once"
                    self.ends[finished.request] = finished.reason

    def ask(self, request: int, *, first: int | None = None, prompt: int = 5) -> None:
        ids = array("i", [100 + request if first is None else first] + [7] * (prompt - 1)).tobytes()
        params = SamplingParams(max_tokens=LONG, ignore_eos=True, seed=1)
        self.deliver(self.scheduler.receive("tokenizer", Enqueue(request, ids, params, b""), 1.0))

    def cancel(self, request: int) -> None:
        self.deliver(self.scheduler.receive("tokenizer", Cancel([request]), 1.0))

    def step(self) -> None:
        """The executor does what the oldest plan says; or dies of it."""
        plan = self.plans.popleft()
        for slot in array("i", plan.leaves):
            del self.slots[slot]
        for join in plan.joins:
            tokens = array("i", join.tokens)
            self.slots[join.slot] = (tokens[0], join.start, len(tokens), False)
        chunks = np.frombuffer(plan.chunks, np.int32).reshape(-1, 2)
        running: dict[int, int] = {int(slot): int(tokens) for slot, tokens in chunks}
        running |= {slot: 1 for slot, (*_, decodes) in self.slots.items() if decodes}
        self.widths.append(len(running))
        sampled: list[int] = []
        for slot in sorted(running):
            first, done, known, _ = self.slots[slot]
            if any(self.deadly(first, position) for position in range(done, done + running[slot])):
                self.deaths += 1
                self.restart(crashed=True)
                return
            done += running[slot]
            decodes = done == known
            if decodes:
                sampled.append(first * 1000 + known)
                known += 1
            self.slots[slot] = (first, done, known, decodes)
        told = Sampled(plan.step, array("i", sampled).tobytes(), 0, 1)
        self.deliver(self.scheduler.receive("executor", told, 1.0))

    def run(self) -> None:
        for _ in range(20_000):
            if not self.plans:
                return
            self.step()
        raise AssertionError("it does not end")

    def check(self, cleared: Iterable[int]) -> None:
        for request in cleared:
            assert self.ends.get(request) == "length", request
            assert len(self.tokens[request]) == LONG
            assert all(token // 1000 == 100 + request for token in self.tokens[request])
            positions = [token % 1000 for token in self.tokens[request]]
            assert positions == list(range(positions[0], positions[0] + LONG)), "none is lost or repeated"
        assert not self.scheduler.sequences
        assert not self.scheduler.holdings.quarantine.active
        assert len(self.scheduler.holdings.waiting) == 0


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("where", ["in the prompt", "at the 17th token of the answer"])
def test_a_poison_among_64_is_named_after_two_deaths_and_everyone_else_is_answered_in_full(
    depth: int, where: str
) -> None:
    position = 2 if where == "in the prompt" else 5 + 16
    world = Mortal(depth=depth, deadly=lambda first, at: first == 9 and at == position)
    for request in range(64):
        world.ask(request, first=9 if request == 20 else None)
    world.run()
    assert world.deaths == 2
    assert world.ends[20] == "quarantined"
    world.check([request for request in range(64) if request != 20])
    assert world.scheduler.counters["num_requests_quarantined"] == 1


def test_suspects_are_tried_one_at_a_time_and_then_all_run_together_again() -> None:
    world = Mortal(deadly=lambda first, at: first == 9 and at == 10)
    for request in range(16):
        world.ask(request, first=9 if request == 5 else None)
    while not world.deaths:
        world.step()
    assert max(world.widths) == 16
    world.widths.clear()
    while world.scheduler.holdings.quarantine.active:
        world.step()
    assert set(world.widths) == {1}
    world.run()
    assert max(world.widths) == 15


def one_death(depth: int) -> Mortal:
    """A world whose executor has died once, while 8 sequences were decoded, and will not again."""
    world = Mortal(depth=depth)
    world.deadly = lambda first, at: not world.deaths and at == 10
    for request in range(8):
        world.ask(request)
    while not world.deaths:
        world.step()
    world.widths.clear()
    return world


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_suspect_makes_way_with_the_step_that_clears_it(depth: int) -> None:
    """One step for its known tokens, and one for each further token that was planned when the executor died; nothing
    planned behind them holds up the next suspect. The last one goes on beside all others."""
    world = one_death(depth)
    quarantine = world.scheduler.holdings.quarantine
    assert len(quarantine.suspects) == 7, "and the first is on probation"
    while quarantine.suspects:
        world.step()
    assert world.widths == [1] * (7 * depth)
    world.run()
    world.check(range(8))


def names_the_poison() -> None:
    """Whatever token of a request kills its executor, two deaths are enough, and suspects run alone."""
    for depth, position in itertools.product((1, 2, 3), range(2, 20)):
        world = Mortal(depth=depth, deadly=lambda first, at, deadly=position: first == 9 and at == deadly)
        for request in range(6):
            world.ask(request, first=9 if request == 2 else None)
        while world.plans and not world.deaths:
            world.step()
        world.widths.clear()
        while world.plans and world.scheduler.holdings.quarantine.active and world.deaths <= 2:
            world.step()
        assert set(world.widths) == {1}
        assert world.deaths <= 2
        world.run()
        assert world.deaths == 2
        assert world.ends[2] == "quarantined"
        world.check([request for request in range(6) if request != 2])


PROBATION_FAULTS = [
    Fault(
        "a-suspect-makes-way-a-step-early",
        f"{EXECUTOR_DEATHS}.end_probation_ahead",
        ">= suspect.cleared_at",
        ">= suspect.cleared_at - 1",
    ),
    Fault(
        "a-suspect-is-cleared-while-its-last-step-runs",
        f"{EXECUTOR_DEATHS}.end_probation_ahead",
        "self.preempt_for_next_suspect(suspect)",
        "self.quarantine.take_passed(suspect.cleared_at); self.preempt_for_next_suspect(suspect)",
    ),
    Fault(
        "the-next-suspect-joins-while-a-step-runs",
        f"{QUARANTINE}.next_suspect",
        "self.on_probation is None and device_is_empty",
        "True",
    ),
    Fault(
        "a-suspect-that-made-way-is-forgotten",
        f"{EXECUTOR_DEATHS}.preempt_for_next_suspect",
        "suspect.preempted = True",
    ),
]


@pytest.mark.parametrize("fault", PROBATION_FAULTS, ids=[fault.id for fault in PROBATION_FAULTS])
def test_a_fault_in_the_order_of_suspects_is_caught(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    names_the_poison()
    monkeypatch.setattr(*planted(fault))
    with pytest.raises((AssertionError, RuntimeError, KeyError, ValueError)):
        names_the_poison()


def test_several_poisons_cost_one_death_each_and_one_more() -> None:
    world = Mortal(deadly=lambda first, at: first == 9 and at == 8)
    for request in range(32):
        world.ask(request, first=9 if request in (3, 4, 30) else None)
    world.run()
    assert world.deaths == 4
    assert {request for request, end in world.ends.items() if end == "quarantined"} == {3, 4, 30}
    world.check([request for request in range(32) if request not in (3, 4, 30)])


def test_a_fault_that_no_single_request_causes_condemns_nobody() -> None:
    dying = {7, 90}
    world = Mortal()
    world.deadly = lambda first, at: len(world.widths) in dying and world.widths[-1] > 1
    for request in range(24):
        world.ask(request)
    world.run()
    assert world.deaths >= 1
    world.check(range(24))


def test_a_death_from_outside_makes_nobody_suspect_however_often() -> None:
    world = Mortal()
    for request in range(32):
        world.ask(request)
    for _ in range(10):
        for _ in range(2):
            world.step()
        world.restart(crashed=False)
        assert not world.scheduler.holdings.quarantine.active
    world.run()
    world.check(range(32))


def test_a_death_from_outside_during_probation_counts_for_nothing() -> None:
    world = Mortal(deadly=lambda first, at: first == 9 and at == 10)
    for request in range(8):
        world.ask(request, first=9 if request == 7 else None)
    while not world.deaths:
        world.step()
    for _ in range(5):
        world.step()
        world.restart(crashed=False)
    world.run()
    assert world.deaths == 2
    assert world.ends[7] == "quarantined"
    world.check(range(7))


@pytest.mark.parametrize("last_crashed", [False, True])
def test_suspects_are_not_cleared_by_the_death_of_an_executor_that_said_nothing(last_crashed: bool) -> None:
    """The one after the crash is killed before it told of the crash: nobody tells any more, so all are tried alone."""
    world = Mortal(deadly=lambda first, at: first == 9 and at == 10)
    for request in range(8):
        world.ask(request, first=9 if request == 3 else None)
    world.speechless = True
    while not world.deaths:
        world.step()
    world.speechless = False
    world.restart(crashed=last_crashed)
    world.widths.clear()
    while world.scheduler.holdings.quarantine.active:
        world.step()
    assert set(world.widths) == {1}
    world.run()
    assert world.ends[3] == "quarantined"
    world.check([request for request in range(8) if request != 3])


def test_two_kills_in_a_row_from_outside_name_nobody() -> None:
    world = Mortal()
    for request in range(8):
        world.ask(request)
    for _ in range(10):
        for _ in range(2):
            world.step()
        world.speechless = True
        world.restart(crashed=False)
        world.speechless = False
        world.restart(crashed=False)
    world.run()
    world.check(range(8))


def test_who_comes_while_suspects_are_tried_waits_and_is_answered() -> None:
    world = Mortal(deadly=lambda first, at: first == 9 and at == 10)
    for request in range(8):
        world.ask(request, first=9 if request == 2 else None)
    while not world.deaths:
        world.step()
    for request in range(8, 12):
        world.ask(request)
    world.run()
    world.check([request for request in range(12) if request != 2])


@pytest.mark.parametrize("seed", range(40))
def test_any_mixture_of_poisons_cancellations_and_kills_leaves_nobody_without_an_end(seed: int) -> None:
    rng = random.Random(seed)
    poisons = set(rng.sample(range(40), rng.randrange(4)))
    at_position = rng.randrange(3, 30)
    world = Mortal(
        depth=rng.randrange(1, 4),
        slots=rng.choice([4, 16, 64]),
        budget=rng.choice([64, 256]),
        deadly=lambda first, at: first == 9 and at == at_position,
    )
    waiting = list(range(40))
    gone: set[int] = set()
    for _ in range(5000):
        if waiting and rng.random() < 0.3:
            request = waiting.pop(0)
            world.ask(request, first=9 if request in poisons else None, prompt=rng.randrange(3, 30))
        if rng.random() < 0.02:
            request = rng.randrange(40)
            gone.add(request)
            world.cancel(request)
        if rng.random() < 0.01:
            world.restart(crashed=False)
        if world.plans:
            world.step()
        elif not waiting:
            break
    assert not world.scheduler.sequences
    for request in range(40):
        allowed = {"length"} if request not in poisons else {"quarantined"}
        assert world.ends[request] in allowed | ({"abort"} if request in gone else set()), request


# --- real processes -----------------------------------------------------------------------------


def test_a_service_names_the_request_that_kills_its_executor_and_goes_on_with_the_others() -> None:
    from concurrent.futures import ThreadPoolExecutor

    from slipstream import SamplingParams

    params = SamplingParams(max_tokens=60, ignore_eos=True, seed=3)

    def ask(endpoint: str, prompt: str | list[int]) -> list[int] | Exception:
        with Client(endpoint) as client:
            try:
                return client.generate(prompt, params).outputs[0].token_ids
            except Quarantined as error:
                return error

    with Planted({"executor": "planted:poisoned_executor"}) as service:
        endpoint = service.ready["endpoint"]
        expected = ask(endpoint, "Once upon a time")
        prompts: list[str | list[int]] = ["Once upon a time"] * 15
        prompts.insert(7, [5, 666, 5])
        with ThreadPoolExecutor(16) as threads:
            results = list(threads.map(lambda prompt: ask(endpoint, prompt), prompts))
        poisoned = results.pop(7)
        assert isinstance(poisoned, Quarantined)
        assert "died" in str(poisoned)
        assert results == [expected] * 15
        with Client(endpoint) as client:
            assert client.stats()["num_requests_quarantined"] == 1.0
            executor = next(state for state in client.actors().actors if state.name == "executor")
            assert executor.restarts == 2
        code, log = service.stop()
    assert code == 0
    assert log.count("SIGSEGV") == 2


def test_the_fault_of_an_executor_that_never_was_ready_is_no_requests(tmp_path: Path) -> None:
    marker = tmp_path / "die"
    with (
        Planted({"executor": "planted:unready_executor"}, PLANTED_MARKER=str(marker)) as service,
        service.client() as client,
    ):
        stream = client.stream("Once upon a time", SamplingParams(max_tokens=200, ignore_eos=True, seed=3))
        next(stream)
        executor = next(state for state in client.actors().actors if state.name == "executor")
        marker.touch()
        os.kill(executor.pid, signal.SIGKILL)
        assert [delta.finish_reason for delta in stream][-1] == "length"
        executor = next(state for state in client.actors().actors if state.name == "executor")
        assert executor.restarts == 2
    assert marker.with_name("crashed").read_text() == "False"
