"""``examples/ranks.py``: what fails or hangs is a row beside what was found until then, and no process is left."""

from __future__ import annotations

import importlib.util
import os
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parents[2]

STRAY_S = f"601.{os.getpid()}"
"""As in ``test_serving_example.py``."""

VLLM = """
import subprocess, time
class SamplingParams:
    def __init__(self, **named): self.tokens = named["max_tokens"]
class LLM:
    def __init__(self, folder, **options):
        assert options["compilation_config"] == {"pass_config": {"fuse_allreduce_rms": False}}
        assert options["tensor_parallel_size"] == 2 and "quantization" not in options
    def generate(self, inputs, params, **named):
        assert all(len(one["prompt_token_ids"]) == 128 for one in inputs)
        if len(inputs) == 4:
            WRONG
        time.sleep(0.02 * params.tokens)
"""


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "examples")
    spec = importlib.util.spec_from_file_location("ranks_example", ROOT / "examples/ranks.py")
    assert spec is not None
    assert spec.loader is not None
    found: Any = importlib.util.module_from_spec(spec)  # the support of other tests has a module of that name
    spec.loader.exec_module(found)
    monkeypatch.setattr(found, "MIN_S", 0.0)
    return found


def lab(ranks: Any, out: Path, limit: float) -> Any:
    told = {"rows": [2, 4, 256], "new": 20, "quantization": None, "adapter": False}
    return ranks.h200.Lab(Namespace(out=out, smoke=True, seconds=1e9, limit=limit, **told))


@pytest.mark.parametrize(
    ("wrong", "limit", "said"),
    [
        ("raise RuntimeError('no card is left')", 60.0, "RuntimeError: no card is left"),
        (
            f"print('waits', flush=True); subprocess.run(['sleep', '{STRAY_S}'])",
            6.0,
            "not done after 6 s: .*waits",
        ),
    ],
    ids=["fails", "hangs"],
)
def test_what_goes_wrong_is_a_row_behind_what_was_found(
    ranks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str, limit: float, said: str
) -> None:
    (tmp_path / "vllm.py").write_text(VLLM.replace("WRONG", wrong))
    monkeypatch.setenv("VLLM_PATH", str(tmp_path))
    monkeypatch.setattr(ranks.serving, "END_S", 0.1)
    ready, two, error = ranks.rows_of("vllm", "8b", 2, lab(ranks, tmp_path, limit))
    assert ready.keys() == {"ready_s"}
    assert two["rows"] == 2
    assert 5.0 < two["step_ms"] < 200.0
    assert 40 / two["tokens_per_s"] == pytest.approx(two["seconds"], rel=0.05)
    assert error.keys() == {"error"}
    assert re.search(said, error["error"], re.DOTALL)
    words = {word for one in psutil.process_iter(["cmdline"]) for word in one.info["cmdline"] or []}
    assert STRAY_S not in words


def test_the_table_has_ours_over_one_rank_and_over_vllm(ranks: Any) -> None:
    def row(engine: str, count: int, tokens_per_s: float, step_ms: float, **more: Any) -> dict[str, Any]:
        about = {"engine": engine, "model": "8b", "ranks": count, "rows": 1}
        return about | {"tokens_per_s": tokens_per_s, "step_ms": step_ms} | more

    text = ranks.table(
        [
            row("slipstream", 2, 300.0, 2.5, utilization_0=0.999, utilization_1=0.998),
            row("slipstream", 1, 200.0, 4.0, utilization_0=1.0),
            row("vllm", 2, 240.0, 3.0),
            {"engine": "vllm", "model": "8b", "ranks": 1, "error": "Traceback\n  …\nRuntimeError: no card\n"},
        ]
    )
    two, one, wrong = text.splitlines()[2:]
    beside = ["240", "3.000", "1.25", "1.20"]
    assert two.split() == ["8b", "2", "1", "300", "2.500", "1.50", "1.60", *beside, "99.9%", "99.8%"]
    assert one.split() == ["8b", "1", "1", "200", "4.000", "-", "-", "-", "-", "-", "-", "100.0%"]
    assert wrong == "vllm, 8b on 1: RuntimeError: no card"
