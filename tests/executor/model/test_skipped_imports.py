"""An executor imports transformers without torch's compiler and divided tensors; both are there for who needs them."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

PROGRAM = """
import json, sys, time
from pathlib import Path
from slipstream.actors.executor.start.imports import import_transformers
from slipstream.runtime.process.child import ProcessStart

import_transformers(ProcessStart({}))
import torch
from slipstream.actors.executor.model.loading.load import load_model
from slipstream.serving.service import BUNDLED_MODEL

model = load_model(str(BUNDLED_MODEL), device=torch.device("cpu"))
from slipstream.actors.executor.ranks.rendezvous import meet
meet(0, 1, sys.argv[1], torch.device("cpu"))
modules = sorted(sys.modules)

@torch.compile(backend="eager")
def doubled(tensor):
    return tensor * 2

@torch.compiler.disable
def never_compiled(tensor):
    return tensor + 1

compiled = (doubled(torch.ones(2)) + never_compiled(torch.ones(2))).tolist()
import torch._dynamo.eval_frame
same = torch._dynamo is sys.modules["torch._dynamo"]
from torch.distributed.tensor import DTensor
print(json.dumps([modules, compiled, same, torch._dynamo.config.cache_size_limit, DTensor.__name__]))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    met = str(tmp_path_factory.mktemp("ranks") / "met")
    done = subprocess.run([sys.executable, "-c", PROGRAM, met], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.rest
def test_a_model_is_loaded_and_ranks_meet_without_what_no_executor_uses(found: list[Any]) -> None:
    modules = set(found[0])
    assert "transformers.modeling_utils" in modules
    unused = {
        "torch._dynamo.eval_frame",
        "torch._inductor",
        "torch.distributed.tensor",
        "torch.distributed.fsdp",
    }
    assert not modules & unused


@pytest.mark.rest
def test_who_compiles_or_divides_gets_torch_s_own(found: list[Any]) -> None:
    compiled, same, limit, name = found[1:]
    assert compiled == [4.0, 4.0]
    assert same
    assert limit > 0
    assert name == "DTensor"
