"""Strangers that connect without end: the socket that they reach keeps them below what the process may open."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

DESCRIPTORS = 1024

BUSY_PROCESS = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, ({DESCRIPTORS}, {DESCRIPTORS}))
import zmq
from slipstream.runtime.process.public_socket import PublicSocket
public = PublicSocket(zmq.Context(), sys.argv[1], None)
print("ready", flush=True)
sys.stdin.readline()  # one long turn, in which nothing else is looked at
print(len(public.connected) <= public.most_connections + 256, flush=True)
public.close()
print("closed", flush=True)
"""


def test_a_burst_of_connections_within_one_turn_ends_nobody(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY_PROCESS, f"ipc://{path}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    strangers: list[socket.socket] = []
    try:
        for _ in range(4 * DESCRIPTORS):
            stranger = socket.socket(socket.AF_UNIX)
            strangers.append(stranger)
            stranger.connect(path)
        said, _ = process.communicate("\n", timeout=30)
    finally:
        for stranger in strangers:
            stranger.close()
        process.kill()
    assert (said, process.returncode) == ("True\nclosed\n", 0)
