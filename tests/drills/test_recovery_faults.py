"""The simulation proves itself: every fault planted in ledger, epochs and recovery is caught by some seed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from chaos import (
    Chaos,
    chaos_load,
    detokenizer_is_late,
    everything_fails,
    gateway_fails,
    scheduler_fails,
    starts_overlap,
)
from recovery_faults import FAULTS, Fault, planted

SEEDS = 200
"""Within how many worlds each fault must show."""


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.id for fault in FAULTS])
def test_a_planted_fault_is_caught(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fault.first < SEEDS
    monkeypatch.setattr(*planted(fault))
    for seed in (fault.first, *range(SEEDS)):
        world = Chaos(seed, depth=1 + seed % 3, blocks=40 if seed % 4 else 22)
        try:
            chaos_load(world, 16, fault.fails)
        except Exception as error:
            print(f"caught in the world with seed {seed}: {type(error).__name__}: {error}"[:300])
            return
    pytest.fail(f"{fault.id} went unnoticed in {SEEDS} worlds")


def test_the_page_on_reliability_counts_them_and_names_their_modules() -> None:
    page = (Path(__file__).parents[2] / "docs/reliability.md").read_text()
    assert f"{len(FAULTS)} in all" in page
    for fault in FAULTS:
        assert f"- `{fault.where.partition(':')[0]}`:" in page, fault.id


def test_there_are_at_least_forty_faults_and_each_is_another() -> None:
    assert len({(fault.where, fault.old, fault.new) for fault in FAULTS}) == len(FAULTS) >= 40
    assert len({fault.id for fault in FAULTS}) == len(FAULTS)


@pytest.mark.parametrize(
    "fails", [everything_fails, gateway_fails, scheduler_fails, starts_overlap, detokenizer_is_late]
)
def test_without_a_fault_the_same_worlds_are_clean(fails: Callable[[Chaos], None]) -> None:
    for seed in range(16):
        world = Chaos(seed, depth=1 + seed % 3, blocks=40 if seed % 4 else 22)
        chaos_load(world, 16, fails)
