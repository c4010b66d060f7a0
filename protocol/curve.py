"""CURVE keys: who may connect to a service, and which service it is. ``slipstream keys`` makes them.

A *key folder* belongs to a service: ``server.key`` (its own, secret), ``allowed`` (the public keys of the
clients that may connect, one a line with its name before it), and one ``NAME.key`` for each client that was made
here. Such a client key is one file with all that a client needs; give it to the user of the service.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq

from .errors import InvalidRequest

CLIENT_KEY_VARIABLE = "SLIPSTREAM_CLIENT_KEY"
"""Names the client key for ``tcp://`` endpoints, where a program gives none."""

KEY_CHARS = 40
"""Length of a key in Z85."""


@dataclass(frozen=True, slots=True)
class ClientKey:
    """What a client needs: its own pair of keys, and the public key of the service that it means to reach."""

    server: str
    public: str
    secret: str

    @staticmethod
    def read(path: str | os.PathLike[str]) -> ClientKey:
        """From a ``NAME.key``; ``InvalidRequest`` if it is none."""
        return ClientKey(**read_key(Path(path), ("server", "public", "secret")))

    def apply(self, socket: zmq.Socket[bytes]) -> None:
        """Before the socket connects."""
        socket.curve_serverkey = self.server.encode()
        socket.curve_publickey = self.public.encode()
        socket.curve_secretkey = self.secret.encode()


Curve = ClientKey | str | os.PathLike[str] | None
"""A client key, or the file that has it."""


def client_key(curve: Curve, endpoint: str, environ: Mapping[str, str] = os.environ) -> ClientKey | None:
    """The key for a connection: the given one or, for ``tcp://``, that which the environment names."""
    if curve is None and endpoint.startswith("tcp://"):
        curve = environ.get(CLIENT_KEY_VARIABLE)
    return curve if curve is None or isinstance(curve, ClientKey) else ClientKey.read(curve)


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
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
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
    """What others can write decides nothing. In a folder with the sticky bit they cannot replace what is there."""
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


def read_key(path: Path, names: tuple[str, ...]) -> dict[str, str]:
    """The keys in a file, by name; ``InvalidRequest`` if it lacks one or is open to others."""
    text = read_text(path)
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise InvalidRequest(
            f"{path} can be read by others: chmod 600 {path}, and make a new key if they may have"
        )
    lines = [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    found: dict[str, Any] = {words[0]: words[1] for words in lines if len(words) == 2}
    for name in names:
        if name not in found:
            raise InvalidRequest(
                f"{path} has no {name} key; is it a file that slipstream keys made for this use?"
            )
    return {name: checked(found[name], f"{path}, {name}") for name in names}


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the key file {path} cannot be read: {error}") from None


def checked(key: str, where: str) -> str:
    if len(key) != KEY_CHARS:
        raise InvalidRequest(f"{where}: a key has {KEY_CHARS} characters, this one {len(key)}")
    return key
