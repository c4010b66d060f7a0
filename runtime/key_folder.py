"""The keys of a service with CURVE: which service it is, and who may connect to it. ``slipstream keys`` makes them.

A *key folder* belongs to a service: ``server.key`` (its own, secret), ``allowed`` (the public keys of the
clients that may connect, one a line with its name before it), and one ``NAME.key`` for each client that was made
here. Such a client key is one file with all that a client needs; give it to the user of the service.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

import zmq

from ..protocol.client_key import checked, read_key, read_text
from ..protocol.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class KeyFolder:
    """The keys of a service."""

    path: Path

    @property
    def server_file(self) -> Path:
        return self.path / "server.key"

    @property
    def allowed_file(self) -> Path:
        return self.path / "allowed"

    def server(self) -> tuple[str, str]:
        """The service's public and secret key."""
        refuse_open(self.path)
        keys = read_key(self.server_file, ("public", "secret"))
        return keys["public"], keys["secret"]

    def allowed(self) -> set[str]:
        """Public keys of the clients that may connect now.

        ``InvalidRequest`` where others could write themselves into the list, or put another in its place.
        """
        for path in (self.path, self.allowed_file):
            refuse_open(path)
        found: set[str] = set()
        for number, line in enumerate(read_text(self.allowed_file).splitlines(), 1):
            if line.strip() and not line.startswith("#"):
                found.add(checked(line.split()[-1], f"{self.allowed_file}, line {number}"))
        return found

    def make_server(self) -> None:
        """The folder and the service's own key."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidRequest(f"the folder {self.path} cannot be made: {error.strerror}") from None
        refuse_open(self.path)
        public, secret = new_pair()
        write_key(self.server_file, "the key of a service: keep it secret", public=public, secret=secret)
        if not self.allowed_file.exists():
            self.allowed_file.touch(mode=0o600)
            self.allowed_file.write_text(
                "# Public keys of the clients that may connect. A line taken out is refused.\n"
            )

    def make_client(self, name: str) -> Path:
        """A key for a client, which may connect from now on; returns its file."""
        path = self.path / f"{name}.key"
        server, _ = self.server()
        public, secret = new_pair()
        write_key(
            path, f"the key of client {name}: keep it secret", server=server, public=public, secret=secret
        )
        with self.allowed_file.open("a") as allowed:
            allowed.write(f"{name} {public}\n")
        return path


def refuse_open(path: Path) -> None:
    """Refuse a file that others can write, which must decide nothing. In a folder with the sticky bit they cannot
    replace what is there."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}") from None
    if mode & 0o022 and not (stat.S_ISDIR(mode) and mode & stat.S_ISVTX):
        raise InvalidRequest(
            f"{path} can be written by others, who could let themselves in: chmod go-w {path}, and look at who is in"
            " the list allowed"
        )


def new_pair() -> tuple[str, str]:
    """A public and a secret key."""
    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


def write_key(path: Path, about: str, **keys: str) -> None:
    """A file that only its owner can read; one that is there is not written over."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise InvalidRequest(f"{path} is there already; take it away first, or choose another name") from None
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be written: {error.strerror}") from None
    with open(descriptor, "w") as file:
        file.write(f"# {about}\n" + "".join(f"{name} {key}\n" for name, key in keys.items()))
