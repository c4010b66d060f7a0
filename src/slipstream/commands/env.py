"""``slipstream env``: versions, extras and devices; with --model, whether it is supported and what it needs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .. import __version__
from ..exit_codes import DONE, FAILED, USAGE
from .common import Exit, Run
from .extras import EXTRAS, missing, need

if TYPE_CHECKING:
    from ..actors.executor.model.loading.estimate import Estimate
    from ..options.serve import ServeOptions

PACKAGES = (
    "pyzmq",
    "msgpack",
    "msgspec",
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "uvloop",
    "starlette",
)

SIZING = ("dtype", "kv_cache_dtype", "max_model_len", "max_num_seqs", "block_size")
"""Options of ``serve`` on which the memory depends."""


def declare(parser: argparse.ArgumentParser) -> Run:
    from ..options.serve import ServeOptions
    from ..runtime.options.command_line import add_arguments
    from ..runtime.options.sources import resolve

    parser.add_argument(
        "--model",
        metavar="M",
        help="a local folder or a hub name; its weights are neither read nor fetched."
        " The exit code is 0 if it is supported, 4 if it is not",
    )
    add_arguments(parser, ServeOptions, only=SIZING)

    def run(found: argparse.Namespace) -> int:
        given = {name: value for name in SIZING if (value := getattr(found, name)) is not None}
        if found.model is None and given:
            raise Exit(USAGE, f"--{next(iter(given)).replace('_', '-')} has no effect without --model M")
        show_place()
        if found.model is None:
            return DONE
        need("env --model", "engine")
        return check_model(found.model, resolve(ServeOptions, arguments=given).options)

    return run


def show_place() -> None:
    """Show the versions and devices of this machine."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import zmq

    show("slipstream", __version__)
    show("python", f"{platform.python_version()} on {platform.platform()}")
    for package in PACKAGES:
        try:
            show(package, version(package))
        except PackageNotFoundError:
            show(package, "-")
    show("libzmq", zmq.zmq_version())
    for extra in EXTRAS:
        lacking = missing(extra)
        show(f"extra {extra}", f"lacks {', '.join(lacking)}" if lacking else "installed")
    for line in devices():
        show("device", line)


def show(name: str, value: str) -> None:
    print(f"{name:<12} {value}")


def devices() -> list[str]:
    if missing("engine"):
        return ["unknown without the extra engine"]
    import torch

    found = [f"cpu, {torch.get_num_threads()} threads"]
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        found.append(f"cuda:{number}, {about.name}, {in_bytes(about.total_memory)}")
    return found


def check_model(model: str, options: ServeOptions) -> int:
    """Whether a model is supported as far as its folder shows, why not, and what memory it takes."""
    from ..actors.executor.model.skipped_imports import skip_imports

    skip_imports()
    from ..actors.checkpoint import open_checkpoint
    from ..actors.executor.model.loading.estimate import estimate
    from ..protocol.errors import ModelNotSupported
    from ..serving.model_folder import check_files, check_length, describe

    try:
        checkpoint = open_checkpoint(model, ["*.json", "*.jinja"])
        found = estimate(checkpoint.folder, options.dtype, options.kv_cache_dtype)
        describe(options, checkpoint)
        lacking = check_files(checkpoint)
    except ModelNotSupported as refused:
        show("model", f"{model}: not supported: {refused}")
        return FAILED
    limit = checkpoint.max_model_len or (options.max_model_len and found.max_model_len)
    length = options.max_model_len or limit
    if length is not None:
        check_length(length, limit)
    show(
        "model",
        f"{model}: supported by its configuration, type {found.model_type!r}; the weights are checked at load",
    )
    if found.left_out:
        parts = " and ".join(found.left_out)
        show("text", f"the language model alone, without {parts}; a picture in a request is an error")
    for name in lacking:
        show("lacks", f"{name}: a service needs it")
    show_parts(found)
    size, each = options.block_size, f"{in_bytes(found.kv_bytes_per_token)} for each token"
    if length is None:
        show("cache", each)
        show("length", "config.json states none: give --max-model-len, and to serve as well")
        return DONE
    show("cache", f"{each}, {in_bytes(found.cache_bytes(length, size))} for a request of {length:,}")
    together, one = found.bytes_for(options.max_num_seqs, length, size), found.bytes_for(1, length, size)
    show("together", f"{in_bytes(together)} for {options.max_num_seqs} requests of {length:,} tokens at once")
    show("", f"{in_bytes(one)} at the least, for one of them at a time")
    return DONE


def show_parts(found: Estimate) -> None:
    """Show the memory that a model takes on a device; activations and CUDA graphs come on top."""
    show("weights", f"{in_bytes(found.weight_bytes)}: {found.parameters:,} parameters in {found.dtype}")
    if found.stored:
        show("quantized", found.stored)
    elif found.quantized_bytes:
        in_8_bits = in_bytes(found.quantized_bytes)
        show("quantized", f"no; with --quantization fp8 or int8 its weights take {in_8_bits} on a GPU")
    else:
        show("quantized", "no, and it has no layers that --quantization is for")
    for line in found.notes:
        show("states", line)
    show("adapters", found.adapters)
    show("graphs", found.graphs)
    show("ranks", found.ranks)
    show("invariant", f"--batch-invariant: {found.invariant}")


def in_bytes(count: int) -> str:
    """``14.96 GiB``."""
    size, unit = float(count), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.4g} {unit}"
