"""Lets memory outlive its process: as open files, held by a keeper that does nothing else.

Memory that is a file (``memfd_create``, what CUDA exports) lives as long as some process has it open. A *keeper* holds
such files by name, and hands them to processes that ask for them: it maps none, and reads nothing in them.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence

from ..protocol.errors import SlipstreamError
from .log import logger

MAX_FILES = 250
"""The kernel lets one message carry 253."""

MAX_PACKET = 256
"""Most bytes of a question: one word and a name."""

ANSWERS_WITHIN_S = 1.0
"""A keeper answers in less than a millisecond; one that has not after this was stopped, or is gone."""

LOOK_EVERY_S = 0.1
"""Between two tries to reach a keeper, while there is none."""

KEEP, FETCH, FORGET, DONE, REFUSED = b"keep", b"fetch", b"forget", b"done", b"refused"


class NotKept(SlipstreamError):
    """The keeper is not there, or does not answer."""


class KeeperRefused(NotKept):
    """The keeper does not do it."""


class HeldFiles:
    """The files that a keeper holds: for each name some, all given by one incarnation."""

    def __init__(self, close: Callable[[int], None] = os.close) -> None:
        self.files: dict[str, list[int]] = {}
        self.close = close

    def answer(self, packet: bytes, files: Sequence[int]) -> tuple[bytes, list[int]]:
        """Answer a question that came with these files, which are held from now on."""
        what, _, name = packet.partition(b" ")
        wanted = name.decode(errors="replace")
        if what == KEEP and wanted and files:
            self.forget(wanted)
            self.files[wanted] = list(files)
            return DONE, []
        for file in files:
            self.close(file)
        if what == FETCH and wanted:
            return DONE, self.files.get(wanted, [])
        if what == FORGET and wanted:
            self.forget(wanted)
            return DONE, []
        return REFUSED, []

    def forget(self, name: str) -> None:
        for file in self.files.pop(name, []):
            self.close(file)


class Keeper:
    """A keeper as those see it for whom it keeps something, at ``path``."""

    def __init__(self, path: str, name: str) -> None:
        """``name``: of what is kept here."""
        self.path = path
        self.name = name.encode()

    def hold(self, files: Sequence[int]) -> None:
        """Have these files kept as long as this process lives, by one keeper after the other; for a thread of its own.

        A keeper that dies is missed at once, and the next one is given the files again. Returns, with a warning, where
        one refuses them.
        """
        while True:
            try:
                with self.connected() as connection:
                    self.ask(connection, KEEP, files)
                    connection.settimeout(None)
                    connection.recv(1)  # it says nothing more: this is its end
            except KeeperRefused as error:
                logger.warning("%s is not kept: %s", self.name.decode(), error)
                return
            except (NotKept, OSError):
                time.sleep(LOOK_EVERY_S)  # until there is one

    def fetch(self) -> list[int]:
        """The files, opened here; empty if none are kept. NotKept if that cannot be known."""
        with self.connected() as connection:
            return self.ask(connection, FETCH)

    def forget(self) -> None:
        """Let go of the files. NotKept if nobody did."""
        with self.connected() as connection:
            self.ask(connection, FORGET)

    def answers(self) -> bool:
        """Whether it is there and not stopped."""
        try:
            return not self.fetch()
        except NotKept:
            return False

    def connected(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(ANSWERS_WITHIN_S)
        try:
            connection.connect(self.path)
        except OSError as error:
            connection.close()
            raise NotKept("there is no keeper") from error
        return connection

    def ask(self, connection: socket.socket, what: bytes, files: Sequence[int] = ()) -> list[int]:
        try:
            socket.send_fds(connection, [what + b" " + self.name], files)
            answer, found, _, _ = socket.recv_fds(connection, MAX_PACKET, MAX_FILES)
        except TimeoutError as error:
            raise NotKept(f"the keeper did not answer within {ANSWERS_WITHIN_S:g} s") from error
        except OSError as error:
            raise NotKept(f"the keeper cannot be reached: {error.strerror}") from error
        if not answer:
            raise NotKept("the keeper has ended")
        if answer != DONE:
            raise KeeperRefused(f"the keeper does not take {len(files)} files under this name")
        return found
