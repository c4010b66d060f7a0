"""Requests that offer to go on in another protocol, which is passed over.

Some clients offer HTTP/2 so (``Upgrade: h2c``) with the first request of a connection. The parser takes all that
follows the headers of such a request for the other protocol. A server that stays with HTTP/1.1 answers the request like
any other (RFC 9110, 7.8): its body, where it has one, is read by a parser that is shown how long it is.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import httptools

FRAMING = (b"content-length", b"transfer-encoding")
"""Headers that say how long a body is."""


class Parser(httptools.HttpRequestParser):
    """A parser of a connection's requests, which another follows after an upgrade."""

    def __init__(self, protocol: Any, called_back: Any = None) -> None:
        """``protocol`` has this as its ``parser``; ``called_back`` gets what is parsed; None: the
        protocol itself."""
        super().__init__(protocol if called_back is None else called_back)
        self.protocol = protocol
        # An answer may be sent to the first of several requests that came at once, as uvicorn has it.
        self.set_dangerous_leniencies(lenient_data_after_close=True)

    def feed_data(self, data: bytes | bytearray | memoryview[int] | array[int]) -> None:
        try:
            super().feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            length = framing(self.protocol.headers)
            following = self.protocol.parser = Parser(self.protocol, Rest(self.protocol) if length else None)
            if length:
                lines = b"".join(b"%b: %b\r\n" % header for header in length)
                following.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % lines)
            if rest := data[upgrade.args[0] :]:
                following.feed_data(rest)


def framing(headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers of a request that say how long its body is; empty if it has none."""
    return [(name, value) for name, value in headers if name in FRAMING]


class Rest:
    """Tells a protocol what a parser finds, but for the first headers, which the protocol has had."""

    def __init__(self, protocol: Any) -> None:
        self.protocol = protocol
        self.known = True
        self.on_body, self.on_message_complete = protocol.on_body, protocol.on_message_complete

    def on_message_begin(self) -> None:
        if not self.known:
            self.protocol.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self.known:
            self.protocol.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.known:
            self.protocol.on_header(name, value)

    def on_headers_complete(self) -> None:
        if not self.known:
            self.protocol.on_headers_complete()
        self.known = False
