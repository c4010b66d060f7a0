"""The process of a keeper: it holds open what would be gone with the process that made it, such as a model's weights.

``python -m slipstream.runtime.process.keeper PATH FD PARENT`` is what the supervisor runs; at ``PATH`` is the socket
where it is asked (`keeping`). It imports no library that computes, has no device context and gets nothing of a user's,
so that what ends those who compute leaves it alone.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys

from ..keeping import MAX_FILES, MAX_PACKET, REFUSED, HeldFiles
from ..supervision import control
from .set_up import set_up

MAX_WAITING = 64
"""Connections that are not accepted yet; each rank of an executor has one at a time."""


def main(path: str, fd: int, parent: int) -> int:
    """Keep until the supervisor says stop, or is gone."""
    set_up(parent)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # of an incarnation before
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with socket.socket(fileno=fd) as channel, listener:
        listener.bind(path)
        listener.listen(MAX_WAITING)
        if not isinstance(control.receive(channel), control.Prepare):
            return 1
        control.send(channel, control.Ready())
        serve(channel, listener, HeldFiles())
    return 0


def serve(channel: socket.socket, listener: socket.socket, held_files: HeldFiles) -> None:
    """Answer every connection, one question at a time."""
    poller = select.poll()
    asking: dict[int, socket.socket] = {}
    for each in (channel, listener):
        poller.register(each, select.POLLIN)
    while True:
        for descriptor, _ in poller.poll():
            if descriptor == channel.fileno():
                return  # all that it is ever told is to stop, or nobody is there who could
            elif descriptor == listener.fileno():
                connection, _ = listener.accept()
                connection.setblocking(False)
                asking[connection.fileno()] = connection
                poller.register(connection, select.POLLIN)
            elif not answer(asking[descriptor], held_files):
                poller.unregister(descriptor)
                asking.pop(descriptor).close()


def answer(connection: socket.socket, held_files: HeldFiles) -> bool:
    """Answer a question; False if there was none, and the connection is over."""
    try:
        packet, files, flags, _ = socket.recv_fds(connection, MAX_PACKET, MAX_FILES)
        if not packet:
            return False
        lost = flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC)  # what came is not what was sent
        said, found = held_files.answer(REFUSED if lost else packet, files)
        socket.send_fds(connection, [said], found) if found else connection.send(said)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
