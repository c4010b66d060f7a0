"""Few of many cases: those that ``make test`` runs."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import pytest

T = TypeVar("T", bound=Hashable)


def covering(cases: Sequence[Mapping[str, Hashable]], strength: int) -> set[int]:
    """The places of few cases in which any values of ``strength`` parameters that occur together do so still.

    A covering array: with 1 each value occurs, with 2 each pair of values. A parameter is named by its key.
    """
    held = [
        frozenset(itertools.combinations(sorted(case.items()), min(strength, len(case)))) for case in cases
    ]
    missing = frozenset[object]().union(*held)
    chosen: set[int] = set()
    while missing:
        most = max(range(len(cases)), key=lambda place: len(held[place] & missing))  # of equals the first
        chosen.add(most)
        missing -= held[most]
    return chosen


def few_of(values: Iterable[T], *kept: T) -> list[Any]:
    """All of these values of a parameter, of which ``make test`` has those that are ``kept``."""
    values = list(values)
    assert set(kept) <= set(values)
    return [value if value in kept else pytest.param(value, marks=pytest.mark.rest) for value in values]
