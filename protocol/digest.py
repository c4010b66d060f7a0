"""A digest that is the same for two requests for the same answer."""

from __future__ import annotations

from hashlib import blake2b

import msgspec

from .messages import FromClient, Generate


def digest_of(message: FromClient) -> bytes:
    """16 bytes that are the same for all who ask for the same answer, whatever they have of it.

    Empty for a message that asks for none.
    """
    if not isinstance(message, Generate):
        return b""
    asked = msgspec.structs.replace(
        message, id="", received=[], received_of_others=[], age_s=0.0, traceparent=""
    )
    return blake2b(msgspec.msgpack.encode(asked), digest_size=16).digest()
