"""The three descriptors that every program expects to have."""

from __future__ import annotations

import io
import os
import sys

STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))
"""By their descriptors, the names in ``sys`` and the modes."""


def open_missing() -> None:
    """Let closed standard streams lead nowhere: else the next file or socket would be taken for one of them, and what
    is asked of a stream that is not there would be an error."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != descriptor:
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
    for descriptor, (name, mode) in enumerate(STREAMS):
        if getattr(sys, name) is None:  # as Python has it for a descriptor that was closed before it began
            setattr(sys, name, os.fdopen(descriptor, mode, errors="backslashreplace", closefd=False))


ERROR_HANDLERS = {"stdin": "surrogateescape", "stdout": "backslashreplace"}
"""What becomes of bytes and characters that a stream's encoding does not have. Python does the same for
standard error as is done here for output."""


def set_error_handlers() -> None:
    """Let no stream fail at a character that its encoding lacks, as ASCII lacks most in the locale ``C``.

    Bytes of standard input that are no text become lone surrogates, which are refused where they are used.
    """
    for name, errors in ERROR_HANDLERS.items():
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):  # a program or a test may have put something else there
            stream.reconfigure(errors=errors)
