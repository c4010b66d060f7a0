"""The executor and its spares under random deaths in virtual time, and faults in what decides of them."""

from __future__ import annotations

import pytest
from chaos import chaos_load, crash, everything_fails
from recovery_faults import Fault, planted
from spare_faults import FAULTS
from spared import SparedChaos, live

SEEDS = 400


def test_whatever_dies_an_executor_comes_and_a_spare_beside_it(more: int) -> None:
    sources = sum((live(seed).sources for seed in range(SEEDS * more)), start=live(0).sources)
    assert sources["spare"] > SEEDS
    assert sources["nothing"] > SEEDS


def test_with_a_spare_that_fails_as_well_no_token_is_lost_repeated_or_changed(more: int) -> None:
    sources = live(0).sources
    sources.clear()
    for seed in range(30 * more):
        world = SparedChaos(seed, depth=1 + seed % 3)
        for _ in range(2):  # two deaths within a second
            world.at(0.05 + world.rng.random() * 0.2, lambda world=world: crash(world, "executor"))
        chaos_load(world, 12, everything_fails)
        assert world.life is not None
        sources += world.life.sources
    assert min(sources["spare"], sources["nothing"]) > 10


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.id for fault in FAULTS])
def test_a_planted_fault_is_caught(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*planted(fault))
    for seed in range(SEEDS):
        try:
            live(seed)
        except Exception as error:
            print(f"caught in the life with seed {seed}: {type(error).__name__}: {error}"[:300])
            return
    pytest.fail(f"{fault.id} went unnoticed in {SEEDS} lives")


def test_each_fault_is_another() -> None:
    assert len({(fault.where, fault.old, fault.new) for fault in FAULTS}) == len(FAULTS) >= 10
