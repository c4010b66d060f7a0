"""A file whose text an actor is to know: read at first, and whenever it has changed."""

from __future__ import annotations

import os

from ...protocol.small_file import read_small_file
from ..log import logger

LOOK_EVERY_S = 0.5
"""Between two looks, at least: a host looks when something happens, too."""


class FileWatch:
    """Looks at one file."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.look_at = 0.0
        """When to look next, in seconds of the host's clock."""
        self.as_of = (0, 0)
        """When the file was changed last, as far as is known, and its size."""
        self.complaint = ""
        """Why it cannot be read, as was said already."""

    def changed_text(self, now: float) -> str | None:
        """The text, if it is another than at the last look; None if not, or if it is not time to look."""
        if now < self.look_at:
            return None
        self.look_at = now + LOOK_EVERY_S
        try:
            found = os.stat(self.path)
            if (found.st_mtime_ns, found.st_size) == self.as_of:
                return None
            text = read_small_file(self.path).decode("utf-8-sig", errors="replace")
        except FileNotFoundError:  # its writer may be about to
            return None
        except OSError as error:
            if str(error) != self.complaint:
                self.complaint = str(error)
                logger.warning("%s cannot be read, and what it said last holds: %s", self.path, error)
            return None
        self.as_of, self.complaint = (found.st_mtime_ns, found.st_size), ""
        return text
