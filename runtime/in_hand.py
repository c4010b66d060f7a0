"""Which request an actor has in hand, written where it outlives the process: a few bytes of shared memory."""

from __future__ import annotations

import os

DIGEST_BYTES = 16

NOTHING = bytes(DIGEST_BYTES)


class InHand:
    """One digest in an anonymous file that a process and the one that watches it both have open."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    @staticmethod
    def create() -> InHand:
        """Empty."""
        return InHand(os.memfd_create("in-hand", os.MFD_CLOEXEC))

    def take(self, digest: bytes) -> None:
        """From now on this is in hand."""
        os.pwrite(self.descriptor, digest, 0)

    def put_down(self) -> None:
        """Nothing is in hand any more."""
        os.pwrite(self.descriptor, NOTHING, 0)

    def read(self) -> bytes:
        """What is in hand, or was at the death; empty if nothing."""
        found = os.pread(self.descriptor, DIGEST_BYTES, 0)
        return b"" if found == NOTHING else found

    def close(self) -> None:
        os.close(self.descriptor)
