"""What GPUs do together over peer memory, beside NCCL's: its bits, in graphs, at unequal speeds, and after a death.

pytest tests/executor/ranks/test_peer_gpus.py -rA         # on two GPUs that reach each other; about a minute, and
                                                          # as much for four and for eight, where there are as many
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

SUPPORT = Path(__file__).parents[2] / "support"
TIMEOUT_S = 90.0

SIZES = [size for size in (2, 4, 8) if size <= max(2, torch.cuda.device_count())]

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


def begin(folder: Path, size: int, work: str) -> list[subprocess.Popen[bytes]]:
    """All ranks; each writes what it finds to ``results N``."""
    script = str(SUPPORT / "peer_gpus.py")
    met, results = str(folder / "met"), [str(folder / f"results {rank}") for rank in range(size)]
    return [
        subprocess.Popen([sys.executable, script, str(rank), str(size), met, results[rank], work])
        for rank in range(size)
    ]


def results(folder: Path, rank: int) -> dict[str, Any]:
    return json.loads((folder / f"results {rank}").read_text())


@pytest.fixture(scope="module", params=SIZES)
def found(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """What each rank found of all that they did together."""
    size: int = request.param
    folder = tmp_path_factory.mktemp("sums")
    ranks = begin(folder, size, "sums")
    until = time.monotonic() + TIMEOUT_S
    try:
        while any(process.poll() is None for process in ranks) and not any(one.poll() for one in ranks):
            assert time.monotonic() < until, (
                "not done in time"
            )  # the others of one that fails would wait for ever
            time.sleep(0.1)
        statuses = [process.poll() for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert statuses == [0] * size
    found = [results(folder, rank) for rank in range(size)]
    if found[0].get("reached") is False:
        pytest.skip("these GPUs do not reach each other's memory")
    return found


def test_all_ranks_have_the_bits_of_the_sum_in_float32(found: list[dict[str, Any]]) -> None:
    for rank in found:
        compared = rank["compare"]
        assert compared["sums"] > 10
        assert compared["wrong"] == compared["unlike"] == 0
        assert len(found) > 2 or compared["nccl_differs"] == 0, "of two numbers there is one sum"


def test_rows_and_tokens_are_those_that_nccl_brings(found: list[dict[str, Any]]) -> None:
    for rank in found:
        gathered = rank["gathered"]
        assert gathered["gathers"] >= 500
        assert gathered["broadcasts"] >= 400
        assert gathered["wrong"] == 0


def test_a_sum_that_is_added_and_normalised_at_once_is_that_of_two_kernels(
    found: list[dict[str, Any]],
) -> None:
    for rank in found:
        assert rank["normalise"]["unlike"] == 0
        assert rank["normalise"]["difference_16"] < 1e-2 * len(found), "NCCL rounds every sum of two"
        assert rank["normalise"]["difference_32"] < 1e-5


@pytest.mark.parametrize("part", ["replay", "at_unequal_speeds", "of_any_size"])
def test_no_number_of_any_sum_is_wrong(found: list[dict[str, Any]], part: str) -> None:
    for rank in found:
        assert rank[part]["wrong"] == 0


def test_a_rank_that_waits_for_a_dead_one_can_be_ended_and_its_gpu_is_free(tmp_path: Path) -> None:
    """As the supervisor ends it: nothing is asked of it any more."""
    first, second = begin(tmp_path, 2, "last_words")
    try:
        assert second.wait(TIMEOUT_S) == -9
        until = time.monotonic() + 30.0
        while not (tmp_path / "results 0").exists() and time.monotonic() < until:
            time.sleep(0.05)
        met = results(tmp_path, 0)
        print(f"what the other rank met: {met}")
        assert met["waits"] or met["failure"], "a sum without one of the ranks"
        assert first.poll() is None
    finally:
        first.kill()
        second.kill()
    begun = time.monotonic()
    assert first.wait(30.0) == -9
    print(f"ended within {time.monotonic() - begun:.2f} s")
    code = "import torch; [print(int(torch.ones(9, device=f'cuda:{n}').sum())) for n in (0, 1)]"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60.0, check=False)
    assert done.stdout.split() == [b"9", b"9"], done.stderr
