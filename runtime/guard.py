"""The guard at a public socket (CURVE): only clients whose key is allowed come in, and all is encrypted."""

from __future__ import annotations

from dataclasses import dataclass

import zmq

from ..protocol.errors import SlipstreamError
from .key_folder import KeyFolder
from .log import logger

DOMAIN = "slipstream"


@dataclass(frozen=True, slots=True)
class AllowedClients:
    """The clients that may connect to a public socket, by their public keys."""

    folder: KeyFolder
    also: frozenset[str] = frozenset()
    """Further public keys: of the service's own frontends."""

    def check(self) -> None:
        """``InvalidRequest`` if the folder lacks anything."""
        self.folder.server()
        self.folder.allowed()

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether a client may come in; the list is read each time, so a line taken out counts at once."""
        try:
            return key.decode() in self.folder.allowed() | self.also
        except SlipstreamError as error:
            logger.warning("nobody can come in: %s", error)
            return False


def guard(
    context: zmq.Context[zmq.Socket[bytes]], public: zmq.Socket[bytes], clients: AllowedClients
) -> None:
    """Before the socket is bound. The guard waits in a thread of its own, which does nothing until someone connects."""
    from zmq.auth.thread import ThreadAuthenticator

    authenticator = ThreadAuthenticator(context)
    authenticator.start()
    authenticator.configure_curve_callback(DOMAIN, clients)
    public_key, secret_key = clients.folder.server()
    public.curve_server = True
    public.curve_publickey = public_key.encode()
    public.curve_secretkey = secret_key.encode()
    public.zap_domain = DOMAIN.encode()
