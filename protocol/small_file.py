"""Reads a file that people write by hand, and refuses a pipe or device, on which a read could wait for ever."""

from __future__ import annotations

import errno
import os
import stat

MAX_BYTES = 16 * 1024 * 1024
"""Far more than anybody writes."""


def read_small_file(path: str | os.PathLike[str]) -> bytes:
    """The content; ``OSError`` for a pipe, a folder or another that is no file, and for more than ``MAX_BYTES``."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no file", os.fspath(path))
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise OSError(errno.EFBIG, f"it has more than {MAX_BYTES} bytes", os.fspath(path))
    return content
