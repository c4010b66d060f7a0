"""Adapters come and go in the whole service, whatever dies meanwhile."""

from __future__ import annotations

import random

import pytest
from simulation import ADAPTERS, THIRD, VOCAB, World, idle
from slipstream.protocol.messages import Adapters, GetAdapters, LoadAdapter, UnloadAdapter
from slipstream.protocol.sampling import SamplingParams

CLIENT = b"ann"


class Changing(World):
    """A world with one client that loads and unloads adapters, and looks at each answer."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, blocks=200, budget=100)
        self.told: list[Adapters] = []
        self.connect(CLIENT)

    def receive(self, client: bytes, message: object) -> None:
        if isinstance(message, Adapters):
            self.told.append(message)
        super().receive(client, message)

    def do(self, message: GetAdapters | LoadAdapter | UnloadAdapter) -> Adapters:
        """The answer to a question."""
        before = len(self.told)
        self.say(CLIENT, message)
        self.run(lambda: len(self.told) > before)
        return self.told[-1]

    def ask_some(self, first: int, names: list[str]) -> None:
        for number in range(first, first + 12):
            prompt = [self.rng.randrange(VOCAB) for _ in range(self.rng.randrange(1, 60))]
            params = SamplingParams(max_tokens=30, seed=number, adapter=self.rng.choice(names))
            self.ask(CLIENT, str(number), prompt, params)


def names_of(answer: Adapters) -> list[str]:
    assert not answer.error
    return sorted(adapter.name for adapter in answer.adapters)


LOAD, UNLOAD = LoadAdapter(name="third", path="/third"), UnloadAdapter(name="third")


@pytest.mark.parametrize("seed", range(20))
def test_whatever_dies_an_adapter_is_there_until_it_is_unloaded(seed: int) -> None:
    world = Changing(seed)
    rng = random.Random(seed)
    assert names_of(world.do(GetAdapters())) == ["sql", "verse"]
    for _ in range(6):
        victim = rng.choice(["executor", "executor", "scheduler", "tokenizer", "detokenizer"])
        at, pause = world.now + 0.1 * rng.random(), 0.02 * rng.random()
        world.at(at, lambda name=victim, pause=pause: world.crash(name, pause))
    assert names_of(world.do(LOAD)) == ["sql", "third", "verse"]
    world.ask_some(0, ["", "sql", "verse", "third"])
    assert names_of(world.do(UNLOAD)) == ["sql", "verse"]
    assert THIRD.id not in world.kept_adapters
    world.run(world.over)
    world.run(lambda: not world.events or idle(world))
    world.check()
    world.check_nothing_left()


def test_one_that_is_unloaded_can_be_named_no_more_and_its_answers_are_finished() -> None:
    world = Changing(1)
    assert names_of(world.do(LOAD)) == ["sql", "third", "verse"]
    world.ask(CLIENT, "before", [1, 2, 3], SamplingParams(max_tokens=40, seed=1, adapter="third"))
    world.run(lambda: bool(world.tokens[CLIENT, "before"]))
    world.say(CLIENT, UNLOAD)
    world.at(
        world.now + 0.005, lambda: world.ask(CLIENT, "after", [1], SamplingParams(seed=2, adapter="third"))
    )
    world.run(lambda: (CLIENT, "after") in world.ends)
    assert world.errors[CLIENT, "after"].code == "model_not_found"
    assert len(world.told) == 1, "it is still computed with"
    world.run(lambda: len(world.told) == 2)
    assert world.ends[CLIENT, "before"] in ("length", "stop")
    del world.requests[CLIENT, "after"]
    world.check()


def test_what_cannot_be_done_is_said_and_changes_nothing() -> None:
    world = Changing(1)
    there = ["sql", "verse"]
    assert world.do(UNLOAD).code == "model_not_found"
    assert "cannot be loaded" in world.do(LoadAdapter(name="bad", path="/bad")).error
    assert "is the adapter at '/sql'; unload it" in world.do(LoadAdapter(name="sql", path="/other")).error
    assert names_of(world.do(LoadAdapter(name="sql", path="/sql"))) == there
    assert "no absolute path" in world.do(LoadAdapter(name="x", path="x")).error
    assert "is that of the model itself" in world.do(LoadAdapter(name="emulated", path="/x")).error
    assert "0 characters" in world.do(LoadAdapter(name="", path="/x")).error
    assert names_of(world.do(LOAD)) == ["sql", "third", "verse"]
    assert "all 3 adapter slots" in world.do(LoadAdapter(name="fourth", path="/fourth")).error
    assert names_of(world.do(UNLOAD)) == there
    assert [adapter.name for adapter in world.kept_adapters.values()] == [one.name for one in ADAPTERS]


def test_a_service_that_was_not_started_for_it_changes_nothing() -> None:
    world = Changing(1)
    gateway = world.actors["gateway"]
    gateway.changes.allowed = False  # type: ignore[attr-defined]
    assert "--enable-lora-updates" in world.do(LOAD).error
    assert names_of(world.do(GetAdapters())) == ["sql", "verse"]


def test_a_load_in_which_the_executor_crashed_is_not_tried_again() -> None:
    world = Changing(1)
    world.do(GetAdapters())
    world.say(CLIENT, LOAD)
    executor = world.actors["executor"]
    world.run(lambda: bool(executor.adapter_loader.waiting))  # type: ignore[attr-defined]
    world.crash("executor", 0.01, own_fault=True)
    world.run(lambda: len(world.told) == 2)
    assert "the executor ended while it read '/third'" in world.told[-1].error
    assert names_of(world.do(GetAdapters())) == ["sql", "verse"]
    assert names_of(world.do(LOAD)) == ["sql", "third", "verse"]
