"""Functions that several Triton kernels use."""

from __future__ import annotations

import triton

STEP_INPUTS = ["rows", "kv_lens", "query_start", "write_index", "block_table"]
"""Views into a step's packed inputs, at any offset. By default Triton compiles a kernel anew for another
alignment of a pointer, which would be in the middle of serving."""


def pad(size: int) -> int:
    """The matrix unit takes powers of two, from 16."""
    return max(16, triton.next_power_of_2(size))
