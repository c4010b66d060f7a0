"""``slipstream top`` in a terminal of 80 by 24: it finds the one service, shows every actor, and ``q`` ends it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import sys
import tempfile
import termios
import time
from collections.abc import Iterator

import pytest

from slipstream import Sidecar

ACTORS = ("gateway", "tokenizer", "scheduler", "executor", "detokenizer", "http")


@pytest.fixture
def run_parent(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where no other service runs; the path of pytest's own folders is too long for a socket."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield folder


@pytest.mark.usefixtures("run_parent")
def test_all_actors_are_seen_and_q_quits() -> None:
    with Sidecar(device="emulated", http="127.0.0.1:0"):
        pid, terminal = pty.fork()
        if pid == 0:
            os.environ["TERM"] = "xterm"
            os.environ.pop("SLIPSTREAM_ENDPOINT", None)
            os.execv(sys.executable, [sys.executable, "-m", "slipstream", "top"])
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        shown = b""
        give_up_at = time.monotonic() + 60.0
        while not all(name.encode() in shown for name in ACTORS):
            assert select.select([terminal], [], [], max(0.0, give_up_at - time.monotonic()))[0], shown
            shown += os.read(terminal, 65536)
        os.write(terminal, b"q")
        while True:
            try:
                if not os.read(terminal, 65536):
                    break
            except OSError:  # the other end is closed
                break
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
