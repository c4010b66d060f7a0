"""Kernels that combine two numbers of 32 bits, for what is said of an overflow."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


@triton.jit
def add(numbers, result, other, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    tl.store(result + at, tl.load(numbers + at) + other)


@triton.jit
def sub(numbers, result, other, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    tl.store(result + at, tl.load(numbers + at) - other)


@triton.jit
def mul(numbers, result, other, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    tl.store(result + at, tl.load(numbers + at) * other)


KERNELS: dict[str, Any] = {"add": add, "sub": sub, "mul": mul}
