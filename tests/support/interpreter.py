"""Where Triton kernels are tested: on a CUDA device as they are, without one in Triton's interpreter.

The interpreter needs a process of its own: its switch must be set before ``triton`` is first imported and holds for the
whole process.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
KERNELS_RUN = HAS_TRITON and (INTERPRETED or torch.cuda.is_available())
"""The kernels run in this process."""
DEVICE = torch.device("cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu")

needs_kernels = pytest.mark.skipif(not KERNELS_RUN, reason="needs a GPU or the interpreter")
needs_interpreter = pytest.mark.skipif(
    KERNELS_RUN or not HAS_TRITON, reason="the tests below run in this process, or triton is not installed"
)


def run_interpreted(file: str) -> None:
    """Run the tests of ``file`` in Triton's interpreter; none of them may fail, and some must pass."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "-x", file],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout
