"""Shared by all tests: how long the drills are."""

from __future__ import annotations

import pytest

SOAK = 20
"""How many times longer the drills are with ``--soak``."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help=f"make the drills {SOAK} times longer")


@pytest.fixture(scope="session")
def soak(request: pytest.FixtureRequest) -> bool:
    """Whether the drills take their long form."""
    return bool(request.config.getoption("--soak"))


@pytest.fixture
def more(soak: bool) -> int:
    """By how much a drill multiplies its number of schedules."""
    return SOAK if soak else 1
