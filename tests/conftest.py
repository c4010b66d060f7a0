"""Shared by all tests: which run in ``make test``, which have a long form, and in which order files begin."""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Hashable

import pytest
from covering import covering

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
    parser.addoption("--short", action="store_true", help="run what make test does")
    parser.addoption("--rest", action="store_true", help="run what make test leaves out, and nothing else")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "rest: not in make test, but in make rest")
    config.addinivalue_line(
        "markers",
        "covering(strength): in make test as many cases as it takes to have each value of each parameter (1), or each"
        " pair of values (2); the others in make rest",
    )


@pytest.fixture(scope="session")
def soak(request: pytest.FixtureRequest) -> bool:
    """Whether a test that asks for this runs in its long form."""
    return bool(request.config.getoption("--soak"))


@pytest.fixture
def selection(request: pytest.FixtureRequest) -> list[str]:
    """The options that say what runs. A test that asks for them has them in another process, and so runs always."""
    return [option for option in ("--short", "--rest") if request.config.getoption(option)]


@pytest.fixture
def more(soak: bool) -> int:
    """By how much a test multiplies its number of schedules."""
    return SOAK if soak else 1


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--soak"):  # what has no long form runs without
        items[:] = [item for item in items if "soak" in getattr(item, "fixturenames", ())]
    elif config.getoption("--short") or config.getoption("--rest"):
        rest = left_out(items)
        wanted = config.getoption("--rest")
        items[:] = [
            item
            for item in items
            if (item in rest) == wanted or "selection" in getattr(item, "fixturenames", ())
        ]
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


def left_out(items: list[pytest.Item]) -> set[pytest.Item]:
    """Those that ``make test`` does not run: marked so, or not needed to cover the values of their parameters."""
    rest = {item for item in items if item.get_closest_marker("rest")}
    cases: defaultdict[tuple[Hashable, int], list[pytest.Function]] = defaultdict(list)
    for item in items:
        mark = item.get_closest_marker("covering")
        if mark is not None and isinstance(item, pytest.Function) and item not in rest:
            cases[item.function, mark.args[0]].append(item)
    for (_, strength), cases_of_one in cases.items():
        kept = covering([values_of(item) for item in cases_of_one], strength)
        rest |= {item for place, item in enumerate(cases_of_one) if place not in kept}
    return rest


def values_of(item: pytest.Function) -> dict[str, Hashable]:
    """The parameters of a case."""
    return (
        {name: str(value) for name, value in item.callspec.params.items()}
        if hasattr(item, "callspec")
        else {}
    )


def pytest_collection_finish() -> None:
    """What was imported stays: looking through it for garbage is a tenth of the simulations' time."""
    gc.collect()
    gc.freeze()
    gc.enable()
    gc.set_threshold(20_000, 20, 50)


def pytest_unconfigure() -> None:
    gc.unfreeze()  # libraries complain at exit of what is still there
