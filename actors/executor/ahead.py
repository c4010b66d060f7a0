"""What a start does beside its imports, which keep one core busy for seconds: the weights come into memory, and the
GPU gets ready."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CHUNK = 8 << 20

MOST_OF_MEMORY = 0.5
"""Weights that take more of the machine's memory are not read ahead: the first would be gone before they are wanted."""


class ReadAhead:
    """Reads the weights of a folder once, so that the system has them in memory when they are loaded."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted(folder.glob("*.safetensors"))
        self.stopped = False
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if sum(file.stat().st_size for file in self.files) > MOST_OF_MEMORY * memory:
            self.files = []
        self.thread = threading.Thread(target=self.read, name="read ahead", daemon=True)
        self.thread.start()

    def read(self) -> None:
        chunk = bytearray(CHUNK)
        for path in self.files:
            try:
                with path.open("rb", buffering=0) as file:
                    while not self.stopped and file.readinto(chunk):
                        pass
            except OSError:
                return  # what loads it reports what is wrong

    def stop(self) -> None:
        """They are loaded: nobody waits for the rest."""
        self.stopped = True


def wake(where: torch.device) -> threading.Thread:
    """Begin to make the context of a GPU, which takes seconds; the first use of the GPU waits for the rest."""
    import torch

    def touch() -> None:
        try:
            torch.empty(1, device=where)
        except (RuntimeError, AssertionError):
            return  # the next use meets the same error, and reports it

    thread = threading.Thread(target=touch, name="wake gpu", daemon=True)
    thread.start()
    return thread
