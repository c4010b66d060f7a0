"""The file of an ipc endpoint, which ZeroMQ makes and leaves."""

from __future__ import annotations

import contextlib
import os
import socket
import stat


def path_of(endpoint: str) -> str | None:
    """The path of the socket of an ipc endpoint; None for other endpoints."""
    scheme, _, path = endpoint.partition("://")
    return path if scheme == "ipc" else None


def has_listener(path: str) -> bool:
    """Whether a process is bound to the socket at this path; OSError where that cannot be known."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False  # left behind by a process that is gone
    return True


def remove_left(endpoint: str) -> None:
    """Remove the socket of an ipc endpoint at which nobody listens any more."""
    path = path_of(endpoint)
    with contextlib.suppress(OSError):  # it is not there, or not ours to know
        if path is not None and stat.S_ISSOCK(os.stat(path).st_mode) and not has_listener(path):
            os.unlink(path)
