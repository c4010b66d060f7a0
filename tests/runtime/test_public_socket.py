"""Strangers that connect without end: the socket that they reach keeps them below what the process may open."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from pathlib import Path

DESCRIPTORS = 1024

BUSY_PROCESS = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, ({DESCRIPTORS}, {DESCRIPTORS}))
import zmq
from slipstream.runtime.process.public_socket import OPTIONS, PublicSocket
OPTIONS[zmq.HANDSHAKE_IVL] = 0  # nobody is ended for saying nothing
public = PublicSocket(zmq.Context(), sys.argv[1], None)
print("ready", flush=True)
sys.stdin.readline()  # one long turn, in which nothing else is looked at
print(len(public.connected) <= public.most_connections + 256, flush=True)
public.close()
print("closed", flush=True)
"""


def wait_for_end(stranger: socket.socket) -> None:
    """Until the other side has closed the connection; on a busy machine its thread for that is late."""
    stranger.settimeout(30)
    with contextlib.suppress(ConnectionResetError):
        while stranger.recv(1000):
            pass


def test_bursts_of_connections_within_one_turn_end_nobody(tmp_path: Path) -> None:
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
        for _ in range(8):
            for _ in range(DESCRIPTORS // 2):  # with those that are let in, no more than can be open at once
                stranger = socket.socket(socket.AF_UNIX)
                strangers.append(stranger)
                stranger.connect(path)
            wait_for_end(strangers[-1])
        said, _ = process.communicate("\n", timeout=30)
    finally:
        for stranger in strangers:
            stranger.close()
        process.kill()
    assert (said, process.returncode) == ("True\nclosed\n", 0)
