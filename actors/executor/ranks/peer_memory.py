"""Memory of a GPU that the other ranks write to, by the driver's handles for other processes.

A handle is a few bytes, and nothing else has to go between the ranks. Whoever opens one reaches the memory from its own
GPU, where the hardware has a way from one to the other. It is freed when all that have it have ended.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_size_t, c_uint, c_uint64

import torch
from torch import Tensor

from ..devices.driver import Bytes, Driver

HANDLE_BYTES = 64
"""CU_IPC_HANDLE_SIZE."""
REACH_PEERS = 1
"""CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS."""
GRANULE = 2 << 20
"""Bytes in units of which CUDA shares memory: a handle opens whole units, with whatever else is in them."""


class Handle(ctypes.Structure):
    """CUipcMemHandle."""

    _fields_ = [("bytes", ctypes.c_ubyte * HANDLE_BYTES)]


class PeerMemory:
    """So much of a device, whose context becomes the current one; SlipstreamError where the driver refuses anything."""

    def __init__(self, device: torch.device, nbytes: int) -> None:
        self.device, self.nbytes = device, nbytes
        self.driver = Driver()
        torch.empty(1, device=device)  # there is a context now
        self.base = c_uint64(0)
        self.driver("cuMemAlloc_v2", byref(self.base), c_size_t(-(-nbytes // GRANULE) * GRANULE))

    def words(self) -> Tensor:
        """All of it, int64."""
        return torch.as_tensor(Bytes(self.base.value, self.nbytes), device=self.device).view(torch.int64)

    def handle(self) -> bytes:
        """The handle by which another process opens this memory."""
        handle = Handle()
        self.driver("cuIpcGetMemHandle", byref(handle), self.base)
        return bytes(handle.bytes)

    def open(self, handle: bytes) -> int:
        """The address of a peer's memory."""
        address = c_uint64(0)
        opened = Handle.from_buffer_copy(handle)
        self.driver("cuIpcOpenMemHandle_v2", byref(address), opened, c_uint(REACH_PEERS))
        return address.value

    def write(self, address: int, word: int) -> None:
        """Put ``word`` into a peer's memory as sums do, and wait until it is there."""
        from .exchange_kernels import write_word

        write_word(address, word)
        torch.cuda.synchronize(self.device)
