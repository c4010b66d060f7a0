"""Whole services die under streams, and the router before them: ``slipstream drill --replicas`` as tests."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any

import pytest

from slipstream.drill.replicas import ReplicaDrill
from slipstream.drill.result import clean

BUSY = 10
"""By how much a pause may be longer in the short form, which other work shares the machine with."""


def drill(target: str, rounds: int, streams: int, **options: Any) -> dict[str, Any]:
    result = asyncio.run(ReplicaDrill(target, 3, rounds, streams, **options, say=print).run())
    print(json.dumps(result))
    assert clean(result), result
    assert result["kills"] == rounds
    return result


@pytest.mark.parametrize("over_tcp", [False, True], ids=["over ipc", "over tcp with keys"])
def test_kill_9_of_a_whole_service_loses_repeats_and_changes_no_token(over_tcp: bool, soak: bool) -> None:
    if not (over_tcp or soak):
        pytest.skip("over TCP the same happens and more; make soak drills both")
    result = drill("replica", 100 if soak else 1, 64 if soak else 16, over_tcp=over_tcp)
    assert result["recovery_ms"]["p99"] < 1000.0 * (1 if soak else BUSY)


@pytest.mark.rest
def test_kill_9_of_the_router_loses_repeats_and_changes_no_token(soak: bool) -> None:
    result = drill("router", 20 if soak else 2, 64 if soak else 16)
    assert result["recovery_ms"]["p99"] < 1000.0 * (1 if soak else BUSY)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--kill", "executor", "--streams", "10000000"],
            "--streams 10000000 is out of range; it must be at most",
        ),
        (["--kill", "replica"], "needs --replicas N"),
        (["--kill", "replica", "--replicas", "1"], "at least 2"),
        (["--kill", "gateway", "--replicas", "3"], "have no effect"),
        (["--kill", "replica", "--replicas", "3", "--fault", "stop"], "can only be killed"),
    ],
)
def test_what_cannot_be_drilled_is_said(arguments: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "slipstream", "drill", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert said in done.stderr
