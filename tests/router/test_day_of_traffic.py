"""The simulator of a day of traffic, in short: every answer is whole, and what the choice by prefixes is worth."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from covering import few_of
from slipstream.actors.router import admission


@pytest.fixture
def simulator(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples")
    yield importlib.import_module("day_of_traffic")
    sys.modules.pop("day_of_traffic")


def lived(simulator: Any, seed: int) -> Any:
    """A day of eight services and two routers, each hour held for a second; one service falls silent."""
    day = simulator.Day(8, 2, 1.0, 0.9, seed=seed)
    day.run(faults=True)
    return day


def found(simulator: Any, day: Any) -> tuple[float, float]:
    """Which share of prompt tokens was in a cache, and the p99 of the seconds until the first token."""
    cached, prompt = (sum(getattr(hour, name) for hour in day.hours) for name in ("cached", "prompt"))
    return cached / prompt, simulator.percentile([one for hour in day.hours for one in hour.first_s], 0.99)


@pytest.mark.parametrize("seed", few_of(range(3), 0))
def test_a_day_ends_with_every_answer_whole_and_sooner_than_by_load_alone(simulator: Any, seed: int) -> None:
    day = lived(simulator, seed)  # which compares the tokens of each answer
    assert sum(hour.answered for hour in day.hours) == sum(hour.asked for hour in day.hours) > 1000
    assert sum(gate.router.counters["router_requests_moved"] for gate in day.gates) > 0
    assert not any(gate.router.open.by_number for gate in day.gates)
    with patch.object(admission, "hash_blocks", lambda *asked: []):
        by_load = lived(simulator, seed)
    share, p99_s = found(simulator, day)
    share_by_load, p99_by_load_s = found(simulator, by_load)
    assert share > 0.75 > 0.5 > share_by_load
    assert p99_s <= p99_by_load_s
