"""The log of a service: lines on standard error, for people as text, for programs as one JSON object each."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

MAX_LINE = 64 * 1024
"""Bytes of a child's output that may wait for the end of their line; a longer one is logged in parts."""


class Log:
    """Writes the log. As JSON a line has ``ts`` (seconds since 1970), ``level``, ``actor`` and ``event``."""

    def __init__(self, kind: str) -> None:
        self.json = kind == "json" or (kind == "auto" and not sys.stderr.isatty() and in_kubernetes())

    def line(self, text: str, actor: str = "supervisor", level: str = "info", **more: Any) -> None:
        if self.json:
            record = {
                "ts": round(time.time(), 3),
                "level": level,
                "actor": actor,
                "event": text.strip(),
                **more,
            }
            text = json.dumps(record, ensure_ascii=False)
        print(text, file=sys.stderr, flush=True)

    def block(self, title: str, body: str) -> None:
        """The cause of a failure."""
        if self.json:
            self.line(title, level="error", cause=body)
        else:
            self.line(f"{title}\n{body}")


def in_kubernetes() -> bool:
    """There, whoever collects the log expects JSON."""
    return "KUBERNETES_SERVICE_HOST" in os.environ


class Output:
    """What a child prints, into the log under its name, line by line."""

    def __init__(self, log: Log, actor: str) -> None:
        self.log = log
        self.actor = actor
        self.reader, self.writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.reader, False)
        self.begun = b""
        self.open = True

    def read(self) -> None:
        """Log what has come. At the end, which comes with the child's, ``open`` is false."""
        while self.open:
            try:
                part = os.read(self.reader, MAX_LINE)
            except BlockingIOError:
                return
            *lines, self.begun = (self.begun + part).split(b"\n")
            if not part or len(self.begun) >= MAX_LINE:
                lines, self.begun = [*lines, self.begun], b""
            for line in lines:
                if line.strip():
                    self.log.line(line.decode(errors="replace"), self.actor)
            if not part:
                self.open = False

    def close(self) -> None:
        """Log what is left."""
        self.read()
        os.close(self.reader)
        if self.begun:
            self.log.line(self.begun.decode(errors="replace"), self.actor)
