"""A spare: a process that has imported what an actor needs, and waits to be forked into an incarnation of it.

``python -m slipstream.runtime.process.spare PREPARE FACTORY FD PARENT`` is what the supervisor runs: ``PREPARE``
imports what is slow, and a fork goes on as ``child.py`` does. A spare has no device context, no socket but its control
channel, and no thread when it forks, since a fork has only the one that forked. The spare waits on, and shares most of
its memory with its forks.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

from ..supervision import control
from .child import ProcessStart, StartContext, end, failure, live, named
from .set_up import die_with_parent, set_up

NICENESS = 19
"""The niceness of imports while others serve."""


def main(prepare: str, factory: str, fd: int, parent: int) -> int:
    """Prepare, and fork whenever the supervisor asks for it, until it is gone; in what is forked, live."""
    set_up(parent)
    with socket.socket(fileno=fd) as channel:
        message = control.receive(channel)
        if not isinstance(message, control.Prepare):
            return 1
        context = ProcessStart(message.options, restarted=message.background)
        try:
            prepared = prepare_with(prepare, factory, context)
        except Exception as error:
            control.send(channel, failure(context.current, error))
            return 1
        control.send(channel, control.Ready({}, context.ended()))
        while True:
            message, descriptors = control.receive_with_files(channel, 3)
            if not isinstance(message, control.Fork):
                return 0
            pid = fork_for(parent)
            if pid == 0:
                break
            for descriptor in descriptors:
                os.close(descriptor)
            control.send(channel, control.Forked(pid))
    own, in_hand, printing = descriptors
    os.setpgid(0, 0)  # a signal to our group is for the supervisor to handle
    for stream in (1, 2):
        os.dup2(printing, stream)
    os.close(printing)
    with socket.socket(fileno=own) as channel:
        return live(factory, channel, in_hand=in_hand, prepared=prepared)


def prepare_with(prepare: str, factory: str, context: ProcessStart) -> Any:
    """The result of ``prepare``, after all imports that ``factory`` needs."""
    made: list[Any] = []
    errors: list[Exception] = []

    def work() -> None:
        if context.restarted:
            os.setpriority(
                os.PRIO_PROCESS, 0, NICENESS
            )  # of this thread; a fork has that of the one that forks
        try:
            make: Callable[[StartContext], Any] = named(prepare)
            made.append(make(context))
            named(factory)
        except Exception as error:
            errors.append(error)

    worker = threading.Thread(target=work, name="prepare")
    worker.start()
    worker.join()
    if errors:
        raise errors[0]
    gc.collect()
    gc.freeze()  # a look for cycles would write to memory that is shared
    return made[0]


def fork_for(parent: int) -> int:
    """Fork a process that becomes a child of ``parent``, which takes in orphans; its pid, and 0 in it.

    It goes on when it is that child, and ends with it.
    """
    pid_reader, pid_writer = os.pipe()
    waits, go = os.pipe()
    between = os.fork()
    if between == 0:
        try:
            pid = os.fork()
            if pid:
                os.write(pid_writer, pid.to_bytes(8))
        except OSError:
            pid = -1
        if pid:
            os._exit(0)
        os.close(go)
        gone = not os.read(waits, 1)
        os.close(waits)
        if gone:
            os._exit(1)
        die_with_parent(parent)
        return 0
    os.waitpid(between, 0)
    os.close(pid_writer)
    pid = int.from_bytes(os.read(pid_reader, 8))
    if not pid:
        raise MemoryError("the system lets this spare fork no more")
    os.write(go, b"!")
    for descriptor in (pid_reader, waits, go):
        os.close(descriptor)
    return pid


if __name__ == "__main__":
    end(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
