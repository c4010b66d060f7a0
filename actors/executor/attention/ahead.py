"""Triton's kernels compiled side by side, before anything waits for one of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

MOST_AT_ONCE = 16
"""There are some twenty kernels; the assembler of each is a process of its own."""


def compile_ahead(device: torch.device, work: Callable[[], object]) -> None:
    """Compile what ``work`` would launch on ``device``, all kernels at once; nothing on a CPU.

    ``work`` runs, with everything that torch computes, but no kernel of Triton's does: what it would have written
    is whatever was in memory. So ``work`` must not use that as an index, and what it leaves must not be read.
    """
    if device.type != "cuda":
        return
    import triton  # it comes with torch where there is a GPU

    kernels: Any = triton.JITFunction

    def compiled_alone(kernel: Any, grid: Any) -> Callable[..., Any]:
        return lambda *given, **named: kernel.warmup(*given, grid=grid, **named)

    threads = ThreadPoolExecutor(min(MOST_AT_ONCE, os.cpu_count() or 1))
    with threads, triton.AsyncCompileMode(threads):  # its end waits for all of them
        kernels.__getitem__ = compiled_alone  # ``kernel[grid]``, by which every launch begins
        try:
            work()
        finally:
            del kernels.__getitem__
