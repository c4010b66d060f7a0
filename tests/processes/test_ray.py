"""Replicas on a Ray cluster; where Ray is not installed, that is said."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

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
    faults = ["replica", "supervisor", "executor", "fewer", "more", "delete"] if soak else ["replica"]
    command = [*namespace(), sys.executable, str(CLUSTER), *faults]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd="/")
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads(done.stdout.splitlines()[-1]) == dict.fromkeys(faults, 32)


@pytest.mark.skipif(HAS_RAY, reason="Ray is installed")
def test_without_ray_it_is_said_what_to_install() -> None:
    done = subprocess.run([sys.executable, "-c", "import slipstream.ray"], capture_output=True, text=True)
    assert "pip install 'slipstream[ray]'" in done.stderr.splitlines()[-1]
    done = subprocess.run([sys.executable, "-m", "slipstream", "deploy"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "slipstream[ray]" in done.stderr
