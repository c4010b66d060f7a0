"""Paths of files as people give them."""

from __future__ import annotations

import os

from .errors import InvalidRequest


def absolute_path(path: str | os.PathLike[str], folder: str = "") -> str:
    """The path from the root on; a relative one begins in ``folder``, or the working directory."""
    try:
        return os.path.abspath(os.path.join(folder, path))
    except FileNotFoundError:
        raise InvalidRequest(
            f"the path {os.fspath(path)!r} begins in the working directory, which has been removed:"
            " give an absolute path"
        ) from None


def working_folder() -> str:
    """The working directory; ``/`` where it has been removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "/"
