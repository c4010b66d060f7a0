"""What of an executor's start needs no GPU, and what a spare does of it before it waits.

A CUDA context does not survive a fork. Not even the number of devices is asked of CUDA here; torch would then refuse to
use it in a fork. On a CPU the model itself is loaded, as it will be used: its forks share the weights.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from ...protocol.errors import InvalidRequest
from ...runtime.log import logger
from ...runtime.machine.memory import available
from ..options import ExecutorOptions
from ..text.grammars.grammar import GrammarCompiler, load_compiler
from .ahead import ReadAhead
from .devices.kinds import kind_of, uses_gpu

if TYPE_CHECKING:
    import torch

    from ...runtime.process.child import StartContext
    from .model.adapters.room import Room
    from .model.loading.load import Skeleton
    from .model.paged_model import PagedModel

ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",  # numpy would start threads, which a fork loses
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # what is imported may ask whether there is a GPU
}


ROOM = 3
"""Times the files of the weights: in float32 they are twice as large as files in bfloat16."""


KERNELS = (
    ".gpu",
    ".attention.triton_backend",
    ".keeping.cuda_memory",
    ".keeping.weights",
    ".model.fused.kernels",
    ".model.products.few_rows",
)
"""Modules of ours that an executor on a GPU needs."""


@dataclass(frozen=True)
class Prepared:
    """What a fork need not make again."""

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
        from .devices import emulated  # noqa: F401

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
                from .devices import cpu  # noqa: F401
                from .step import program  # noqa: F401
        model = skeleton = None
        if shares:
            torch.set_num_threads(1)  # a fork has no other threads, and would wait for them
            model = load_whole(context, options, torch.device("cpu"))
        else:
            import_model(options)
            skeleton = make_skeleton(options) if options.keeper else None
    return Prepared(load_grammars(context, options), model, skeleton)


def has_room(context: StartContext, options: ExecutorOptions) -> bool:
    """Whether weights can be loaded here too: while others serve, they are there twice until the next fork."""
    files = sum(file.stat().st_size for file in Path(options.model).glob("*.safetensors"))
    return not context.restarted or available() > ROOM * files


def import_model(options: ExecutorOptions) -> None:
    """The code of the model's class."""
    from .model.gate import causal_lm_class
    from .model.loading.load import load_config

    causal_lm_class(load_config(Path(options.model)))
    # How torch follows the shapes of tensors without memory, of which a model is made at first.
    import torch.fx.experimental.symbolic_shapes  # noqa: F401

    if options.tensor_parallel_size > 1:
        from .ranks import load  # noqa: F401


def import_kernels() -> None:
    """Those of a GPU, and what Triton does once a process; nothing of it asks for the GPU."""
    from triton.runtime import build
    from triton.runtime.cache import triton_key

    for module in KERNELS:
        import_module(module, __package__)
    triton_key()  # a hash of its own files, 0.35 s; entries of its cache have that hash
    build.platform_key()  # of what it has compiled for the host, by another program
    with suppress(ImportError):
        import_module("triton.experimental.gluon.nvidia.hopper")  # its first launch does, 0.12 s


def make_skeleton(options: ExecutorOptions) -> Skeleton:
    """The model without memory, as its folder says; one of another dtype will not be used."""
    import torch

    from .model.loading.language_model import language_model_config
    from .model.loading.load import load_config, skeleton_of

    config = load_config(Path(options.model))
    own = getattr(language_model_config(config), "dtype", None)
    dtype = (own or torch.float32) if options.dtype == "auto" else getattr(torch, options.dtype)
    return skeleton_of(config, dtype)


@contextmanager
def reading_ahead(options: ExecutorOptions) -> Iterator[None]:
    """The files of the weights come into memory meanwhile, if there are any."""
    ahead = None if options.load_format == "dummy" else ReadAhead(Path(options.model))
    try:
        yield
    finally:
        if ahead is not None:
            ahead.stop()


@contextmanager
def uncollected() -> Iterator[None]:
    """For imports: what they make stays. To look through it for cycles, again and again, is a fifth of their time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def load_grammars(context: StartContext, options: ExecutorOptions) -> GrammarCompiler | str:
    context.phase("load grammar vocabulary")
    return load_compiler(Path(options.model), options.vocab_size, options.eos_token_ids)


def load_whole(context: StartContext, options: ExecutorOptions, where: torch.device) -> PagedModel:
    """The model on its device, as it is served; with weights that are kept, if there are any."""
    from .keeping.weights import KeptWeights
    from .model.loading.load import load_model, make_model, nothing_around

    kept = KeptWeights(options.keeper) if options.keeper else None
    model, room = None, room_of(options, where)
    if kept is not None and context.restarted:
        context.phase("take weights over")
        model = kept.taken_over(
            options.model,
            where,
            backend_of(options, where),
            batch_invariant=options.batch_invariant,
            room=room,
            skeleton=skeleton_in(context),
        )
    if model is not None:
        return check_length(options, model)
    context.phase("load weights")
    model = (make_model if options.load_format == "dummy" else load_model)(
        options.model,
        device=where,
        dtype=options.dtype,
        attention_backend=backend_of(options, where),
        quantization=options.quantization,
        batch_invariant=options.batch_invariant,
        room=room,
        around=nothing_around if kept is None else kept.keeping,
    )
    return check_length(options, model)


def skeleton_in(context: StartContext) -> Skeleton | None:
    """That which the spare has made."""
    prepared: Prepared | None = context.prepared
    return None if prepared is None else prepared.skeleton


def room_of(options: ExecutorOptions, where: torch.device) -> Room | None:
    """For adapters in the weights themselves. On a CPU these have none: forks share what nothing ever writes to."""
    from .model.adapters.room import Room

    return (
        Room(options.max_loras, options.max_lora_rank) if options.max_loras and where.type == "cuda" else None
    )


def check_length(options: ExecutorOptions, model: PagedModel) -> PagedModel:
    if options.max_model_len > model.max_model_len:
        raise InvalidRequest(
            f"max_model_len={options.max_model_len} is over the {model.max_model_len} tokens that this model"
            " can be served with; lower --max-model-len"
        )
    return model


def backend_of(options: ExecutorOptions, where: torch.device) -> str:
    """The name of the attention backend that is asked for, or the device's own."""
    auto = options.attention_backend == "auto"
    return kind_of(where.type).attention if auto else options.attention_backend


def import_transformers(context: StartContext) -> None:
    """And the parts of it that models are made of."""
    context.phase("import transformers")
    import transformers

    from .model.unused import leave_out

    leave_out()
    from .model.loading import load  # noqa: F401

    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()  # it would be garbage in a log
    # It quotes what folders say: as in every line of ours, no control character reaches a terminal.
    transformers.logging.disable_default_handler()
    for handler in logger.handlers:
        transformers.logging.add_handler(handler)
