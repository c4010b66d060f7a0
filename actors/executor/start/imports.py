"""The imports of an executor, which take most of its start, and their settings."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from ....runtime.log import logger
from ...options import ExecutorOptions
from .device_choice import choose_device, found_again, stated_index
from .wake_gpu import wake

if TYPE_CHECKING:
    import torch

    from ....runtime.process.child import StartContext

KERNELS = (
    ".gpu",
    "..attention.triton_backend",
    "..keeping.cuda_memory",
    "..keeping.weights",
    "..model.fused.triton_operations",
    "..model.products.few_rows",
)
"""Modules of ours that an executor on a GPU needs."""


def import_model(options: ExecutorOptions) -> None:
    """The code of the model's class."""
    from ..model.loading.load import load_config
    from ..model.support import causal_lm_class

    causal_lm_class(load_config(Path(options.model)))
    # How torch follows the shapes of tensors without memory, of which a model is made at first.
    import torch.fx.experimental.symbolic_shapes  # noqa: F401

    if options.tensor_parallel_size > 1:
        from ..ranks import shard_loading  # noqa: F401


def import_kernels() -> None:
    """Import the kernels of a GPU, and have Triton do what it does once a process; nothing of it asks for the GPU."""
    from triton.runtime import build
    from triton.runtime.cache import triton_key

    for module in KERNELS:
        import_module(module, __package__)
    triton_key()  # a hash of its own files, 0.35 s; entries of its cache have that hash
    build.platform_key()  # of what it has compiled for the host, by another program
    with suppress(ImportError):
        import_module("triton.experimental.gluon.nvidia.hopper")  # its first launch does, 0.12 s


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage is collected while modules are imported, since what they make stays. To look through it for cycles,
    again and again, is a fifth of their time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def import_transformers(context: StartContext) -> None:
    """And the parts of it that models are made of."""
    context.phase("import transformers")
    import transformers

    from ..model.skipped_imports import skip_imports

    skip_imports()
    from ..model.loading import load  # noqa: F401

    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()  # it would be garbage in a log
    # It quotes what folders say: as in every line of ours, no control character reaches a terminal.
    transformers.logging.disable_default_handler()
    for handler in logger.handlers:
        transformers.logging.add_handler(handler)


@uncollected()
def import_libraries(context: StartContext, options: ExecutorOptions) -> torch.device:
    """Import what is slow, set it up, and say where the model runs."""
    context.phase("import torch")
    stated = stated_index(options)
    waking = None if stated is None else wake(stated)
    import torch

    with found_again(options, torch) if context.restarted else nullcontext():
        where = torch.device(choose_device(options, torch))
    if where.type == "cpu":
        cores = (os.cpu_count() or 2) - 1  # one core is for the other actors
        torch.set_num_threads(max(1, cores // options.tensor_parallel_size))
    elif waking is None:
        waking = wake(where.index or 0)
    import_transformers(context)
    if where.type == "cuda":
        if context.restarted and waking is not None:
            context.phase("make context")
            waking.join()
            with found_again(options, torch):
                torch.empty(1, device=where)
                torch.cuda.synchronize(where)
        torch.cuda.set_device(where)  # Triton launches where the current device is
    return where
