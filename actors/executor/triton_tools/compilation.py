"""Triton's kernels compiled side by side, before anything waits for one of them."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

MAX_AT_ONCE = 16
"""There are some twenty kernels; the assembler of each is a process of its own."""


UNWRITTEN = (torch.ops.aten.empty, torch.ops.aten.empty_like, torch.ops.aten.empty_strided)
UNWRITTEN += (torch.ops.aten.new_empty, torch.ops.aten.new_empty_strided)
"""What makes a tensor that has whatever was in memory."""


class Zeroed(TorchDispatchMode):
    """New tensors are zero: a token or a block that no kernel has written would be an index out of bounds, which ends
    the GPU's context."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        return made.zero_() if func.overloadpacket in UNWRITTEN else made


@contextmanager
def without_collection() -> Iterator[None]:
    """No garbage is collected: in Python 3.11 a thread that parses, as Triton does what it compiles, loses count when a
    finalizer lets another one parse (``SystemError: AST constructor recursion depth mismatch``)."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def compile_ahead(device: torch.device, work: Callable[[], object]) -> None:
    """Compile what ``work`` would launch on ``device``, all kernels at once; nothing on a CPU.

    ``work`` runs, with everything that torch computes, but without Triton's kernels. The outputs of these are zeros,
    which are valid as indices; its results must not be read.
    """
    if device.type != "cuda":
        return
    import triton  # it comes with torch where there is a GPU

    kernels: Any = triton.JITFunction

    def compiled_alone(kernel: Any, grid: Any) -> Callable[..., Any]:
        return lambda *given, **named: kernel.warmup(*given, grid=grid, **named)

    def all_at_once() -> None:
        threads = ThreadPoolExecutor(min(MAX_AT_ONCE, os.cpu_count() or 1))
        # The end of the third waits for all kernels.
        with without_collection(), threads, triton.AsyncCompileMode(threads), Zeroed():
            kernels.__getitem__ = compiled_alone  # ``kernel[grid]``, by which every launch begins
            try:
                work()
            finally:
                del kernels.__getitem__

    # In a context of its own: Triton 3.6 leaves the mode on where a kernel did not compile, and could begin no other.
    copy_context().run(all_at_once)


def some_are_compiled(device: torch.device) -> bool:
    """Whether Triton's cache has kernels for ``device``; if somebody has emptied it, all are compiled again."""
    if device.type != "cuda":
        return True
    from triton import knobs

    return os.path.isdir(knobs.cache.dir) and bool(os.listdir(knobs.cache.dir))
