"""The log of a service: lines on standard error, for people as text, for programs as one JSON object each.

It is the standard library's ``logging``, under the name ``slipstream``. A record may have an ``actor`` whose line it is
(the supervisor's where none is given) and a ``cause``, the lines that say why.
"""

from __future__ import annotations

import json
import logging
import os
import select
import sys
from typing import Any

from ..protocol.printable import CONTROL, printable, printable_lines

logger = logging.getLogger("slipstream")

READER_WAIT_MS = 100
"""How long a line waits for a reader that is behind; then it is lost."""


def wants_json(kind: str) -> bool:
    """Whether a log of this kind (``auto``, ``text`` or ``json``) is for programs."""
    if kind == "auto":
        # What collects the log of a pod expects JSON.
        return "KUBERNETES_SERVICE_HOST" in os.environ and not (sys.stderr and sys.stderr.isatty())
    return kind == "json"


def configure(*, as_json: bool) -> None:
    """Send the log of this process to its standard error, wherever that leads now."""
    handler = Handler(standard_error())
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter())
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def standard_error() -> int | None:
    """Its file descriptor; None if it is closed or is no file, as in a notebook."""
    try:
        return None if sys.stderr is None else sys.stderr.fileno()
    except (OSError, ValueError):
        return None


class Handler(logging.Handler):
    """Writes a line, or loses it: a reader that is gone or does not read, and a full disk, harm nothing else."""

    def __init__(self, descriptor: int | None) -> None:
        super().__init__()
        self.descriptor = descriptor

    def emit(self, record: logging.LogRecord) -> None:
        if self.descriptor is None:
            return
        rest = f"{self.format(record)}\n".encode(errors="replace")
        ready = select.poll()
        ready.register(self.descriptor, select.POLLOUT)
        try:
            while rest and ready.poll(READER_WAIT_MS):
                rest = rest[os.write(self.descriptor, rest[: select.PIPE_BUF]) :]
        except OSError:
            return  # it is lost


class TextFormatter(logging.Formatter):
    """For people."""

    def format(self, record: logging.LogRecord) -> str:
        cause = getattr(record, "cause", "")
        return "\n".join(filter(None, (printable(record.getMessage()), printable_lines(cause))))


class JsonFormatter(logging.Formatter):
    """For programs: ``ts`` (seconds since 1970), ``level``, ``actor``, ``event`` and, of a failure, ``cause``."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "ts": round(record.created, 3),
            "level": record.levelname.lower(),
            "actor": getattr(record, "actor", "supervisor"),
            "event": record.getMessage().strip(),
        }
        if hasattr(record, "cause"):
            fields["cause"] = getattr(record, "cause")  # noqa: B009
        text = json.dumps(fields, ensure_ascii=False)
        return CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def log_failure(title: str, cause: str) -> None:
    """The end of a service, or of its start, and why."""
    logger.error("%s", title, extra={"cause": cause})
