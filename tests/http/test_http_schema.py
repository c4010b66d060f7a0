"""Whatever fits the service's own OpenAPI document, and whatever does not, is answered as it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from slipstream import Sidecar


@pytest.mark.parametrize(
    ("phases", "examples"),
    [("examples,fuzzing", 5), pytest.param("examples,coverage,fuzzing", 20, marks=pytest.mark.rest)],
)
def test_schemathesis_finds_nothing(phases: str, examples: int, tmp_path: Path, more: int) -> None:
    """All its checks but one: that what fits the schema is accepted. A schema cannot say all that must hold, such
    as that a prompt fits the model's length."""
    options: dict[str, Any] = {"max_model_len": 64, "emulated_step_ms": 0, "server_dev_mode": True}
    with Sidecar(device="emulated", http="127.0.0.1:0", **options) as sidecar:
        done = subprocess.run(
            [
                *(Path(sys.executable).with_name("schemathesis"), "run"),
                f"{sidecar.ready['http']}/openapi.json",
                *("--phases", phases, "--max-examples", str(examples * more)),
                *("--exclude-checks", "positive_data_acceptance"),
                *("--continue-on-failure", "--no-color", "--generation-database", "none"),
            ],
            capture_output=True,
            text=True,
            timeout=120 * more,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
        assert all(actor["restarts"] == 0 for actor in sidecar.actors.values())
