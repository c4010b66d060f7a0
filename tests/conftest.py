"""Shared by all tests: how long the drills are."""

from __future__ import annotations

import pytest

SOAK = 20
"""How many times longer the drills are with ``--soak``."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help=f"make the drills {SOAK} times longer")


@pytest.fixture
def more(request: pytest.FixtureRequest) -> int:
    """By how much a drill multiplies its number of schedules."""
    return SOAK if request.config.getoption("--soak") else 1
