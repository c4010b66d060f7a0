"""The private folder in which the sockets of one service lie.

It has an unpredictable name and is closed to others (0700). Its owner holds a lock on it for life, and
so a folder without a lock is one that a killed service left behind: the next one clears it away.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ...protocol.endpoints import RUN_PREFIX
from ...protocol.errors import SlipstreamError

LONGEST_PARENT = 60
"""Bytes: a socket's path has at most 107."""


@contextlib.contextmanager
def run_directory() -> Iterator[Path]:
    """A new folder, which is removed at the end. SlipstreamError if none can be made."""
    try:
        parent = run_parent()
        clear_stale(parent)
        while True:
            path = Path(tempfile.mkdtemp(prefix=RUN_PREFIX, dir=parent))
            lock = try_lock(path)
            if lock is not None:
                break  # another service may have taken it for a stale one between the two lines; then again
    except OSError as error:
        raise SlipstreamError(
            f"no folder for sockets can be made ({error}); XDG_RUNTIME_DIR or TMPDIR may name another place for it"
        ) from None
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def restore(path: Path) -> int | None:
    """Make a folder of ours again that somebody has cleared away, and return the lock on it; None if it is there.

    SlipstreamError if another user has taken its name.
    """
    while True:
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            found = path.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
                raise SlipstreamError(f"the run directory {path} is not this service's any more") from None
            return None
        lock = try_lock(path)
        if lock is not None:
            return lock  # else another service has taken it for a stale one


def run_parent() -> Path:
    base = os.environ.get("XDG_RUNTIME_DIR")
    usable = base and os.path.isdir(base) and os.access(base, os.W_OK | os.X_OK)
    parent = base if base and usable else tempfile.gettempdir()
    return Path(parent if len(os.fsencode(parent)) <= LONGEST_PARENT else "/tmp")


def try_lock(path: Path) -> int | None:
    """The lock on a folder of ours; None if someone holds it, or it is none, or is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    with contextlib.suppress(OSError):  # it is in use, or was removed meanwhile
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held, named = os.fstat(descriptor), os.lstat(path)
        if held.st_uid == os.geteuid() and (held.st_dev, held.st_ino) == (named.st_dev, named.st_ino):
            return descriptor
    os.close(descriptor)
    return None


def clear_stale(parent: Path) -> None:
    """Remove what killed services of this user left behind: nothing but sockets. Whatever else is there stays."""
    for path in parent.glob(f"{RUN_PREFIX}*"):
        try:
            found = path.lstat()
        except OSError:
            continue
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            continue
        lock = try_lock(path)
        if lock is None:
            continue
        if all(entry.is_socket() for entry in path.iterdir()):
            shutil.rmtree(path, ignore_errors=True)
        os.close(lock)
