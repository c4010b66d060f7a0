"""Messages between actors as they arrive in a service: written into a frame and read from it.

A message that an actor hands over in a test may have values that no frame can hold, such as a number of NumPy's, which
ends a service.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

from slipstream.protocol.codec import decode_envelope, encode
from slipstream.protocol.internal import Envelope

T = TypeVar("T")


def over_a_socket(message: T) -> T:
    """The message as it comes out of its frame."""
    sent: Any = message
    body = decode_envelope(encode(Envelope("anyone", 1, 1, 0, sent))).body
    assert type(body) is type(message)
    return cast(T, body)
