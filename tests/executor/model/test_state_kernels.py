"""The kernels of other packages: used where they are installed, named where they are not, and never fetched."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SUPPORT = Path(__file__).parents[2] / "support"

PACKAGES = {
    "causal_conv1d/__init__.py": """
from counted import counted
@counted
def causal_conv1d_fn(x, weight, bias=None, seq_idx=None, initial_states=None, activation=None): ...
@counted
def causal_conv1d_update(x, conv_state, weight, bias=None, activation=None): ...
""",
    "fla/__init__.py": "",
    "fla/ops/__init__.py": "",
    "fla/ops/gated_delta_rule.py": """
from counted import counted
@counted
def chunk_gated_delta_rule(q, k, v, g=None, beta=None, scale=None, initial_state=None, output_final_state=False,
                           use_qk_l2norm_in_kernel=False, cu_seqlens=None): ...
@counted
def fused_recurrent_gated_delta_rule(q, k, v, g=None, beta=None, scale=None, initial_state=None,
                                     output_final_state=False, use_qk_l2norm_in_kernel=False, cu_seqlens=None): ...
""",
    "counted.py": """
import functools, inspect, sys
calls = []
OF_TRANSFORMERS = {"chunk_gated_delta_rule": "torch_chunk_gated_delta_rule",
                   "fused_recurrent_gated_delta_rule": "torch_recurrent_gated_delta_rule"}
def counted(function):
    # It computes what transformers' own does, which has other names for what is given by place.
    @functools.wraps(function)
    def run(*given, **named):
        calls.append(function.__name__)
        name = OF_TRANSFORMERS.get(function.__name__, function.__name__)
        theirs = getattr(sys.modules["transformers.models.qwen3_next.modeling_qwen3_next"], name)
        return inspect.unwrap(theirs)(*given, **named)
    return run
""",
}
"""Stand-ins, with the arguments that the real ones have names for."""

PROGRAM = """
import socket, sys, torch
def refuse(*_): raise AssertionError("something is fetched")
socket.socket.connect = socket.create_connection = refuse
from slipstream.actors.executor.model.load import from_config
from slipstream.actors.executor.model.probe import probed
from tiny_models import make_config
torch.set_num_threads(1)
model = from_config(make_config("qwen3_next"), torch.device("cpu"), torch.float32)
sys.modules.get("counted") and sys.modules["counted"].calls.clear()
with probed(model):
    pass
print(*sorted(set(sys.modules["counted"].calls) if "counted" in sys.modules else ()))
print(model.stateful.notes()[-1])
"""


@pytest.mark.parametrize("installed", [True, False])
def test_kernels_are_those_of_packages_that_are_installed(installed: bool, tmp_path: Path) -> None:
    """The probe, which runs chunks and single tokens, passes with them."""
    for name, text in PACKAGES.items() if installed else ():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    path = os.pathsep.join([str(tmp_path), str(SUPPORT)])
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    used, told = run.stdout.splitlines()
    if installed:
        assert used.split() == [
            "causal_conv1d_fn",
            "causal_conv1d_update",
            "chunk_gated_delta_rule",
            "fused_recurrent_gated_delta_rule",
        ]
        assert told == "kernels of these layers are those of causal-conv1d and flash-linear-attention"
    else:
        assert used == ""
        assert told.endswith("they are faster with causal-conv1d and flash-linear-attention installed")
