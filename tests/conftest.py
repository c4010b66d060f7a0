"""Shared by all tests: which have a long form, and in which order files begin."""

from __future__ import annotations

import gc

import pytest

SOAK = 20
"""How many times as many schedules, worlds or programs a test has with ``--soak``, unless it says otherwise."""


LONGEST = (
    "test_drill.py",
    "test_supervision.py",
    "test_service.py",
    "test_races.py",
    "test_equivalence.py",
    "test_ranks.py",
    "test_keeper.py",
    "test_ends.py",
    "test_http_schema.py",
    "test_scheduler_simulation.py",
    "test_adapters.py",
    "test_docs.py",
    "test_http.py",
    "test_hostile_http.py",
    "test_spare.py",
    "test_models.py",
    "test_simulation.py",
    "test_triton_attention.py",
    "test_ways_in.py",
    "test_overload.py",
    "test_route.py",
    "test_recovery_faults.py",
    "test_fleet.py",
    "test_shard.py",
    "test_security.py",
    "test_model_families.py",
    "test_poison.py",
    "test_sampler.py",
    "test_drill_replicas.py",
    "test_grammar.py",
    "test_invariant_kernels.py",
    "test_parameters.py",
    "test_state_kernels.py",
    "test_hostile_frames.py",
    "test_restart.py",
    "test_gpu.py",
)
"""Files of more than some ten seconds. They begin first, so that no worker still has one when the others are done."""


gc.disable()  # until all is imported: looking through it again and again is half of what collecting the tests takes


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="run the long forms alone")


@pytest.fixture(scope="session")
def soak(request: pytest.FixtureRequest) -> bool:
    """Whether a test that asks for this runs in its long form."""
    return bool(request.config.getoption("--soak"))


@pytest.fixture
def more(soak: bool) -> int:
    """By how much a test multiplies its number of schedules."""
    return SOAK if soak else 1


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--soak"):  # what has no long form runs without
        items[:] = [item for item in items if "soak" in getattr(item, "fixturenames", ())]
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


def pytest_collection_finish() -> None:
    """What was imported stays: looking through it for garbage is a tenth of the simulations' time."""
    gc.collect()
    gc.freeze()
    gc.enable()
    gc.set_threshold(20_000, 20, 50)


def pytest_unconfigure() -> None:
    gc.unfreeze()  # libraries complain at exit of what is still there
