"""The three descriptors that every program expects to have."""

from __future__ import annotations

import os


def open_missing() -> None:
    """Let closed standard streams lead nowhere: else the next file or socket would be taken for one of them."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != descriptor:
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
