"""Notes what is turned into code while an actor handles messages. A service under test imports it at start.

The interpreter calls an audit hook for every ``compile``, ``exec``, ``marshal.loads`` and ``pickle.find_class``.
What counts is what happens below the host's loop or on the device's thread, and is not an import.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

EVENTS = {"compile", "exec", "marshal.loads", "pickle.find_class", "code.__new__", "function.__new__"}

LOOPS = (
    ("runtime/process/loops.py", {"run_blocking", "turn"}),
    ("actors/executor/devices/cpu.py", {"work", "run"}),
)


def note(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in EVENTS:
        return
    frame = sys._getframe()
    handling = False
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith("<frozen importlib"):
            return
        handling = handling or any(
            file.endswith(end) and frame.f_code.co_name in names for end, names in LOOPS
        )
        frame = frame.f_back
    if handling:
        line = json.dumps({"event": event, "argument": repr(arguments)[:200], "pid": os.getpid()}) + "\n"
        os.write(LOG, line.encode())


LOG = os.open(os.environ["PLANTED_AUDIT"], os.O_WRONLY | os.O_APPEND)
sys.addaudithook(note)
