"""Functions that several Triton kernels use."""

from __future__ import annotations

import triton
from torch import Tensor

STEP_INPUTS = ["rows", "kv_lens", "query_start", "write_index", "block_table"]
"""Views into a step's packed inputs, at any offset. By default Triton compiles a kernel anew for another
alignment of a pointer, which would be in the middle of serving."""


LEAST_BYTES = 64
"""Values of 8-bit numbers are padded to so many where they are not read in pairs. With 32, and keys of 64 or more, what
Triton 3.6 compiles for an H200 reads beyond its shared memory (``compute-sanitizer``: an invalid read in the product of
queries and keys)."""


def pad(size: int) -> int:
    """The matrix unit takes powers of two, from 16."""
    return max(16, triton.next_power_of_2(size))


def pad_value(size: int, values: Tensor) -> int:
    """As `pad`, for a value as it is read from the cache ``values``."""
    return pad(size) if values.itemsize > 1 else max(pad(size), LEAST_BYTES)
