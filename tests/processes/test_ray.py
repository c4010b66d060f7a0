"""Replicas on a Ray cluster; where Ray is not installed, that is said."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray_cluster import FAULTS, STREAMS
from slipstream.protocol.errors import InvalidRequest

from slipstream.commands.common import Exit
from slipstream.commands.deploy import check_reachable
from slipstream.ray_scaling import CACHE, MAX_CACHE, OPEN, Progress, scaling, services_needed

CLUSTER = Path(__file__).parents[1] / "support" / "ray_cluster.py"

HAS_RAY = find_spec("ray") is not None


def namespace() -> list[str]:
    """The command that runs another in a network namespace in which there is the loopback alone."""
    return ["unshare", "-n", "bash", "-c", 'ip link set lo up; exec "$@"', "--"]


def can_unshare() -> bool:
    tools = all(shutil.which(name) for name in ("unshare", "ip"))
    return tools and subprocess.run([*namespace(), "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not HAS_RAY, reason="Ray is not installed: pip install 'slipstream[ray]'")
@pytest.mark.skipif(
    not can_unshare(), reason="no network namespace can be made here, and Ray listens everywhere"
)
def test_streams_outlive_replicas_on_a_ray_cluster(soak: bool) -> None:
    faults = [*FAULTS] if soak else ["replica"]
    command = [*namespace(), sys.executable, str(CLUSTER), *faults]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd="/")
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads(done.stdout.splitlines()[-1]) == dict.fromkeys(faults, STREAMS)


@pytest.mark.skipif(HAS_RAY, reason="Ray is installed")
def test_without_ray_it_is_said_what_to_install() -> None:
    done = subprocess.run([sys.executable, "-c", "import slipstream.ray"], capture_output=True, text=True)
    assert "pip install 'slipstream[ray]'" in done.stderr.splitlines()[-1]
    done = subprocess.run([sys.executable, "-m", "slipstream", "deploy"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "slipstream[ray]" in done.stderr


def asked(reported: dict[str, dict[str, float]] | None, target: float = 10.0) -> Any:
    """What Serve's policy is asked, by a deployment of three."""
    config = SimpleNamespace(target_ongoing_requests=target)
    return SimpleNamespace(aggregated_metrics=reported, config=config, target_num_replicas=3)


@pytest.mark.parametrize(
    ("reported", "needed"),
    [
        (None, 3),
        ({}, 3),
        ({OPEN: {"a": 0.0, "b": 0.0}, CACHE: {"a": 0.0, "b": 0.0}}, 0),
        ({OPEN: {"a": 30.0, "b": 20.0}, CACHE: {"a": 0.1, "b": 0.1}}, 5),
        ({OPEN: {"a": 1.0, "b": 1.0}, CACHE: {"a": 1.0, "b": 1.0}}, 2 / MAX_CACHE),
    ],
    ids=["nothing reported yet", "no metric", "nothing to do", "by open requests", "by caches"],
)
def test_as_many_services_are_wanted_as_open_requests_or_caches_ask_for(
    reported: dict[str, dict[str, float]] | None, needed: float
) -> None:
    assert services_needed(asked(reported))[0] == pytest.approx(needed)


def test_serve_is_told_bounds_and_policy_and_what_is_said_goes_before_what_follows() -> None:
    found = scaling(2, 64, {"max_replicas": 8})
    assert (found["min_replicas"], found["max_replicas"], found["target_ongoing_requests"]) == (2, 8, 48.0)
    module, name = found["policy"]["policy_function"].split(":")
    assert getattr(sys.modules[module], name) is services_needed
    assert scaling(2, 64, {"max_replicas": 8, "target_ongoing_requests": 5})["target_ongoing_requests"] == 5
    with pytest.raises(InvalidRequest, match="min_replicas=0; give at least 1"):
        scaling(2, 64, {"min_replicas": 0, "max_replicas": 8})


def test_a_service_that_completes_no_step_while_requests_are_open_is_stuck_and_an_idle_one_is_not() -> None:
    progress = Progress(10.0)
    assert progress.take({"steps": 5.0, OPEN: 0.0}, 100.0) is None
    assert progress.take({"steps": 5.0, OPEN: 0.0}, 200.0) is None
    assert progress.take({"steps": 5.0, OPEN: 2.0}, 209.0) is None
    assert "2 requests are open and no step was completed for 10 s" in str(
        progress.take({"steps": 5.0, OPEN: 2.0}, 210.0)
    )
    assert progress.take({"steps": 6.0, OPEN: 2.0}, 211.0) is None
    assert progress.take({"steps": 6.0, OPEN: 2.0}, 220.0) is None


def test_a_cluster_that_is_not_there_is_named() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # nobody listens there
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(Exit, match=f"no Ray cluster is at RAY_ADDRESS={address}"):
            check_reachable(address)
    check_reachable("")
    check_reachable("ray://head:10001")
