"""Routers and whole services in one virtual time: whatever of them goes, no token is lost, repeated or another."""

from __future__ import annotations

import pytest
from fleet import Fleet, everything_fails, fleet_load
from recovery_faults import Fault, planted
from router_faults import FAULTS

SEEDS = 60
"""Within how many worlds each fault must show."""


def test_whatever_of_four_services_and_their_routers_fails_every_answer_is_as_it_is_alone(more: int) -> None:
    moved = 0
    for seed in range(12 * more):
        fleet = Fleet(seed, routers=1 + seed % 2)
        try:
            fleet_load(fleet, 24, everything_fails)
        except Exception as error:
            error.add_note(f"in the fleet with seed {seed}")
            raise
        moved += sum(
            front.actor.counters["router_requests_moved"] for front in fleet.fronts if front.actor is not None
        )
    assert moved > 0


def test_a_run_is_a_function_of_its_seed() -> None:
    def history(seed: int) -> list[object]:
        fleet = Fleet(seed)
        fleet_load(fleet, 12, everything_fails)
        return [fleet.now, fleet.happened, fleet.fronts[0].ends, fleet.fronts[0].inbox]

    assert history(3) == history(3)
    assert history(3) != history(4)


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.id for fault in FAULTS])
def test_a_planted_fault_is_caught(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*planted(fault))
    for seed in range(SEEDS):
        try:
            fleet_load(Fleet(seed), 16, fault.fails)
        except Exception as error:
            print(f"caught in the fleet with seed {seed}: {type(error).__name__}: {error}"[:300])
            return
    pytest.fail(f"{fault.id} went unnoticed in {SEEDS} fleets")


def test_there_are_at_least_twenty_faults_and_each_is_another() -> None:
    assert len({(fault.where, fault.old, fault.new) for fault in FAULTS}) == len(FAULTS) >= 20
    assert len({fault.id for fault in FAULTS}) == len(FAULTS)
