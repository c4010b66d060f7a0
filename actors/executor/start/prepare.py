"""The part of an executor's start that needs no GPU, which a spare does before it waits.

A CUDA context does not survive a fork. Not even the number of devices is asked of CUDA here; torch would then refuse to
use it in a fork. On a CPU the model itself is loaded, as it will be used: its forks share the weights.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ....runtime.machine.memory import available
from ...checkpoint import safetensors_in
from ...options import ExecutorOptions
from ...text.grammars.grammar import GrammarCompiler
from ..devices.kinds import uses_gpu
from .imports import import_kernels, import_model, import_transformers, uncollected
from .load_folder import load, load_grammars, make_skeleton
from .read_ahead import reading_ahead

if TYPE_CHECKING:
    from ....runtime.process.child import StartContext
    from ..model.loading.load import Skeleton
    from ..model.paged_model import PagedModel

ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",  # numpy would start threads, which a fork loses
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # what is imported may ask whether there is a GPU
}


MEMORY_PER_FILE = 3
"""Bytes of free memory for each byte of the weights' files: in float32 weights are twice as large as files in bfloat16,
and a third of that is left for the rest."""


@dataclass(frozen=True)
class Prepared:
    """The things that a fork gets from its spare."""

    compiler: GrammarCompiler | str
    model: PagedModel | None = None
    """On a CPU, where one process is the whole executor, and where there is memory for it."""
    skeleton: Skeleton | None = None
    """Where weights are kept: what a fork gives them to."""


def prepare(context: StartContext) -> Prepared:
    """Import what an executor with these options needs, and load what forks can share."""
    options = context.options_as(ExecutorOptions)
    os.environ.update(ENVIRONMENT)
    if options.device == "emulated":
        from ..devices import emulated  # noqa: F401
        from ..step import emulated_runner  # noqa: F401

        return Prepared(load_grammars(context, options))
    gpu = uses_gpu(options.device)
    alone = options.tensor_parallel_size == 1
    shares = not gpu and alone and not options.keeper and has_room(context, options)
    with reading_ahead(options) if shares else nullcontext():
        with uncollected():
            context.phase("import torch")
            import torch

            import_transformers(context)
            if gpu:
                import_kernels()
            else:
                from ..devices import cpu  # noqa: F401
                from ..step import model_runner  # noqa: F401
        model = skeleton = None
        if shares:
            torch.set_num_threads(1)  # a fork has no other threads, and would wait for them
            model = load(context, options, torch.device("cpu"))
        else:
            import_model(options)
            skeleton = make_skeleton(options) if options.keeper else None
    return Prepared(load_grammars(context, options), model, skeleton)


def has_room(context: StartContext, options: ExecutorOptions) -> bool:
    """Whether weights can be loaded here too: while others serve, they are there twice until the next fork."""
    files = sum(file.stat().st_size for file in safetensors_in(Path(options.model)))
    return not context.restarted or available() > MEMORY_PER_FILE * files
