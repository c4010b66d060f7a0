"""A file that says which services there are."""

from __future__ import annotations

from collections.abc import Callable

from ...protocol.endpoints import check_endpoint
from ...protocol.errors import InvalidRequest


def named_in(text: str) -> list[str]:
    """The endpoints in a file of services: one on each line, but for empty ones and those that begin with #."""
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def endpoints_in(text: str, folder: str, complain: Callable[[str], None]) -> list[str]:
    """The lines that are endpoints; a relative path begins in ``folder``.

    Of each other line ``complain`` is told why not, as a running router goes on with what is right.
    """
    good: list[str] = []
    for endpoint in named_in(text):
        try:
            good.append(check_endpoint(endpoint, insecure=True, folder=folder))
        except InvalidRequest as error:
            complain(f"{error}; the line is passed over")
    return good
