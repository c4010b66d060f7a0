"""Reads properties of GPUs from NVIDIA's management library, without a device context: none outlives a fork."""

from __future__ import annotations

import ctypes


def least_capability() -> tuple[int, int]:
    """The lowest compute capability of the GPUs of this machine; (0, 0) where that is not known."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return 0, 0
    if library.nvmlInit_v2():
        return 0, 0
    try:
        count = ctypes.c_uint(0)
        library.nvmlDeviceGetCount_v2(ctypes.byref(count))
        return min((capability(library, index) for index in range(count.value)), default=(0, 0))
    finally:
        library.nvmlShutdown()


def capability(library: ctypes.CDLL, index: int) -> tuple[int, int]:
    device, major, minor = ctypes.c_void_p(), ctypes.c_int(0), ctypes.c_int(0)
    if library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)):
        return 0, 0
    if library.nvmlDeviceGetCudaComputeCapability(device, ctypes.byref(major), ctypes.byref(minor)):
        return 0, 0
    return major.value, minor.value
