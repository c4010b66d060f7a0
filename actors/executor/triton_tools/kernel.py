"""Declares Triton kernels, and lets one begin on the device before the one before it has ended.

A kernel that is launched with ``**FOLLOWING`` may be put on the multiprocessors while the one before it on the stream
ends (*programmatic dependent launch*, from Hopper on; captured graphs keep it). It calls ``follow()``, which waits for
the kernel before, before it writes anything or reads what another kernel has written. Since every kernel does so, the
results of all earlier ones are there too. Only weights may be read sooner: no kernel of a step writes them. Those of an
adapter are written before the first step that needs them is launched; an earlier step that reads them meanwhile does
not use them.

On an H200 a decode step of an 8B model has hundreds of kernels; this takes 5 to 10 % of it away.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import triton
import triton.language as tl

from ..devices.nvml import least_capability

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
def let_kernel_after_begin():
    """The next kernel on the stream may take places that are free, once all programs of this one have theirs."""
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()  # type: ignore[attr-defined]


@jit
def wait_for_kernel_before():
    """Wait until the kernel before this one on the stream has ended."""
    if OVERLAP:
        tl.extra.cuda.gdc_wait()  # type: ignore[attr-defined]


@jit
def follow():
    """The beginning of a kernel that has nothing to do until the one before it has ended."""
    let_kernel_after_begin()
    wait_for_kernel_before()
