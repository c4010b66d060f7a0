"""The output of a child, copied into the log under its name, line by line."""

from __future__ import annotations

import os

from ..log import logger

MAX_LINE = 64 * 1024
"""Bytes of a child's output that may wait for the end of their line; a longer one is logged in parts."""


class ChildOutput:
    """The pipe that a child prints to, and what has come through it."""

    def __init__(self, actor: str) -> None:
        self.actor = actor
        self.reader, self.writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.reader, False)
        self.begun = b""
        self.open = True

    def read(self) -> None:
        """Log what has come. At the end, which comes with the child's, ``open`` is false."""
        while self.open:
            try:
                part = os.read(self.reader, MAX_LINE)
            except BlockingIOError:
                return
            *lines, self.begun = (self.begun + part).split(b"\n")
            if not part or len(self.begun) >= MAX_LINE:
                lines, self.begun = [*lines, self.begun], b""
            for line in lines:
                if line.strip():
                    self.log(line)
            if not part:
                self.open = False

    def log(self, line: bytes) -> None:
        logger.info("%s", line.decode(errors="replace"), extra={"actor": self.actor})

    def close(self) -> None:
        """Log what is left."""
        self.read()
        os.close(self.reader)
        if self.begun:
            self.log(self.begun)
