"""``slipstream top`` in a terminal of 80 by 24: it shows every actor, and ``q`` ends it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import sys
import termios
import time

from slipstream import Sidecar

ACTORS = ("gateway", "tokenizer", "scheduler", "executor", "detokenizer", "http")


def test_all_actors_are_seen_and_q_quits() -> None:
    with Sidecar(device="emulated", http="127.0.0.1:0") as sidecar:
        pid, terminal = pty.fork()
        if pid == 0:
            os.environ["TERM"] = "xterm"
            os.environ["SLIPSTREAM_ENDPOINT"] = sidecar.endpoint  # other tests have services here too
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
