"""Endpoints of services, checked before a socket is touched."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from pathlib import Path

from .errors import InvalidRequest, brief
from .limits import MAX_IPC_PATH_BYTES
from .paths import absolute_path

RUN_PREFIX = "slipstream-run-"
"""How the name of a service's private folder begins."""


def check_endpoint(endpoint: str, *, insecure: bool = False, folder: str = "") -> str:
    """Return ``endpoint`` if it can be bound: ``ipc://PATH`` or ``tcp://HOST:PORT`` on a loopback address.

    A relative path begins in ``folder``, or the working directory, and is returned as an absolute one: the actors,
    which bind it, work in ``/``. ``InvalidRequest`` names what is wrong. TCP on another address than the loopback needs
    ``insecure``, which stands for keys as well.
    """
    if not isinstance(endpoint, str):
        raise InvalidRequest(f"endpoint {brief(endpoint)} is no text such as ipc://PATH", param="endpoint")
    scheme, separator, address = endpoint.partition("://")
    if not separator or scheme not in ("ipc", "tcp"):
        raise InvalidRequest(
            f"endpoint {endpoint!r} is neither ipc://PATH nor tcp://HOST:PORT", param="endpoint"
        )
    if scheme == "ipc":
        if not address or address.startswith("@"):
            raise InvalidRequest(f"endpoint {endpoint!r} has no path; give ipc://PATH", param="endpoint")
        endpoint = f"ipc://{absolute_path(address, folder)}"
        size = len(os.fsencode(endpoint.removeprefix("ipc://")))
        if size > MAX_IPC_PATH_BYTES:
            raise InvalidRequest(
                f"the path of {endpoint!r} has {size} bytes; a Unix socket takes at most {MAX_IPC_PATH_BYTES}:"
                " choose a shorter one, under /tmp for example",
                param="endpoint",
            )
        return endpoint
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise InvalidRequest(
            f"endpoint {endpoint!r} needs a host and a port of 0 to 65535: tcp://127.0.0.1:5555",
            param="endpoint",
        )
    if not insecure and not is_loopback(host):
        raise InvalidRequest(
            f"endpoint {endpoint!r} can be reached from other machines, and anyone there could use it:"
            " bind a loopback address such as tcp://127.0.0.1:5555, or add --curve-keys FOLDER (see slipstream"
            " keys) so that only clients with a key can, or --insecure",
            param="endpoint",
        )
    return endpoint


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_same(endpoint: str, own: str) -> bool:
    """Whether a connection to ``endpoint`` reaches ``own``, which this machine binds, as far as their texts show."""
    (scheme, _, address), (own_scheme, _, own_address) = endpoint.partition("://"), own.partition("://")
    if scheme != own_scheme:
        return False
    if scheme == "ipc":
        return os.path.normpath(address) == os.path.normpath(own_address)
    (host, _, port), (own_host, _, own_port) = address.rpartition(":"), own_address.rpartition(":")
    if int(port) != int(own_port):
        return False
    if host in ANYWHERE or own_host in ANYWHERE:
        return all(one in ANYWHERE or is_loopback(one) for one in (host, own_host))
    return host.replace("localhost", "127.0.0.1") == own_host.replace("localhost", "127.0.0.1")


ANYWHERE = ("*", "0.0.0.0", "[::]", "::")
"""Hosts that are bound as every address of a machine, and reach the machine itself."""


def running_services() -> list[str]:
    """Endpoints of this user's services on this machine that were given no ``--endpoint`` of their own."""
    return own_sockets("gateway")


def own_sockets(name: str) -> list[str]:
    """The sockets of this name in the folders of this user's services that run on this machine."""
    import tempfile  # 4 ms, which a client that knows its endpoint need not wait for

    found: list[str] = []
    for parent in sorted({os.environ.get("XDG_RUNTIME_DIR") or "/tmp", tempfile.gettempdir(), "/tmp"}):
        for path in sorted(Path(parent).glob(f"{RUN_PREFIX}*/{name}")):
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                if path.stat().st_uid == os.getuid():
                    probe.connect(str(path))  # the socket of a dead service is there, but refuses
                    found.append(f"ipc://{path}")
    return found
