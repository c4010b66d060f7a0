"""Records which request an actor has in hand where it outlives the process: a few bytes of shared memory."""

from __future__ import annotations

import mmap
import os

DIGEST_BYTES = 16
"""Bytes of the digest that names a request: 128 bits, which no two requests share by chance."""

NOTHING = bytes(DIGEST_BYTES)


class InHand:
    """One digest in an anonymous file that a process and the one that watches it both have open."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        os.ftruncate(descriptor, DIGEST_BYTES)
        self.memory = mmap.mmap(descriptor, DIGEST_BYTES)

    @staticmethod
    def create() -> InHand:
        """Empty."""
        return InHand(os.memfd_create("in-hand", os.MFD_CLOEXEC))

    def take(self, digest: bytes) -> None:
        """From now on this is in hand."""
        self.memory[:] = digest

    def put_down(self) -> None:
        """Nothing is in hand any more."""
        self.memory[:] = NOTHING

    def read(self) -> bytes:
        """The digest of the request in hand, or in hand at the death; empty if there was none."""
        found = self.memory[:]
        return b"" if found == NOTHING else found

    def close(self) -> None:
        self.memory.close()
        os.close(self.descriptor)
