"""The number of files that a process may have open, and that a service needs."""

from __future__ import annotations

import resource

from ...protocol.errors import InvalidRequest

MIN_FILES = 384
"""With 256, processes that connect as fast as they can make ZeroMQ end the gateway, and with 512 they do not."""


def check_file_limit() -> None:
    """InvalidRequest where a process may open too few files for strangers not to end a gateway by connecting."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < MIN_FILES:
        raise InvalidRequest(
            f"a process may open {hard} files here, and a service needs {MIN_FILES} at least: raise the hard limit,"
            " better to 4096 (ulimit -Hn; LimitNOFILE= of a systemd unit)"
        )


def raise_file_limit() -> None:
    """ZeroMQ ends the process when a listener on an ipc path runs out of file descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
