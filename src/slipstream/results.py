"""How a command shows its progress and writes its result."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def write_json(target: str, result: Any) -> None:
    text = json.dumps(result, indent=2) + "\n"
    if target == "-":
        sys.stdout.write(text)
    else:
        Path(target).write_text(text)


def show_progress(text: str) -> None:
    """Show progress on a terminal, in one line that is written over."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
