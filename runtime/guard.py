"""The guard at a door: only clients whose key is allowed come in, and all that they say is encrypted (CURVE)."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import zmq

from ..protocol.curve import KeyFolder
from ..protocol.errors import SlipstreamError

DOMAIN = "slipstream"


@dataclass(frozen=True, slots=True)
class DoorKeys:
    """What opens a door."""

    folder: KeyFolder
    also: frozenset[str] = frozenset()
    """Public keys that may come in too: of the service's own faces."""

    def check(self) -> None:
        """``InvalidRequest`` if the folder lacks anything."""
        self.folder.server()
        self.folder.allowed()

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether a client may come in; the list is read each time, so a line taken out counts at once."""
        try:
            return key.decode() in self.folder.allowed() | self.also
        except SlipstreamError as error:
            print(f"nobody can come in: {error}", file=sys.stderr)
            return False


def guard(context: zmq.Context[zmq.Socket[bytes]], door: zmq.Socket[bytes], keys: DoorKeys) -> None:
    """Before the door is bound. The guard waits in a thread of its own, which does nothing until someone knocks."""
    from zmq.auth.thread import ThreadAuthenticator

    authenticator = ThreadAuthenticator(context)
    authenticator.start()
    authenticator.configure_curve_callback(DOMAIN, keys)
    public, secret = keys.folder.server()
    door.curve_server = True
    door.curve_publickey = public.encode()
    door.curve_secretkey = secret.encode()
    door.zap_domain = DOMAIN.encode()
