"""Requests that kill an actor: each is answered with an error that names it, and no other one is harmed."""

from __future__ import annotations

import random
from typing import Any

import pytest
from chaos import Chaos, chaos_load, everything_fails
from poison import ACTORS, Poison, Poisons
from quarantine_faults import QUARANTINE_FAULTS
from recovery_faults import Fault, planted
from simulation import VOCAB, idle
from slipstream.protocol.sampling import SamplingParams
from slipstream.runtime.simulator import RESTART_S

KINDS = [(actor, 0) for actor in ACTORS] + [
    ("scheduler", 5),
    ("detokenizer", 5),
    ("detokenizer", 20),
    ("gateway", 5),
    ("gateway", 20),
]

CLIENT, SEED = b"eve", 99


def poisonous(actor: str, after: int) -> SamplingParams:
    return SamplingParams(max_tokens=50, ignore_eos=True, seed=SEED + ACTORS.index(actor) + 10 * after)


def ask_poison(world: Chaos, actor: str, after: int) -> Poison:
    """Among others, a request that kills the actor."""
    params = poisonous(actor, after)
    assert params.seed is not None
    prompt = [random.Random(params.seed).randrange(VOCAB) for _ in range(20)]
    world.at(0.05, lambda: world.ask(CLIENT, f"{actor} {after}", prompt, params))
    return Poison(world, actor, params.seed, after)


def one_poison(seed: int, actor: str, after: int) -> None:
    """One request that kills an actor, among others."""
    world = Chaos(seed, depth=1 + seed % 3)
    world.connect(CLIENT)
    poison = ask_poison(world, actor, after)
    world.kills, world.poisonous = poison.kills, {(CLIENT, f"{actor} {after}")}
    chaos_load(world, 20, lambda world: None, others=1)
    assert world.ends[CLIENT, f"{actor} {after}"] == "quarantined", f"in the world with seed {seed}"
    # The texts of a step are of many requests: after its first death the gateway takes in one at a time.
    most = 3 if actor == "gateway" and after else 2
    assert poison.deaths == most, f"in the world with seed {seed}"


def asked_again(actor: str) -> None:
    """One request that kills an actor, asked for several times."""
    world = Chaos(1)
    world.connect(CLIENT)
    params = poisonous(actor, 0)
    assert params.seed is not None
    poison = Poison(world, actor, params.seed)
    world.kills, world.poisonous = poison.kills, {(CLIENT, str(number)) for number in range(5)}
    for number in range(5):
        world.ask(CLIENT, str(number), [1, 2, 3], params)
        world.run(world.over)
        world.run(lambda: idle(world))
    assert set(world.ends.values()) == {"quarantined"}
    assert poison.deaths == 2
    world.check_nothing_left()


def given_up_while_the_actor_is_down(seed: int, actor: str) -> None:
    """Two requests that kill an actor. The client of the one that is tried first aborts it before the actor is back
    from its second death: that makes nobody suspect, and the other one is still tried alone."""
    world = Chaos(seed, depth=1 + seed % 3)
    world.connect(CLIENT)
    older, newer = (ask_poison(world, actor, after) for after in (5, 0))
    world.poisonous = {(CLIENT, f"{actor} 5")}

    def kills(name: str, message: Any) -> bool:
        if newer.kills(name, message):
            if newer.deaths + older.deaths == 2:
                world.after(RESTART_S / 2, lambda: world.abort(CLIENT, f"{actor} 0"))
            return True
        return older.kills(name, message)

    world.kills = kills
    chaos_load(world, 10, lambda world: None, others=2)
    assert world.ends[CLIENT, f"{actor} 0"] == "answered", "its client is told of no death"
    assert world.ends[CLIENT, f"{actor} 5"] == "quarantined"
    assert newer.deaths + older.deaths == 3, f"in the world with seed {seed}"


def all_poisons(seed: int) -> None:
    """Requests that kill each of the actors, and in some worlds other failures too."""
    world = Chaos(seed, depth=1 + seed % 3)
    world.connect(CLIENT)
    poisons = Poisons([ask_poison(world, actor, after) for actor, after in KINDS])
    world.kills = poisons.kills
    world.poisonous = {(CLIENT, f"{actor} {after}") for actor, after in KINDS}
    chaos_load(world, 15, everything_fails if seed % 2 else lambda world: None, others=len(KINDS))


def no_culprit(seed: int, actor: str) -> None:
    """An actor ends by its own fault, though not by any request's."""
    world = Chaos(seed, depth=1 + seed % 3)

    def dies(world: Chaos) -> None:
        world.at(0.03 + world.rng.random() * 0.1, lambda: world.crash(actor, 0.001, own_fault=True))

    chaos_load(world, 25, dies)
    assert "quarantined" not in world.ends.values()


@pytest.mark.parametrize(("actor", "after"), KINDS)
def test_a_request_that_kills_an_actor_is_named_after_few_deaths_and_all_others_are_answered(
    actor: str, after: int, more: int
) -> None:
    for seed in range(4 * more):
        one_poison(seed, actor, after)


@pytest.mark.parametrize("actor", ["gateway", "tokenizer", "scheduler", "detokenizer"])
def test_what_was_given_up_kills_nobody_when_it_is_asked_for_again(actor: str) -> None:
    asked_again(actor)


@pytest.mark.parametrize("actor", ["scheduler", "detokenizer"])
def test_what_was_given_up_while_the_actor_was_down_is_suspect_no_more(actor: str, more: int) -> None:
    for seed in range(4 * more):
        given_up_while_the_actor_is_down(seed, actor)


def test_poisons_of_all_actors_at_once_and_other_failures_beside_them_leave_nothing_undone(more: int) -> None:
    for seed in range(10 * more):
        try:
            all_poisons(seed)
        except AssertionError as error:
            error.add_note(f"in the world with seed {seed}")
            raise


@pytest.mark.parametrize("fault", QUARANTINE_FAULTS, ids=[fault.id for fault in QUARANTINE_FAULTS])
def test_a_fault_planted_in_probation_is_caught(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*planted(fault))
    try:
        all_poisons(0)
        asked_again("tokenizer")
        for seed in (0, 1, 2, 4):  # in the last, requests come while the actor is down
            no_culprit(seed, "scheduler")
            no_culprit(seed, "detokenizer")
        for actor, after in (("tokenizer", 0), ("gateway", 5), ("detokenizer", 5)):
            one_poison(0, actor, after)
        given_up_while_the_actor_is_down(0, "scheduler")
        all_poisons(9)
    except Exception as error:
        print(f"caught: {type(error).__name__}: {error}"[:300])
        return
    pytest.fail(f"{fault.id} went unnoticed")


@pytest.mark.parametrize("actor", ["tokenizer", "scheduler", "detokenizer"])
def test_a_death_that_no_request_has_caused_makes_suspects_that_all_pass_and_are_answered(
    actor: str, more: int
) -> None:
    for seed in range(4 * more):
        no_culprit(seed, actor)
