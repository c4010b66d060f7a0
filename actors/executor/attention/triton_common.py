"""What several Triton kernels of attention use: which arguments vary, how sizes are padded, what a window hides."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..triton_tools.kernel import jit

STEP_INPUTS = ["rows", "kv_lens", "query_start", "write_index", "block_table"]
"""Views into a step's packed inputs, at any offset. By default Triton compiles a kernel anew for another
alignment of a pointer, which would be in the middle of serving."""


MIN_BYTES = 64
"""Values of 8-bit numbers are padded to so many where they are not read in pairs. With 32, and keys of 64 or more, what
Triton 3.6 compiles for an H200 reads beyond its shared memory (``compute-sanitizer``: an invalid read in the product of
queries and keys)."""


def pad(size: int) -> int:
    """The matrix unit takes powers of two, from 16."""
    return max(16, triton.next_power_of_2(size))


def pad_value(size: int, values: Tensor) -> int:
    """As `pad`, for a value as it is read from the cache ``values``."""
    return pad(size) if values.itemsize > 1 else max(pad(size), MIN_BYTES)


@jit
def first_seen(position, WINDOW: tl.constexpr, CHUNKED: tl.constexpr):
    """The first key that a query at ``position`` sees: the first of the last ``WINDOW`` keys; or, if ``CHUNKED``, the
    first of its chunk, where the text is cut into chunks of ``WINDOW`` keys."""
    return position // WINDOW * WINDOW if CHUNKED else tl.maximum(position - WINDOW + 1, 0)
