"""A keeper and two executors under random deaths in virtual time, and faults in what the keeper does."""

from __future__ import annotations

from collections import Counter

import pytest
from keeper_faults import FAULTS
from kept import live
from recovery_faults import Fault, planted

SEEDS = 400


def test_whatever_dies_weights_are_kept_whole_once_and_found_again(more: int) -> None:
    sources: Counter[str] = Counter()
    for seed in range(SEEDS * more):
        sources += live(seed).sources
    assert sources["kept"] > 2 * SEEDS
    assert sources["loaded"] > 2 * SEEDS


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
