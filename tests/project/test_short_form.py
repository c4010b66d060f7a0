"""What ``make test`` leaves out is what ``make rest`` runs, and together they are all."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from covering import covering

TESTS = Path(__file__).parents[1]

CASES = [
    {"depth": depth, "graphs": graphs, "family": family}
    for depth in (1, 2, 3, 4)
    for graphs in ("off", "all", "none")
    for family in ("llama", "mamba")
]


@pytest.mark.parametrize(("strength", "most"), [(1, 4), (2, 14), (3, len(CASES))])
def test_few_cases_have_every_combination_of_so_many_values(strength: int, most: int) -> None:
    def combinations(places: Sequence[int] | set[int]) -> set[tuple[object, ...]]:
        return {
            found
            for place in places
            for found in itertools.combinations(sorted(CASES[place].items()), strength)
        }

    chosen = covering(CASES, strength)
    assert combinations(chosen) == combinations(range(len(CASES)))
    assert len(chosen) <= most
    assert combinations(chosen - {max(chosen)}) != combinations(chosen), "none is there for nothing"


def test_a_case_with_a_value_of_its_own_is_never_left_out() -> None:
    alone = [*CASES, {"depth": 1, "graphs": "meanwhile", "family": "llama"}]
    assert len(CASES) in covering(alone, 1)


SAMPLE = """
import pytest
from covering import few_of

@pytest.mark.rest
def test_long(): pass

@pytest.mark.covering(1)
@pytest.mark.parametrize("a", range(3))
@pytest.mark.parametrize("b", range(3))
def test_product(a, b): pass

@pytest.mark.covering(1)
def test_of_one_case(): pass

@pytest.mark.parametrize("a", few_of("xyz", "y"))
def test_few(a): pass

def test_in_another_process(selection): pass
"""


def collected(folder: Path, *options: str) -> set[str]:
    """The names of the tests of a file that these options choose."""
    (folder / "test_sample.py").write_text(SAMPLE)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "conftest",
            "--collect-only",
            "-q",
            *options,
            "test_sample.py",
        ],
        cwd=folder,
        env=os.environ
        | {
            "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS / 'support'}",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTEST_ADDOPTS": "",  # may name a plugin that is not on this path
        },
        capture_output=True,
        text=True,
        check=True,
    )
    return {line.partition("::")[2] for line in done.stdout.splitlines() if "::" in line}


def test_each_test_is_in_the_short_form_or_in_the_rest_and_in_both_if_it_starts_others(
    tmp_path: Path,
) -> None:
    short, rest = collected(tmp_path, "--short"), collected(tmp_path, "--rest")
    assert short & rest == {"test_in_another_process"}
    assert short | rest == collected(tmp_path)
    assert short == {
        *("test_product[0-0]", "test_product[1-1]", "test_product[2-2]"),
        *("test_of_one_case", "test_few[y]", "test_in_another_process"),
    }
