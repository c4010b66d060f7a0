"""NVIDIA's driver, by its own functions: for memory that torch does not give."""

from __future__ import annotations

import ctypes
from ctypes import byref
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
