"""A file that says which services there are."""

from __future__ import annotations

from collections.abc import Callable

from ...protocol.endpoints import check_endpoint, is_same
from ...protocol.errors import InvalidRequest

MAX_SERVICES = 256
"""Most services of a router: each takes three of the 1,023 sockets that libzmq has."""


def named_in(text: str) -> list[str]:
    """The endpoints in a file of services: one on each line, but for empty ones and those that begin with #."""
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def endpoints_in(text: str, folder: str, own: str | None, complain: Callable[[str], None]) -> list[str]:
    """The lines that are endpoints of services; a relative path begins in ``folder``.

    A running router goes on with what is right: of the first line that is not ``complain`` is told why, and how many
    there are. ``own`` is the endpoint of the router itself.
    """
    good: dict[str, None] = {}
    wrong: list[str] = []
    for line in dict.fromkeys(named_in(text)):
        try:
            endpoint = check_endpoint(line, insecure=True, folder=folder)
            if endpoint in good:
                continue
            if own is not None and is_same(endpoint, own):
                raise InvalidRequest(f"endpoint {endpoint!r} is that of the router itself")
            if len(good) == MAX_SERVICES:
                raise InvalidRequest(f"endpoint {endpoint!r} is one more than {MAX_SERVICES}, the limit")
            good[endpoint] = None
        except InvalidRequest as error:
            wrong.append(str(error))
    if wrong:
        others = f", and {len(wrong) - 1} others" if len(wrong) > 1 else ""
        complain(f"{wrong[0]:.300}; the line is passed over{others}")
    return list(good)
