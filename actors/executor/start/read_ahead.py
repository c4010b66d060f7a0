"""Reads the files of the weights into memory beside the imports of a start, which keep one core busy for seconds."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...checkpoint import safetensors_in
from ...options import ExecutorOptions

CHUNK = 8 << 20
"""Bytes that are read at a time: large enough for the full speed of a disk, and a thread that is to end does so within
milliseconds."""

MAX_OF_MEMORY = 0.5
"""Weights that take more of the machine's memory are not read ahead: the first would be gone before they are wanted."""


class ReadAhead:
    """Reads the weights of a folder once, so that the system has them in memory when they are loaded."""

    def __init__(self, folder: Path) -> None:
        self.files = safetensors_in(folder)
        self.stopped = False
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if sum(file.stat().st_size for file in self.files) > MAX_OF_MEMORY * memory:
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


@contextmanager
def reading_ahead(options: ExecutorOptions) -> Iterator[None]:
    """The files of the weights come into memory meanwhile, if there are any."""
    ahead = None if options.load_format == "dummy" else ReadAhead(Path(options.model))
    try:
        yield
    finally:
        if ahead is not None:
            ahead.stop()
