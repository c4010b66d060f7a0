"""The kernels of other packages: used where they are installed, named where they are not, and never fetched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from slipstream.actors.executor.model.loading.load import model_on_meta
from slipstream.actors.executor.model.stateful import package_kernels
from tiny_models import STATEFUL, make_config

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
TORCH_NAMES = {"chunk_gated_delta_rule": "torch_chunk_gated_delta_rule",
                   "fused_recurrent_gated_delta_rule": "torch_recurrent_gated_delta_rule"}
def counted(function):
    # It computes what transformers' own does, which has other names for what is given by place.
    @functools.wraps(function)
    def run(*given, **named):
        calls.append(function.__name__)
        name = TORCH_NAMES.get(function.__name__, function.__name__)
        theirs = getattr(sys.modules["transformers.models.qwen3_next.modeling_qwen3_next"], name)
        return inspect.unwrap(theirs)(*given, **named)
    return run
""",
}
"""Stand-ins, with the arguments that the real ones have names for."""

PROGRAM = """
import json, os, socket, sys, torch, transformers
def refuse(*_): raise AssertionError("something is fetched")
socket.socket.connect = socket.create_connection = refuse
from slipstream.actors.executor.model.skipped_imports import skip_imports
skip_imports()
from slipstream.actors.executor.model.loading.load import from_config, model_on_meta
from slipstream.actors.executor.model.comparison import compared
from slipstream.actors.executor.model.stateful import package_kernels
from tiny_models import make_config
torch.set_num_threads(1)
assert not transformers.integrations.hub_kernels._kernels_enabled, "they would be fetched"
from_config(make_config("llama"), torch.device("cpu"), torch.float32)  # imports what all models have in common

def look(folder, devices, dtype):
    sys.path.insert(0, folder)
    package_kernels.DEVICES = set(devices)
    model = from_config(make_config("qwen3_next"), torch.device("cpu"), getattr(torch, dtype))
    counted = sys.modules.get("counted")
    counted and counted.calls.clear()
    with compared(model):
        pass
    print(*sorted(set(counted.calls if counted else ())))
    counted and counted.calls.clear()
    assert model_on_meta(make_config("qwen3_next"), torch.bfloat16).stateful.notes() != []
    print(*sorted(set(counted.calls if counted else ())))
    print("; ".join(model.stateful.notes()[1:]), flush=True)

for case in json.loads(sys.argv[1]):
    assert not {"causal_conv1d", "fla", "transformers.models.qwen3_next.modeling_qwen3_next"} & set(sys.modules)
    forked = os.fork()
    if not forked:
        look(*case)
        os._exit(0)
    assert os.waitpid(forked, 0)[1] == 0, case
"""


CALLED = [
    "causal_conv1d_fn",
    "causal_conv1d_update",
    "chunk_gated_delta_rule",
    "fused_recurrent_gated_delta_rule",
]


TOLD = (
    "kernels of these layers on a GPU are those of causal-conv1d and flash-linear-attention, in bfloat16 and"
    " float16; in float32 they are torch's"
)


BROKEN = PACKAGES | {"causal_conv1d/__init__.py": "import causal_conv1d_cuda"}
"""As one that was built for another torch."""

CASES: dict[str, tuple[dict[str, str], str, str]] = {
    "installed": (PACKAGES, "cpu", "bfloat16"),
    "for a GPU": (PACKAGES, "cuda", "bfloat16"),
    "in float32": (PACKAGES, "cpu", "float32"),
    "not installed": ({}, "cpu", "bfloat16"),
    "broken": (BROKEN, "cpu", "bfloat16"),
}
"""What is installed, the type of the devices on which kernels run, and the model's dtype."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Of each case: what is called in a model on a CPU, what in one that is only laid out, and what is told of it.

    Each has a process of its own, in which nothing was looked for before; they are forks of one that has the imports.
    """
    cases = []
    for packages, devices, dtype in CASES.values():
        folder = tmp_path_factory.mktemp("packages")
        for name, text in packages.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        cases.append((str(folder), [devices], dtype))
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(cases)],
        env=os.environ | {"PYTHONPATH": str(SUPPORT)} | {"HF_HUB_OFFLINE": "0", "USE_HUB_KERNELS": "YES"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert len(lines) == 3 * len(CASES)
    return {name: lines[3 * place : 3 * place + 3] for place, name in enumerate(CASES)}


@pytest.mark.rest
def test_kernels_are_those_of_packages_that_are_installed(found: dict[str, list[str]]) -> None:
    """The comparison, which runs chunks and single tokens, passes with them."""
    called, laid_out, told = found["installed"]
    assert called.split() == CALLED
    assert laid_out == "", "the device of a model without memory is another"
    assert told == TOLD


@pytest.mark.rest
def test_kernels_are_called_on_a_gpu_alone(found: dict[str, list[str]]) -> None:
    """The real ones fail anywhere else, also where a model is only laid out."""
    called, laid_out, told = found["for a GPU"]
    assert called == laid_out == ""
    assert told == TOLD


@pytest.mark.rest
def test_kernels_are_not_called_in_float32(found: dict[str, list[str]]) -> None:
    """The real ones multiply in TF32 there, which is not what transformers computes."""
    called, _, told = found["in float32"]
    assert called == ""
    assert told == TOLD


@pytest.mark.rest
def test_packages_that_are_not_installed_are_named(found: dict[str, list[str]]) -> None:
    called, laid_out, told = found["not installed"]
    assert called == laid_out == ""
    assert told.endswith("they are faster with causal-conv1d and flash-linear-attention installed")


@pytest.mark.rest
def test_a_package_that_cannot_be_imported_is_not_said_to_be_used(found: dict[str, list[str]]) -> None:
    called, _, told = found["broken"]
    assert called.split() == CALLED[2:]
    assert told.split("; others", 1) == [
        TOLD.replace("causal-conv1d and ", ""),
        " are torch's; on a GPU they are faster with causal-conv1d installed; "
        "what is installed of causal-conv1d cannot be imported here",
    ]


CONVOLUTION, DELTA, SCAN = "causal-conv1d", "flash-linear-attention", "mamba-ssm"
WANTED = {
    "qwen3_5_text": [CONVOLUTION, DELTA],
    "qwen3_5_moe_text": [CONVOLUTION, DELTA],
    "qwen3_next": [CONVOLUTION, DELTA],
    "olmo_hybrid": [CONVOLUTION, DELTA],
    "lara_mini": [CONVOLUTION, DELTA],
    "kimi_linear": [CONVOLUTION, DELTA],
    "lfm2": [CONVOLUTION],
    "lfm2_moe": [CONVOLUTION],
    "lfm3": [CONVOLUTION],
    "mamba": [CONVOLUTION, SCAN],
    "falcon_mamba": [CONVOLUTION, SCAN],
    "mamba2": [CONVOLUTION, SCAN],
    "bamba": [CONVOLUTION, SCAN],
    "falcon_h1": [CONVOLUTION, SCAN],
    "granitemoehybrid": [CONVOLUTION, SCAN],
    "nemotron_h": [CONVOLUTION, SCAN],
    "jamba": [CONVOLUTION, SCAN],
    "zaya": [],
    "zamba2": [CONVOLUTION, SCAN],
}


@pytest.mark.parametrize("family", STATEFUL)
def test_what_would_make_each_family_faster_is_told(family: str) -> None:
    model = model_on_meta(make_config(family), torch.bfloat16)
    assert model.stateful is not None
    found = " ".join(package_kernels.notes(model.stateful.modules))
    assert [package for package in (CONVOLUTION, DELTA, SCAN) if package in found] == WANTED[family]
