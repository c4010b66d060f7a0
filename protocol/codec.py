"""The one place where bytes become messages and messages bytes.

The wire is MessagePack by the ``msgpack`` package; ``msgspec`` gives the types. Whatever goes wrong
while reading a frame, and hostile bytes raise more than the documented exceptions, comes out as a
``ProtocolError`` that names the place, the value and what was expected.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgpack
import msgspec

from .errors import ProtocolError
from .limits import MAX_FRAME_BYTES, MAX_ITEMS
from .messages import Envelope, PublicIn, PublicOut

T = TypeVar("T")


def encode(message: msgspec.Struct) -> bytes:
    """A message as MessagePack. A lone surrogate in a text becomes ``?``; bytes stay binary."""
    return pack(msgspec.to_builtins(message, builtin_types=(bytes,)))


def pack(plain: Any) -> bytes:
    """Plain values as MessagePack."""
    packed = msgpack.packb(plain, unicode_errors="replace")
    assert packed is not None
    return packed


def decode(frame: bytes, kind: Any) -> Any:
    """The message of type ``kind`` in ``frame``; ``ProtocolError`` if it is none."""
    if len(frame) > MAX_FRAME_BYTES:
        raise ProtocolError(f"a frame of {len(frame)} bytes is over the limit of {MAX_FRAME_BYTES}")
    try:
        plain = msgpack.unpackb(
            frame,
            max_str_len=MAX_FRAME_BYTES,
            max_bin_len=MAX_FRAME_BYTES,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
            max_ext_len=0,
        )
    except Exception as error:  # the boundary: hostile bytes raise far more than msgpack documents
        raise ProtocolError(f"a frame of {len(frame)} bytes is not MessagePack: {error or type(error).__name__}") from None
    try:
        return msgspec.convert(plain, kind)
    except Exception as error:
        raise ProtocolError(explain(error, plain)) from None


def decode_envelope(frame: bytes) -> Envelope:
    return decode(frame, Envelope)


def decode_from_client(frame: bytes) -> PublicIn:
    return decode(frame, PublicIn)


def decode_to_client(frame: bytes) -> PublicOut:
    return decode(frame, PublicOut)


def request_id(frame: bytes) -> str | None:
    """The ``id`` in a frame that is no valid message, so that its sender learns which request failed."""
    try:
        found = msgpack.unpackb(frame, max_ext_len=0)["id"]
    except Exception:  # the boundary again: there is no id to be had
        return None
    return found if isinstance(found, str) else None


def explain(error: Exception, plain: object) -> str:
    """msgspec's message, with the value that it complains about."""
    text = str(error) or type(error).__name__
    _, found, path = text.partition(" - at `$")
    if not found:
        return text
    value: Any = plain
    for part in path.rstrip("`").replace("[", ".[").split(".")[1:]:
        try:
            value = value[int(part[1:-1])] if part.startswith("[") else value[part]
        except (KeyError, IndexError, TypeError, ValueError):
            return text
    return f"{text}: the value is {value!r:.80}"
