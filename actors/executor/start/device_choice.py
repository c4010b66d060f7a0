"""Chooses the device of an executor, and checks that it exists and supports the options."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ....protocol.errors import InvalidRequest, SlipstreamError
from ...options import ExecutorOptions


class DeviceLost(SlipstreamError):
    """The device on which the service has run cannot be used any more."""

    for_good = True
    hint = "look at the device (nvidia-smi, dmesg), then start the service again"


@contextmanager
def found_again(options: ExecutorOptions, torch: Any) -> Iterator[None]:
    """``DeviceLost`` where the device of the incarnation before is not there, or lets nobody use it."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise  # it is there, and full
    except (InvalidRequest, RuntimeError, AssertionError) as error:
        first = str(error).strip().splitlines()[0]
        raise DeviceLost(
            f"device {options.device!r} served until now and cannot be used any more: {first}"
        ) from error


def choose_device(options: ExecutorOptions, torch: Any) -> str:
    """``cpu`` or ``cuda:N``; InvalidRequest where that is not there, or does nothing with an option that was given."""
    name, available = options.device, torch.cuda.is_available()
    if name.startswith("cuda"):
        if not available:
            raise InvalidRequest(
                f"device={name!r}: torch {torch.__version__} sees no CUDA device; use --device cpu"
            )
        index = int(name.partition(":")[2] or 0)
        if index >= torch.cuda.device_count():
            raise InvalidRequest(
                f"device={name!r}: there are {torch.cuda.device_count()} CUDA devices, from cuda:0"
            )
        return check_fp8(options, device_of_rank(options, index, torch), torch)
    if name == "auto" and available:
        return check_fp8(options, device_of_rank(options, 0, torch), torch)
    if options.for_cuda_only:
        unused = options.for_cuda_only[0]
        raise InvalidRequest(
            f"{unused}={getattr(options, unused)} has no effect on the CPU,"
            f" and torch {torch.__version__} sees no CUDA device; leave out --{unused.replace('_', '-')}"
        )
    return "cpu"


FP8_CACHE = (8, 9)
"""The least compute capability of a GPU for which Triton compiles what reads and writes a cache in FP8."""


def check_fp8(options: ExecutorOptions, device: str, torch: Any) -> str:
    """The device; InvalidRequest if the cache is to be in FP8 and the GPU knows none."""
    if options.kv_cache_dtype == "fp8" and options.attention_backend != "torch":
        found = torch.cuda.get_device_capability(device)
        if found < FP8_CACHE:
            raise InvalidRequest(
                f"kv_cache_dtype='fp8': {device} has compute capability {found[0]}.{found[1]}, and FP8 needs"
                f" {FP8_CACHE[0]}.{FP8_CACHE[1]} (Ada, Hopper) or higher; leave out --kv-cache-dtype"
            )
    return device


def device_of_rank(options: ExecutorOptions, first: int, torch: Any) -> str:
    """Each rank has the next device, from ``first`` on."""
    ranks, devices = options.tensor_parallel_size, torch.cuda.device_count()
    if first + ranks > devices:
        from_there = f", {devices - first} of them from cuda:{first} on" if first else ""
        raise InvalidRequest(
            f"tensor_parallel_size={ranks}: each rank needs a device of its own, and torch sees {devices} CUDA"
            f" device{'s' if devices > 1 else ''}{from_there}"
        )
    return f"cuda:{first + options.rank}"


def stated_index(options: ExecutorOptions) -> int | None:
    """The index of this rank's GPU as far as the options state it; None: torch has to be asked."""
    name, _, index = options.device.partition(":")
    return int(index or 0) + options.rank if name == "cuda" else None
