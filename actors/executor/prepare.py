"""What a spare executor does before it waits: all imports, and nothing on a device.

A CUDA context does not survive a fork. Not even the number of devices is asked of CUDA here; torch would then refuse to
use it in a fork.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..options import ExecutorOptions
from .devices.kinds import uses_gpu

if TYPE_CHECKING:
    from ...runtime.process.child import StartContext

ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",  # numpy would start threads, which a fork loses
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # what is imported may ask whether there is a GPU
}


def prepare(context: StartContext) -> None:
    """Import what an executor with these options needs."""
    options = context.options_as(ExecutorOptions)
    os.environ.update(ENVIRONMENT)
    if options.device == "emulated":
        from .devices import emulated  # noqa: F401

        return
    context.phase("import torch")
    import torch  # noqa: F401

    import_transformers(context)
    from .model.gate import causal_lm_class
    from .model.load import load_config

    causal_lm_class(load_config(Path(options.model)))  # imports its code
    if options.tensor_parallel_size > 1:
        from .ranks import load  # noqa: F401
    if uses_gpu(options.device):
        from . import gpu  # noqa: F401
        from .attention import triton_backend  # noqa: F401
    else:
        from .devices import cpu  # noqa: F401
        from .step import program  # noqa: F401


def import_transformers(context: StartContext) -> None:
    """And the parts of it that models are made of."""
    context.phase("import transformers")
    import transformers

    from .model import load  # noqa: F401

    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()  # it would be garbage in a log
