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
from collections.abc import Sequence
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
    """Let the interpreter look through Triton's language once, and replace its functions once a kernel.

    It does both for every call of a function within a kernel, where all is replaced already: half of the time of these
    tests.
    """
    from triton.language.core import is_builtin
    from triton.runtime import interpreter

    patch: Any = interpreter
    found: dict[Any, list[str]] = {}
    whole = patch._patch_lang

    def patch_builtin(package: Any, builder: Any, scope: Any) -> None:
        if package not in found:
            members = inspect.getmembers(package)
            found[package] = [name for name, member in members if is_builtin(member)]
        for name in found[package]:
            member = getattr(package, name)
            if is_builtin(member):
                patch._patch_attr(package, name, member, builder, scope)

    def patch_lang(function: Any) -> Any:
        languages = [value for value in function.__globals__.values() if value in (patch.tl, patch.tl.core)]
        if languages and all(language.static_print is print for language in languages):
            return patch._LangPatchScope()  # with nothing in it to restore
        return whole(function)

    assert callable(patch._patch_builtin), "Triton has changed: see what it does instead"
    assert "static_print" in patch._patch_lang_core.__code__.co_consts, (
        "Triton has changed: see what it replaces"
    )
    patch._patch_builtin = patch_builtin
    patch._patch_lang = patch_lang


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
    from triton._utils import validate_block_shape
    from triton.language import core

    changed = "Triton has changed: see what it does instead"
    tensor: Any = core.tensor
    block: Any = core.block_type
    assert {"shape", "numel"} <= set(tensor.__init__.__code__.co_names), changed
    assert {"element_ty", "shape", "numel", "name"} <= set(block.__init__.__code__.co_names), changed

    @functools.cache
    def shape_and_size(shape: tuple[int, ...]) -> tuple[Any, Any]:
        return core.tuple([core.constexpr(size) for size in shape]), core.constexpr(math.prod(shape))

    def init(self: Any, handle: Any, type: Any) -> None:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = type.shape_and_size if type.is_block() else shape_and_size(())

    tensor.__init__ = init

    @functools.cache
    def of_block(sizes: tuple[int, ...]) -> tuple[Any, int, Any]:
        if not sizes:
            raise TypeError("0d block_type is forbidden")
        shape = core.tuple(sizes)
        return shape, validate_block_shape(list(sizes)), shape_and_size(sizes)

    def init_block(self: Any, element_ty: Any, shape: Any) -> None:
        sizes = tuple(plain(size) for size in plain(shape))
        self.element_ty = element_ty
        self.shape, self.numel, self.shape_and_size = of_block(sizes)

    block.__init__ = init_block
    block.name = property(lambda self: f"<{self.shape}, {self.element_ty}>")

    def plain(value: Any) -> Any:
        return value.value if isinstance(value, core.constexpr) else value


def compare_at_once() -> None:
    """Let types and shapes be compared without unwrapping what is the same or plain."""
    from triton.language import core

    dtype: Any = core.dtype
    sequence: Any = core.tuple
    same_type, same_shape = dtype.__eq__, sequence.__eq__
    true, false = core.constexpr(True), core.constexpr(False)

    def is_type(self: Any, other: Any) -> bool:
        return self is other or same_type(self, other)

    def is_shape(self: Any, other: Any) -> Any:
        if self is other:
            return true
        others = other.values if isinstance(other, sequence) else other
        if isinstance(others, list) and all(type(value) is int for value in (*self.values, *others)):
            return true if self.values == others else false
        return same_shape(self, other)

    dtype.__eq__ = is_type
    sequence.__eq__ = is_shape


def combine_at_once() -> None:
    """Let tensors of one shape be combined as they are, and the type of a result be found once for each two types."""
    from triton.language.semantic import TritonSemantic

    semantic: Any = TritonSemantic
    broadcast, computed = semantic.broadcast_impl_value, semantic.computation_type_impl
    found: dict[tuple[Any, ...], Any] = {}

    def broadcast_impl_value(self: Any, left: Any, right: Any) -> Any:
        if left.type.is_block() and right.type.is_block() and left.type.shape is right.type.shape:
            return left, right
        return broadcast(self, left, right)

    def computation_type_impl(
        self: Any, left: Any, is_left: bool, right: Any, is_right: bool, divides: bool
    ) -> Any:
        kinds = (left.name, is_left, right.name, is_right, divides)
        if kinds not in found:
            found[kinds] = computed(self, left, is_left, right, is_right, divides)
        return found[kinds]

    semantic.broadcast_impl_value = broadcast_impl_value
    semantic.computation_type_impl = computation_type_impl


def find_dtypes_once() -> None:
    """Let the table of numpy's dtypes not be made anew for each look into it."""
    from triton.runtime import interpreter

    patch: Any = interpreter
    look = patch._get_np_dtype
    found: dict[str, Any] = {}

    def get_np_dtype(of: Any) -> Any:
        scalar = of.scalar
        if scalar.is_ptr():
            return np.dtype(np.uint64)
        if scalar.name not in found:
            found[scalar.name] = look(scalar)
        return found[scalar.name]

    assert callable(look), "Triton has changed: see what it does instead"
    patch._get_np_dtype = get_np_dtype


if HAS_TRITON and INTERPRETED:
    look_once()
    check_overflow_in_numpy()
    make_shapes_once()
    compare_at_once()
    combine_at_once()
    find_dtypes_once()


def run_interpreted(file: str, selection: Sequence[str] = ()) -> None:
    """Run the tests of ``file`` in Triton's interpreter; none of them may fail, and some must pass.

    ``selection``: the fixture of this name, where some of them are left out of ``make test``.
    """
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-x", *selection, file],
        env=os.environ
        | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout
