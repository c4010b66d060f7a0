"""Where Triton kernels are tested: on a CUDA device as they are, without one in Triton's interpreter.

The interpreter needs a process of its own: its switch must be set before ``triton`` is first imported and holds for the
whole process.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import math
import os
import subprocess
import sys
from typing import Any

import numpy as np
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


def look_once() -> None:
    """Let the interpreter look through Triton's language once.

    It does so for every call of a function within a kernel, to replace what it has replaced already: a third of the
    time of these tests.
    """
    from triton.language.core import is_builtin
    from triton.runtime import interpreter

    patch: Any = interpreter
    found: dict[Any, list[str]] = {}

    def patch_builtin(package: Any, builder: Any, scope: Any) -> None:
        if package not in found:
            members = inspect.getmembers(package)
            found[package] = [name for name, member in members if is_builtin(member)]
        for name in found[package]:
            member = getattr(package, name)
            if is_builtin(member):
                patch._patch_attr(package, name, member, builder, scope)

    assert callable(patch._patch_builtin), "Triton has changed: see what it does instead"
    patch._patch_builtin = patch_builtin


def check_overflow_in_numpy() -> None:
    """Let the interpreter find overflows of integers with three operations of numpy.

    It adds, subtracts and multiplies every time again in 64 bits of its own, with casts and comparisons: another third.
    """
    from triton.language.semantic import TritonSemantic

    operations = {"add": np.add, "sub": np.subtract, "mul": np.multiply}
    semantic: Any = TritonSemantic
    assert callable(semantic.binary_op_sanitize_overflow_impl), "Triton has changed: see what it does instead"

    def check(_: Any, left: Any, right: Any, operation: Any) -> None:
        kind = left.type.scalar
        if not 1 < kind.int_bitwidth < 64:
            return
        exact = operations[operation.__name__](left.handle.data, right.handle.data, dtype=np.int64)
        low, high = kind.get_int_min_value(), kind.get_int_max_value()
        assert exact.min() >= low, f"{kind}: {operation.__name__} gives {exact.min()}"
        assert exact.max() <= high, f"{kind}: {operation.__name__} gives {exact.max()}"

    semantic.binary_op_sanitize_overflow_impl = check


def make_shapes_once() -> None:
    """Let tensors of one shape share what is made of it: more than what is computed with small ones."""
    from triton.language import core

    tensor: Any = core.tensor
    assert {"shape", "numel"} <= set(tensor.__init__.__code__.co_names), (
        "Triton has changed: see what it does instead"
    )

    @functools.cache
    def shape_and_size(shape: tuple[int, ...]) -> tuple[Any, Any]:
        return core.tuple([core.constexpr(size) for size in shape]), core.constexpr(math.prod(shape))

    def init(self: Any, handle: Any, type: Any) -> None:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = shape_and_size(type.shape if type.is_block() else ())

    tensor.__init__ = init


if HAS_TRITON and INTERPRETED:
    look_once()
    check_overflow_in_numpy()
    make_shapes_once()


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
