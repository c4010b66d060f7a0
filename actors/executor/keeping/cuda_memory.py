"""Memory of a GPU that is a file, by the driver's functions for virtual memory.

Such memory lives as long as any process maps it or has its file open, also one without a device context: it outlives
the process that has made it, however that ended.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_int, c_size_t, c_uint64, c_void_p

import torch
from torch import Tensor

from ..devices.driver import Bytes, Driver

PINNED = 1
"""CU_MEM_ALLOCATION_TYPE_PINNED."""
FILE = 1
"""CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR."""
ON_DEVICE = 1
"""CU_MEM_LOCATION_TYPE_DEVICE."""
READ, READ_AND_WRITE = 1, 3
"""CU_MEM_ACCESS_FLAGS_PROT."""


class Location(ctypes.Structure):
    _fields_ = [("type", c_int), ("id", c_int)]


class Properties(ctypes.Structure):
    """CUmemAllocationProp."""

    _fields_ = [
        ("type", c_int),
        ("handle_types", c_int),
        ("location", Location),
        ("windows", c_void_p),
        ("flags", ctypes.c_ubyte * 8),
    ]


class Access(ctypes.Structure):
    """CUmemAccessDesc."""

    _fields_ = [("location", Location), ("flags", c_int)]


class CudaMemory:
    """Memory of a GPU, whose context is the current one."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.base = c_uint64(0)
        self.driver = Driver()
        self.location = Location(ON_DEVICE, index)
        self.properties = Properties(PINNED, FILE, self.location)
        torch.empty(1, device=torch.device("cuda", index))  # there is a context now
        granularity = c_size_t()
        self.driver("cuMemGetAllocationGranularity", byref(granularity), byref(self.properties), c_int(0))
        self.granularity = granularity.value

    def reserve(self, nbytes: int) -> None:
        nothing = c_uint64(0)
        self.driver("cuMemAddressReserve", byref(self.base), c_size_t(nbytes), c_size_t(0), nothing, nothing)

    def create(self, start: int, nbytes: int) -> int:
        torch.cuda.empty_cache()  # what was copied into the piece before gives its place to this one
        handle = c_uint64()
        self.driver("cuMemCreate", byref(handle), c_size_t(nbytes), byref(self.properties), c_uint64(0))
        file = c_int(-1)
        self.driver("cuMemExportToShareableHandle", byref(file), handle, c_int(FILE), c_uint64(0))
        self.map(start, nbytes, handle, READ_AND_WRITE)
        return file.value

    def open(self, start: int, nbytes: int, file: int, *, writable: bool) -> None:
        handle = c_uint64()
        self.driver("cuMemImportFromShareableHandle", byref(handle), c_void_p(file), c_int(FILE))
        self.map(start, nbytes, handle, READ_AND_WRITE if writable else READ)

    def map(self, start: int, nbytes: int, handle: c_uint64, flags: int) -> None:
        at = c_uint64(self.base.value + start)
        self.driver("cuMemMap", at, c_size_t(nbytes), c_size_t(0), handle, c_uint64(0))
        self.driver("cuMemRelease", handle)  # the mapping holds it
        self.allow(at, nbytes, flags)

    def allow(self, at: c_uint64, nbytes: int, flags: int) -> None:
        access = Access(self.location, flags)
        self.driver("cuMemSetAccess", at, c_size_t(nbytes), byref(access), c_size_t(1))

    def tensor(self, nbytes: int) -> Tensor:
        return torch.as_tensor(Bytes(self.base.value, nbytes), device=torch.device("cuda", self.index))

    def protect(self, nbytes: int) -> None:
        torch.cuda.empty_cache()  # of what was copied into the last piece
        torch.cuda.synchronize(self.index)
        self.allow(self.base, nbytes, READ)
