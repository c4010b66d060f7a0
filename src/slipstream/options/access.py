"""At which addresses clients connect, and which may: the checks that ``serve`` and ``route`` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ..protocol.endpoints import check_endpoint, is_loopback
from ..protocol.errors import InvalidRequest
from ..runtime.options.table import changed

NEEDS_HTTP = ("api_key", "allowed_origins", "metrics_prefix", "model_defaults")
"""Options of the OpenAI frontend, by their names."""


class AccessOptions(Protocol):
    """The options that say at which addresses clients connect, and which clients may."""

    @property
    def endpoint(self) -> str | None: ...
    @property
    def http(self) -> str | None: ...
    @property
    def api_key(self) -> str | None: ...
    @property
    def insecure(self) -> bool: ...
    @property
    def curve_keys(self) -> str | None: ...


def http_error(text: str) -> str | None:
    """The error in the address of the OpenAI frontend, or None."""
    host, port = host_of(text), text.rpartition(":")[2]
    if host and "/" not in host and port.isdecimal() and int(port) <= 65535:
        return None
    return "is no HOST:PORT; give 127.0.0.1:8000, for example"


def key_error(text: str) -> str | None:
    """The error in the key of HTTP clients, or None."""
    if text and text.isascii() and text.isprintable() and text == text.strip():
        return None
    return "is no key that a header can carry: give letters, digits and signs of ASCII, and no space at either end"


def host_of(address: str) -> str:
    """``::1`` of ``[::1]:8000``."""
    return address.rpartition(":")[0].strip("[]")


def check_access(options: AccessOptions, spell: Callable[[str], str]) -> None:
    """Refuse what lets in everybody without its being said, and what concerns a frontend that is not there."""
    needs_http = [name for name in NEEDS_HTTP if changed(options, name)]
    if options.http is None and needs_http:
        flag = needs_http[0].replace("_", "-")
        raise InvalidRequest(f"{flag} has no effect without the OpenAI frontend; add --http HOST:PORT")
    known = options.api_key or options.insecure
    if options.http is not None and not (known or is_loopback(host_of(options.http))):
        raise InvalidRequest(
            f"{spell('http')} can be reached from other machines, and anyone there could use it:"
            " listen on a loopback address such as 127.0.0.1:8000, or give --api-key, or add --insecure"
        )
    if options.endpoint is not None:
        check_endpoint(options.endpoint, insecure=options.insecure or options.curve_keys is not None)
