"""Memory of a device that other processes can open: a range of addresses, in pieces that are files."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ....runtime.keeping import MAX_FILES

ALIGNMENT = 512
"""Bytes; as torch places what it allocates on a GPU."""

PIECE_BYTES = 1 << 30
"""Least bytes of a piece: memory is taken piece by piece, while what was copied into the one before is given back."""


def aligned(nbytes: int, to: int = ALIGNMENT) -> int:
    return -(-nbytes // to) * to


class Pages(Protocol):
    """The interface through which an arena gets memory of a device as files."""

    granularity: int
    """Bytes of which the sizes of pieces are multiples."""

    def reserve(self, nbytes: int) -> None:
        """Have addresses for so much, and no memory yet."""
        ...

    def create(self, start: int, nbytes: int) -> int:
        """Memory for these addresses, which begin at ``start``; the file that it is."""
        ...

    def open(self, start: int, nbytes: int, file: int, *, writable: bool) -> None:
        """The memory of a file at these addresses, to be read alone or written too."""
        ...

    def tensor(self, nbytes: int) -> Tensor:
        """The first ``nbytes`` of the addresses, uint8."""
        ...

    def protect(self, nbytes: int) -> None:
        """Let nobody write to the memory through these addresses any more, where the device can refuse that."""
        ...


class Arena:
    """A range of ``nbytes``, filled from its beginning to its end. It lives as long as the process."""

    def __init__(self, pages: Pages, nbytes: int) -> None:
        least = max(PIECE_BYTES, -(-nbytes // (MAX_FILES - 1)))
        self.pages = pages
        self.piece_bytes = aligned(min(least, max(1, nbytes)), pages.granularity)
        self.nbytes = aligned(max(1, nbytes), self.piece_bytes)
        self.files: list[int] = []
        """The open files of the pieces, in the order of the pieces."""
        self.filled = 0
        pages.reserve(self.nbytes)

    def allocate(self, nbytes: int) -> Tensor:
        """The next bytes that are free, uint8."""
        start = self.filled
        self.filled += aligned(nbytes)
        if self.filled > self.nbytes:
            raise ValueError(f"{self.filled} bytes do not fit into an arena of {self.nbytes}")
        while not self.files or len(self.files) * self.piece_bytes < self.filled:
            at = len(self.files) * self.piece_bytes
            self.files.append(self.pages.create(at, self.piece_bytes))
        return self.whole()[start : start + nbytes]

    def whole(self) -> Tensor:
        """All addresses, uint8; there is memory for what was allocated."""
        if not self.files:
            self.allocate(0)
        return self.pages.tensor(self.nbytes)

    def protect(self) -> None:
        """It is filled: let nobody write to it any more."""
        self.pages.protect(len(self.files) * self.piece_bytes)

    @staticmethod
    def opened(pages: Pages, files: Sequence[int], piece_bytes: int, *, writable: bool = False) -> Tensor:
        """All bytes of an arena of which these are the files, uint8, to be read alone or written too."""
        pages.reserve(len(files) * piece_bytes)
        for number, file in enumerate(files):
            pages.open(number * piece_bytes, piece_bytes, file, writable=writable)
        return pages.tensor(len(files) * piece_bytes)


def pages_of(device: torch.device) -> Pages:
    if device.type == "cpu":
        return SharedMemory()
    from .cuda_memory import CudaMemory

    return CudaMemory(device.index or 0)


LIBRARY = ctypes.CDLL(None, use_errno=True)
LIBRARY.mmap.restype = ctypes.c_void_p
LIBRARY.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
LIBRARY.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
MAP_FIXED, MAP_NORESERVE = 0x10, 0x4000


class SharedMemory:
    """Memory of the host, in anonymous files."""

    granularity = mmap.PAGESIZE

    def __init__(self) -> None:
        self.base = 0

    def reserve(self, nbytes: int) -> None:
        self.base = self.map(None, nbytes, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE, -1)

    def create(self, start: int, nbytes: int) -> int:
        file = os.memfd_create("weights", os.MFD_CLOEXEC)
        os.ftruncate(file, nbytes)
        self.open(start, nbytes, file, writable=True)
        return file

    def open(self, start: int, nbytes: int, file: int, *, writable: bool) -> None:
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self.map(self.base + start, nbytes, protection, mmap.MAP_SHARED | MAP_FIXED, file)

    def tensor(self, nbytes: int) -> Tensor:
        return torch.frombuffer((ctypes.c_uint8 * nbytes).from_address(self.base), dtype=torch.uint8)

    def protect(self, nbytes: int) -> None:
        if LIBRARY.mprotect(self.base, nbytes, mmap.PROT_READ):
            raise OSError(ctypes.get_errno(), "mprotect")

    @staticmethod
    def map(at: int | None, nbytes: int, protection: int, flags: int, file: int) -> int:
        found = LIBRARY.mmap(at, nbytes, protection, flags, file, 0)
        if found in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), f"mmap of {nbytes} bytes: {os.strerror(ctypes.get_errno())}")
        return found
