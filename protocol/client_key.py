"""The CURVE key of a client: what it needs to reach a service that lets in only clients it knows.

``slipstream keys`` makes such a key, one file for each client, and the operator of the service hands it out.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq
from zmq.utils import z85

from .errors import InvalidRequest, brief
from .small_file import read_small_file

CLIENT_KEY_VARIABLE = "SLIPSTREAM_CLIENT_KEY"
"""Names the client key for ``tcp://`` endpoints, where a program gives none."""

KEY_CHARS = 40
"""Length of a key in Z85."""


@dataclass(frozen=True, slots=True)
class ClientKey:
    """The keys of a client: its own pair, and the public key of the service that it connects to."""

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
    if curve is None or isinstance(curve, ClientKey):
        return curve
    if not isinstance(curve, str | os.PathLike):
        raise InvalidRequest(
            f"curve={brief(curve)} is neither a ClientKey nor the path of a key file", param="curve"
        )
    return ClientKey.read(curve)


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
        return read_small_file(path).decode("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the key file {path} cannot be read: {error}") from None


def checked(key: str, where: str) -> str:
    if len(key) != KEY_CHARS:
        raise InvalidRequest(f"{where}: a key has {KEY_CHARS} characters, this one {len(key)}")
    try:
        z85.decode(key)
    except (KeyError, ValueError, struct.error):
        # No word of it, which may be a secret.
        raise InvalidRequest(f"{where}: this is no key; take the file as slipstream keys made it") from None
    return key
