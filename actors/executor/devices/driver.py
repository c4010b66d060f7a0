"""NVIDIA's driver, by its own functions: for memory that torch does not give."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_int, c_uint, c_void_p
from typing import Any

from ....protocol.errors import SlipstreamError


class Driver:
    """The functions of ``libcuda``; SlipstreamError, with its name for the error, where one fails."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL("libcuda.so.1")

    def __call__(self, function: str, *arguments: Any) -> None:
        status = getattr(self.library, function)(*arguments)
        if status:
            name = ctypes.c_char_p()
            self.library.cuGetErrorName(status, byref(name))
            raise SlipstreamError(f"{function}: {name.value.decode() if name.value else status}")


def make_context(index: int) -> None:
    """Have the context of a device that all of this process use. The interpreter is free meanwhile."""
    driver, device = Driver(), c_int()
    driver("cuInit", c_uint(0))
    driver("cuDeviceGet", byref(device), c_int(index))
    driver("cuDevicePrimaryCtxRetain", byref(c_void_p()), device)  # it is never given back


class Bytes:
    """Addresses on a device, as torch takes them in."""

    def __init__(self, address: int, nbytes: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (address, False),
            "strides": None,
            "version": 3,
        }
