"""What the Triton kernels share: how they are declared, and how they follow one another on the device.

A kernel that is launched with ``**FOLLOWING`` may be put on the multiprocessors while the one before it on the stream
ends (*programmatic dependent launch*, from Hopper on; captured graphs keep it). Such a kernel begins with
``wait_for_kernel_before()``, before it reads or writes anything. All kernels do, so that what any earlier one wrote is
there. Only weights may be read sooner: no kernel of a step writes them, and those of an adapter are there before the
first step that needs them is launched; what an earlier one reads of them meanwhile it leaves out. It saved 1 to 3 % of
a decode step on an H200 (8B and 1.5B), which has hundreds of kernels.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import triton
import triton.language as tl

from .nvml import least_capability

jit: Any = triton.jit
"""Untyped, because a kernel is launched with more than it declares: a grid, warps, stages."""


def _overlaps() -> bool:
    """Whether the device overlaps the end of a kernel with the beginning of the next.

    A spare imports this, so that CUDA cannot be asked: it would refuse to work in a fork.
    """
    if os.environ.get("TRITON_INTERPRET") == "1" or torch.version.hip or not torch.cuda.is_available():
        return False
    return least_capability() >= (9, 0)


PTX = tl.constexpr(os.environ.get("TRITON_INTERPRET") != "1" and not torch.version.hip)
"""Whether kernels can hold NVIDIA's assembly: the interpreter and other devices have the same in Triton's own words."""


OVERLAP = tl.constexpr(_overlaps())
FOLLOWING: dict[str, Any] = {"launch_pdl": True} if OVERLAP.value else {}
"""Further arguments of every launch."""


@jit
def wait_for_kernel_before():
    """Wait until the kernel before this one on the stream has ended."""
    if OVERLAP:
        tl.extra.cuda.gdc_wait()  # type: ignore[attr-defined]


@jit
def let_kernel_after_begin():
    """The next kernel on the stream may take the places that are free.

    Only after ``wait_for_kernel_before()``: the next one waits for this one, and for nothing before it. Of use where
    that is one of ours, and where its waiting programs take no place from this kernel's own.
    """
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()  # type: ignore[attr-defined]
