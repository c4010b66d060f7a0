"""What all commands share: what runs one, and how it ends."""

from __future__ import annotations

import argparse
from collections.abc import Callable

Run = Callable[[argparse.Namespace], int]


class Exit(Exception):
    """End the command with this exit code, after one sentence on stderr."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
