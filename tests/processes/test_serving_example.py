"""``examples/serving.py``: a server that dies or a load that fails is a row, and no process is left."""

from __future__ import annotations

import importlib
import math
import os
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parents[2]

STRAY_S = f"600.{os.getpid()}"
"""How long a process sleeps that a server leaves behind; no other process has this argument."""


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "examples")
    return importlib.import_module("serving")


def plan(serving: Any, out: Path, **changed: Any) -> Any:
    told = {"out": out, "folder": lambda model: out, "models": ["8b"], "loads": ["b1", "burst"]}
    told |= {"options": "", "smoke": True, "left": lambda: math.inf}
    return serving.Plan(**(told | changed))


def emulated(port: int) -> list[str]:
    options = ["--device", "emulated", "--emulated-step-ms", "1", "--max-model-len", "64"]
    return [sys.executable, "-m", "slipstream", "serve", "--http", f"127.0.0.1:{port}", *options]


def test_a_load_that_fails_is_a_row_and_the_others_go_on(
    serving: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stray = f"import subprocess, sys; subprocess.Popen(['sleep', '{STRAY_S}']); subprocess.run(sys.argv[1:])"
    addresses: list[str] = []

    def command_of(engine: str, plan: Any, folder: Path, port: int) -> tuple[list[str], None]:
        addresses.append(f"127.0.0.1:{port}")
        return [sys.executable, "-c", stray, *emulated(port)], None

    monkeypatch.setattr(serving, "command_of", command_of)
    monkeypatch.setattr(serving, "END_S", 0.1)  # it does not hand SIGTERM on, so it is killed
    loads = {
        "b1": serving.Load(1, 8, 16, 1),
        "long": serving.Load(2, 64, 16, 2),
        "burst": serving.SMOKE["burst"],
    }
    monkeypatch.setattr(serving, "SMOKE", loads)
    monkeypatch.setattr(serving, "WARM_UP", serving.Load(1, 8, 4, 1))
    rows = list(serving.measure("slipstream", plan(serving, tmp_path, loads=None), "8b"))
    assert [row["load"] for row in rows] == ["start", "warm-up", "b1", "long", "burst"]
    assert [row.get("completed") for row in rows] == [None, 1, 1, None, 12]
    assert "64 tokens" in rows[3]["error"]
    words = {word for one in psutil.process_iter(["cmdline"]) for word in one.info["cmdline"] or []}
    assert not words & {STRAY_S, *addresses}


def test_a_server_that_cannot_start_is_a_row_with_the_end_of_its_log(
    serving: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = [sys.executable, "-c", "import sys; sys.exit('no such card')"]
    monkeypatch.setattr(serving, "command_of", lambda *_: (ends, None))
    (row,) = serving.measure("vllm", plan(serving, tmp_path), "8b")
    assert "ended with 1: no such card" in row["error"]


def test_the_table_sets_ours_over_theirs_and_the_recorded_figures_where_theirs_are_not_measured(
    serving: Any, tmp_path: Path
) -> None:
    rows = [
        {"model": "8b", "engine": "slipstream", "load": "b1", "p50_tpot_ms": 5.0},
        {"model": "8b", "engine": "vllm", "load": "b1", "p50_tpot_ms": 4.0},
        {"model": "8b", "engine": "slipstream", "load": "burst", "error": "too late"},
        {"model": "8b", "engine": "vllm", "load": "burst", "output_throughput": 3000.0},
    ]
    real = plan(serving, tmp_path, smoke=False)
    _, b1, burst = serving.table(real, "8b", rows, ["vllm", "slipstream"])
    assert (b1["vllm"], b1["slipstream"], b1["ratio"], b1["aim"]) == (4.0, 5.0, 1.25, "≤ 0.95")
    assert (burst["vllm"], burst["slipstream"], burst["ratio"], burst["aim"]) == (
        3000.0,
        None,
        None,
        "≥ 1.10",
    )
    _, b1, _ = serving.table(real, "8b", rows, ["slipstream"])
    assert (b1["vllm, recorded"], b1["ratio"]) == (4.83, 1.035)
    assert "-" in "\n".join(serving.as_text([burst]))
